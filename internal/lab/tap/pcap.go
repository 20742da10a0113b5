//go:build linux

package tap

import "encoding/binary"

// AppendPcap appends the frames that wait in the ring as a pcap file, as tcpdump writes
// one: Ethernet, the kernel's times, nothing of the frames' ways. Those of the loopback
// interface are left out.
func (r *Ring) AppendPcap(b []byte) []byte {
	const ethernet, snap = 1, 1 << 18
	for _, v := range []uint32{0xa1b23c4d, 2 | 4<<16, 0, 0, snap, ethernet} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	for f, ok := r.Next(); ok; f, ok = r.Next() {
		if f.Loopback {
			continue
		}
		for _, v := range []uint32{uint32(f.Time / 1e9), uint32(f.Time % 1e9), uint32(len(f.Data)), uint32(f.Len)} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		b = append(b, f.Data...)
	}
	return b
}
