package packetfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strconv"
	"testing"
	"testing/iotest"
	"time"

	"servicetraceroute/internal/capture"
)

var orders = map[string]binary.AppendByteOrder{"little": binary.LittleEndian, "big": binary.BigEndian}

// all reads a file to its end; packets keep their data.
func all(t testing.TB, b []byte) (packets []capture.Packet, r *Reader, err error) {
	t.Helper()
	r = NewReader(bytes.NewReader(b))
	for {
		p, err := r.Next()
		if err != nil {
			if again, e := r.Next(); again.Data != nil || e != err {
				t.Errorf("after %v: %v", err, e)
			}
			return packets, r, err
		}
		p.Data = bytes.Clone(p.Data)
		packets = append(packets, p)
	}
}

// whole is all of a file that is in order.
func whole(t testing.TB, b []byte) ([]capture.Packet, *Reader) {
	t.Helper()
	packets, r, err := all(t, b)
	if err != io.EOF {
		t.Fatalf("%v", err)
	}
	return packets, r
}

// A pcap file, in both byte orders and resolutions.
func TestPcap(t *testing.T) {
	for name, order := range orders {
		for _, nano := range []bool{false, true} {
			f := pcap(order, nano, linkEthernet).record(1_700_000_000, 123_456, join(macs, "\x08\x00", ip4), 1500+14)
			f.record(1_700_000_001, 0, join(macs, "\x86\xdd", ip6), len(ip6)+14)
			got, r := whole(t, f.b)
			if len(got) != 2 {
				t.Fatalf("%s: %+v", name, got)
			}
			at := time.Unix(1_700_000_000, 123_456_000)
			if nano {
				at = time.Unix(1_700_000_000, 123_456)
			}
			p := got[0]
			if !p.Time.Equal(at) || p.Interface != 1 || p.Direction != 0 || !bytes.Equal(p.Data, ip4) || p.Len != 1500 || p.Tagged {
				t.Errorf("%s: %+v", name, p)
			}
			if !p.NextHopKnown || p.NextHop.Len != 6 || !bytes.Equal(p.NextHop.Addr[:6], []byte(macs[:6])) {
				t.Errorf("%s: next hop %+v", name, p.NextHop)
			}
			if !bytes.Equal(got[1].Data, ip6) || got[1].Len != len(ip6) {
				t.Errorf("%s: %+v", name, got[1])
			}
			if i, ok := r.Interface(1); !ok || i.LinkType != linkEthernet || r.Counts() != (Counts{Packets: 2}) {
				t.Errorf("%s: %+v %+v", name, i, r.Counts())
			}
		}
	}
}

// The upper half of the link type tells of a frame check sequence.
func TestPcapWithFCS(t *testing.T) {
	got, _ := whole(t, pcap(binary.LittleEndian, false, 0x44000000|linkRaw).record(1, 2, ip4, len(ip4)).b)
	if len(got) != 1 {
		t.Errorf("%+v", got)
	}
}

// What every link type puts before the IP header.
func TestLinkTypes(t *testing.T) {
	sll := func(kind, protocol string) string {
		return kind + "\x00\x01\x00\x06\x02\x00\x00\x00\x00\x01\x00\x00" + protocol
	}
	sll2 := func(kind, protocol string) string {
		return protocol + "\x00\x00\x00\x00\x00\x02\x00\x01" + kind + "\x06\x02\x00\x00\x00\x00\x01\x00\x00"
	}
	const none = capture.Direction(0)
	ip, six := string(ip4), string(ip6)
	for _, c := range []struct {
		name      string
		link      uint32
		frame     string
		want      string // what Data is; empty: no packet
		direction capture.Direction
		tagged    bool
		known     bool // the next hop
		counts    Counts
	}{
		{"ethernet", 1, macs + "\x08\x00" + ip, ip, none, false, true, Counts{Packets: 1}},
		{"vlan", 1, macs + "\x81\x00\x00\x07\x86\xdd" + six, six, none, true, true, Counts{Packets: 1}},
		{"double tag", 1, macs + "\x88\xa8\x00\x07\x81\x00\x00\x08\x08\x00" + ip, ip, none, true, true, Counts{Packets: 1}},
		{"five tags", 1, macs + "\x81\x00\x00\x01\x81\x00\x00\x01\x81\x00\x00\x01\x81\x00\x00\x01\x81\x00\x00\x01\x08\x00" + ip, "", none, true, true, Counts{NotIP: 1}},
		{"tag cut", 1, macs + "\x81\x00\x00", "", none, true, true, Counts{Cut: 1}},
		{"arp", 1, macs + "\x08\x06" + ip, "", none, false, true, Counts{NotIP: 1}},
		{"arp cut", 1, macs + "\x08\x06", "", none, false, true, Counts{NotIP: 1}},
		{"802.3", 1, macs + "\x00\x20" + ip, "", none, false, true, Counts{NotIP: 1}},
		{"type 0", 1, macs + "\x00\x00" + ip, "", none, false, true, Counts{NotIP: 1}},
		{"ethernet cut", 1, macs + "\x08", "", none, false, false, Counts{Cut: 1}},
		{"no ip header", 1, macs + "\x08\x00", "", none, false, true, Counts{Cut: 1}},
		{"raw 4", 101, ip, ip, none, false, false, Counts{Packets: 1}},
		{"raw 6", 101, six, six, none, false, false, Counts{Packets: 1}},
		{"raw, neither", 101, "\x50" + ip[1:], "", none, false, false, Counts{NotIP: 1}},
		{"raw, old", 12, ip, ip, none, false, false, Counts{Packets: 1}},
		{"raw, OpenBSD", 14, ip, ip, none, false, false, Counts{Packets: 1}},
		{"raw, empty", 101, "", "", none, false, false, Counts{Cut: 1}},
		{"ipv4", 228, ip, ip, none, false, false, Counts{Packets: 1}},
		{"ipv6", 229, six, six, none, false, false, Counts{Packets: 1}},
		{"null, little", 0, "\x02\x00\x00\x00" + ip, ip, none, false, true, Counts{Packets: 1}},
		{"null, big", 0, "\x00\x00\x00\x1e" + six, six, none, false, true, Counts{Packets: 1}},
		{"null, other", 0, "\x07\x00\x00\x00" + ip, "", none, false, true, Counts{NotIP: 1}},
		{"null, cut", 0, "\x02\x00\x00", "", none, false, true, Counts{Cut: 1}},
		{"loop", 108, "\x00\x00\x00\x18" + six, six, none, false, true, Counts{Packets: 1}},
		{"cooked, in", 113, sll("\x00\x00", "\x08\x00") + ip, ip, capture.Incoming, false, false, Counts{Packets: 1}},
		{"cooked, broadcast", 113, sll("\x00\x01", "\x08\x00") + ip, ip, capture.Incoming, false, false, Counts{Packets: 1}},
		{"cooked, foreign", 113, sll("\x00\x03", "\x08\x00") + ip, ip, capture.Foreign, false, false, Counts{Packets: 1}},
		{"cooked, out", 113, sll("\x00\x04", "\x86\xdd") + six, six, capture.Outgoing, false, false, Counts{Packets: 1}},
		{"cooked, what", 113, sll("\x00\x09", "\x86\xdd") + six, six, none, false, false, Counts{Packets: 1}},
		{"cooked, vlan", 113, sll("\x00\x04", "\x81\x00") + "\x00\x07\x08\x00" + ip, ip, capture.Outgoing, true, false, Counts{Packets: 1}},
		{"cooked, arp", 113, sll("\x00\x00", "\x08\x06") + ip, "", capture.Incoming, false, false, Counts{NotIP: 1}},
		{"cooked, cut", 113, sll("\x00\x00", "\x08"), "", none, false, false, Counts{Cut: 1}},
		{"cooked 2, out", 276, sll2("\x04", "\x08\x00") + ip, ip, capture.Outgoing, false, false, Counts{Packets: 1}},
		{"cooked 2, in", 276, sll2("\x00", "\x86\xdd") + six, six, capture.Incoming, false, false, Counts{Packets: 1}},
		{"cooked 2, cut", 276, sll2("\x00", "\x86\xdd")[:19], "", none, false, false, Counts{Cut: 1}},
		{"unknown", 147, ip, "", none, false, false, Counts{LinkType: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, r := whole(t, pcap(binary.LittleEndian, false, c.link).record(1, 2, []byte(c.frame), len(c.frame)+3).b)
			if r.Counts() != c.counts {
				t.Errorf("counted %+v", r.Counts())
			}
			if c.want == "" {
				if len(got) != 0 {
					t.Errorf("%+v", got)
				}
				return
			}
			if len(got) != 1 {
				t.Fatalf("%+v", got)
			}
			p := got[0]
			if string(p.Data) != c.want || p.Len != len(c.want)+3 || p.Direction != c.direction || p.Tagged != c.tagged || p.NextHopKnown != c.known {
				t.Errorf("%+v", p)
			}
		})
	}
}

// Sections of both byte orders with interfaces of their own, blocks in between that
// hold no packets, options before and after those that matter.
func TestPcapng(t *testing.T) {
	for name, order := range orders {
		f := section(order)
		f.block(0x0bad, []byte("whatever this is"))
		f.iface(linkRaw, f.option(1, []byte("comment")), f.option(ifName, []byte("eth0")), f.option(ifTSResol, []byte{9}), f.words(0))
		f.iface(linkEthernet, f.option(ifName, []byte("wlan0")))
		f.block(4, []byte("names"))
		f.enhanced(0, 1_700_000_000_123_456_789, ip4, 1500, f.option(1, []byte("a comment")), f.option(epbFlags, f.words(2)), f.words(0))
		f.enhanced(1, 1_700_000_000_123_456, join(macs, "\x86\xdd", ip6), 14+len(ip6), f.option(epbFlags, f.words(1|4<<2)))
		f.block(simplePacket, f.words(uint32(len(ip4))), ip4)
		f.block(oldPacket, (&file{order: order}).u16(1, 3).b, f.words(0, 7, uint32(14+len(ip4)), uint32(14+len(ip4))), join(macs, "\x08\x00", ip4))
		f.block(statistics, f.words(0, 0, 0), f.option(isbIfDrop, join(f.words(0, 0))), f.option(isbOSDrop, uint64Of(order, 40)))
		f.enhanced(2, 0, ip4, len(ip4)) // nobody described that one
		other := section(orders["big"]).iface(linkRaw, f.option(99, nil)).enhanced(0, 5_000_000, ip6, len(ip6))
		again := section(order)
		again.iface(linkRaw, again.option(ifName, []byte("eth0")), again.option(ifTSResol, []byte{9})).enhanced(0, 6, ip4, len(ip4))

		got, r := whole(t, join(f.b, other.b, again.b))
		var lines []string
		for _, p := range got {
			i, _ := r.Interface(p.Interface)
			lines = append(lines, i.Name+" "+p.Time.UTC().Format("2006 05.000000000")+" "+map[capture.Direction]string{0: "?", 1: "in", 2: "out", 3: "foreign"}[p.Direction])
		}
		want := []string{
			"eth0 2023 20.123456789 out", "wlan0 2023 20.123456000 foreign", "eth0 2023 20.123456000 ?", "wlan0 1970 00.000007000 ?",
			" 1970 05.000000000 ?", "eth0 1970 00.000000006 ?",
		}
		if !slices.Equal(lines, want) {
			t.Errorf("%s:\n%q\n%q", name, lines, want)
		}
		if got[0].Len != 1500 || got[2].Len != len(ip4) || !bytes.Equal(got[3].Data, ip4) || !bytes.Equal(got[4].Data, ip6) {
			t.Errorf("%s: %+v", name, got)
		}
		if got[5].Interface != got[0].Interface {
			t.Errorf("%s: eth0 is %d in one section and %d in the other", name, got[0].Interface, got[5].Interface)
		}
		if c := r.Counts(); c != (Counts{Packets: 6, NoInterface: 1, Lost: 43, Blocks: 10}) {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func uint64Of(order binary.AppendByteOrder, v uint64) []byte { return order.AppendUint64(nil, v) }

// Timestamps of every resolution, and offsets.
func TestResolutions(t *testing.T) {
	for _, c := range []struct {
		name   string
		resol  int // -1: none is given
		offset int64
		stamp  uint64
		want   string
	}{
		{"default", -1, 0, 1_500_000, "1970-01-01T00:00:01.5Z"},
		{"seconds", 0, 0, 3, "1970-01-01T00:00:03Z"},
		{"milliseconds", 3, 0, 1234, "1970-01-01T00:00:01.234Z"},
		{"nanoseconds", 9, 0, 1_000_000_001, "1970-01-01T00:00:01.000000001Z"},
		{"picoseconds", 12, 0, 1_000_000_002_999, "1970-01-01T00:00:01.000000002Z"},
		{"as fine as 64 bits hold", 19, 0, 15_000_000_000_000_000_000, "1970-01-01T00:00:01.5Z"},
		{"finer", 20, 0, 1 << 63, "1970-01-01T00:00:00Z"},
		{"absurd", 127, 0, 1 << 63, "1970-01-01T00:00:00Z"},
		{"halves", 0x81, 0, 3, "1970-01-01T00:00:01.5Z"},
		{"2^-32", 0xa0, 0, 1<<33 | 1<<30, "1970-01-01T00:00:02.25Z"},
		{"2^-63", 0xbf, 0, 3 << 62, "1970-01-01T00:00:01.5Z"},
		{"2^-64", 0xc0, 0, 1 << 63, "1970-01-01T00:00:00Z"},
		{"offset", -1, 1_700_000_000, 250_000, "2023-11-14T22:13:20.25Z"},
		{"offset back", -1, -10, 30_000_000, "1970-01-01T00:00:20Z"},
		{"before 1970", -1, -10, 0, "1970-01-01T00:00:00Z"},
		{"beyond 9999", 0, 0, 1 << 63, "9999-12-31T23:59:59Z"},
		{"overflow", 0, 1<<63 - 1, 1 << 62, "9999-12-31T23:59:59Z"},
		{"underflow", 0, -1 << 63, 0, "1970-01-01T00:00:00Z"},
	} {
		f := section(binary.LittleEndian)
		var options [][]byte
		if c.resol >= 0 {
			options = append(options, f.option(ifTSResol, []byte{byte(c.resol)}))
		}
		options = append(options, f.option(ifTSOffset, uint64Of(binary.LittleEndian, uint64(c.offset))))
		f.iface(linkRaw, options...).enhanced(0, c.stamp, ip4, len(ip4))
		got, _ := whole(t, f.b)
		if at := got[0].Time.UTC().Format(time.RFC3339Nano); at != c.want {
			t.Errorf("%s: %s, want %s", c.name, at, c.want)
		}
	}
}

// A simple packet is as long as what was captured of it, and the snap length may say
// that.
func TestSimplePacket(t *testing.T) {
	f := section(binary.LittleEndian)
	f.block(interfaceBlock, (&file{order: f.order}).u16(linkRaw, 0).b, f.words(30))
	f.block(simplePacket, f.words(1000), ip4[:32])
	got, _ := whole(t, f.b)
	if len(got) != 1 || len(got[0].Data) != 30 || got[0].Len != 1000 || !got[0].Time.Equal(time.Unix(0, 0)) {
		t.Errorf("%+v", got)
	}
}

// A file that is cut anywhere gives every packet before the cut, and then where it
// was cut. One that ends between two packets is in order.
func TestTruncated(t *testing.T) {
	ng := section(binary.LittleEndian)
	ng.iface(linkRaw)
	for name, c := range map[string]struct {
		head []byte
		add  func(*file)
		from *file
	}{
		"pcap":   {from: pcap(binary.BigEndian, true, linkRaw), add: func(f *file) { f.record(1, 2, ip4, len(ip4)) }},
		"pcapng": {from: ng, add: func(f *file) { f.enhanced(0, 1, ip4, len(ip4)) }},
	} {
		f := c.from
		ends := []int{len(f.b)}
		for range 3 {
			c.add(f)
			ends = append(ends, len(f.b))
		}
		for n := range f.b {
			got, _, err := all(t, f.b[:n])
			want := 0
			for _, end := range ends[1:] {
				if n >= end {
					want++
				}
			}
			if len(got) != want {
				t.Fatalf("%s cut at %d: %d packets, want %d", name, n, len(got), want)
			}
			var broken *Error
			inside := !slices.Contains(ends, n) && n > 0 && !(name == "pcapng" && n == len(section(binary.LittleEndian).b))
			switch {
			case inside && (!errors.As(err, &broken) || !errors.Is(err, io.ErrUnexpectedEOF) || broken.Offset > int64(n)):
				t.Fatalf("%s cut at %d: %v", name, n, err)
			case !inside && err != io.EOF:
				t.Fatalf("%s cut at %d: %v", name, n, err)
			}
		}
	}
}

// What is broken is told with its place, after all that came before.
func TestBroken(t *testing.T) {
	le := binary.LittleEndian
	good := func() *file { return section(le).iface(linkRaw).enhanced(0, 1, ip4, len(ip4)) }
	at := len(good().b)
	for name, c := range map[string]struct {
		b       []byte
		packets int
		want    string
	}{
		"text":                 {[]byte("GET / HTTP/1.1\r\n"), 0, "packetfile: at byte 0: 47 45 54 20: neither pcap nor pcapng"},
		"version of pcap":      {append(pcap(le, false, 1).b[:4], make([]byte, 40)...), 0, "packetfile: at byte 0: version 0.0 of pcap is not known"},
		"packet of a gigabyte": {pcap(le, false, 101).record(1, 2, ip4, 40).u32(0, 0, 1<<30, 0).b, 1, "packetfile: at byte 80: a packet of 1073741824 bytes"},
		"block of 13":          {good().u32(enhancedPacket, 13, 0, 0).b, 1, "packetfile: at byte " + itoa(at) + ": a block of 13 bytes"},
		"block of 8":           {good().u32(enhancedPacket, 8, 0, 0).b, 1, "packetfile: at byte " + itoa(at) + ": a block of 8 bytes"},
		"two lengths":          {good().u32(enhancedPacket, 12, 16).b, 1, "packetfile: at byte " + itoa(at) + ": a block of 12 bytes that ends as one of 16"},
		"short packet block":   {good().block(enhancedPacket, make([]byte, 16)).b, 1, "packetfile: at byte " + itoa(at) + ": a packet block of 16 bytes"},
		"short old block":      {good().block(oldPacket, make([]byte, 16)).b, 1, "packetfile: at byte " + itoa(at) + ": a packet block of 16 bytes"},
		"no simple packet":     {good().block(simplePacket).b, 1, "packetfile: at byte " + itoa(at) + ": a simple packet block of 0 bytes"},
		"no interface":         {good().block(interfaceBlock, make([]byte, 4)).b, 1, "packetfile: at byte " + itoa(at) + ": an interface description of 4 bytes"},
		"packet beyond block":  {good().block(enhancedPacket, good().words(0, 0, 0, 41, 41), ip4).b, 1, "packetfile: at byte " + itoa(at) + ": a packet of 41 bytes in a block for 40"},
		"byte order":           {good().u32(sectionHeader, 28, 0x1a2b3c4e, 1, 0, 0, 28).b, 1, "packetfile: at byte " + itoa(at) + ": a section of unknown byte order (4e 3c 2b 1a)"},
		"version of pcapng":    {good().u32(sectionHeader, 28, 0x1a2b3c4d, 2, 0, 0, 28).b, 1, "packetfile: at byte " + itoa(at) + ": version 2.0 of pcapng is not known"},
		"short section":        {good().u32(sectionHeader, 24, 0x1a2b3c4d, 1, 0, 0, 28).b, 1, "packetfile: at byte " + itoa(at) + ": a section header of 24 bytes"},
	} {
		got, _, err := all(t, c.b)
		if len(got) != c.packets || err == nil || err.Error() != c.want {
			t.Errorf("%s: %d packets, %v", name, len(got), err)
		}
	}
	if _, _, err := all(t, []byte("GET / HTTP/1.1\r\n")); !errors.Is(err, ErrFormat) {
		t.Errorf("%v", err)
	}
	if _, _, err := all(t, nil); err != io.EOF {
		t.Errorf("an empty file: %v", err)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }

// Blocks longer than what is read at once are passed over, and what comes behind them
// is there.
func TestLongBlocks(t *testing.T) {
	f := section(binary.LittleEndian).iface(linkRaw)
	f.block(0x0bad, make([]byte, 3*maxBlock)).block(enhancedPacket, make([]byte, 2*maxBlock)).enhanced(0, 1, ip4, len(ip4))
	got, r := whole(t, f.b)
	if c := r.Counts(); len(got) != 1 || c.TooLong != 1 || c.Packets != 1 {
		t.Errorf("%d packets, %+v", len(got), c)
	}
}

// More interfaces than any machine has cost bounded memory.
func TestManyInterfaces(t *testing.T) {
	f := section(binary.LittleEndian)
	for n := range maxInterfaces + 10 {
		f.iface(linkRaw, f.option(ifName, []byte(itoa(n))))
	}
	f.enhanced(maxInterfaces-1, 1, ip4, len(ip4)).enhanced(maxInterfaces, 1, ip4, len(ip4))
	got, r := whole(t, f.b)
	if c := r.Counts(); len(got) != 1 || c.NoInterface != 1 || len(r.interfaces) != maxInterfaces {
		t.Errorf("%d packets, %+v, %d interfaces", len(got), c, len(r.interfaces))
	}
}

// Readers hand out bytes as they like.
func TestSlowReader(t *testing.T) {
	f := section(binary.LittleEndian).iface(linkRaw).enhanced(0, 1, ip4, len(ip4)).enhanced(0, 2, ip6, len(ip6))
	r := NewReader(iotest.OneByteReader(bytes.NewReader(f.b)))
	n := 0
	for ; ; n++ {
		if _, err := r.Next(); err != nil {
			if err != io.EOF || n != 2 {
				t.Errorf("%d packets, %v", n, err)
			}
			return
		}
	}
}

// No packet is copied, and none costs an allocation.
func TestNoAllocations(t *testing.T) {
	f := section(binary.LittleEndian).iface(linkRaw)
	for range 2000 {
		f.enhanced(0, 1, ip4, len(ip4), f.option(epbFlags, f.words(1)))
	}
	r := NewReader(bytes.NewReader(f.b))
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

// When a capture ended is told by its statistics, at the interface's resolution.
func TestUntil(t *testing.T) {
	for name, order := range orders {
		f := section(order)
		f.iface(linkRaw, f.option(ifTSResol, []byte{3}))
		f.enhanced(0, 5_000, ip4, len(ip4))
		f.block(statistics, f.words(0, 0, 0), f.option(isbEndTime, join(f.words(0, 7_250))))
		f.block(statistics, f.words(9, 0, 0), f.option(isbEndTime, join(f.words(0, 9_000)))) // of no interface
		f.block(statistics, f.words(0, 0, 0), f.option(isbEndTime, []byte("short")))
		packets, r := whole(t, f.b)
		if len(packets) != 1 || !r.Until().Equal(time.UnixMilli(7_250)) || r.Format() != "pcapng" {
			t.Errorf("%s: %v, %s", name, r.Until(), r.Format())
		}
	}
	if _, r := whole(t, pcap(binary.LittleEndian, false, linkRaw).b); r.Format() != "pcap" || !r.Until().IsZero() {
		t.Errorf("%v, %s", r.Until(), r.Format())
	}
	if _, r := whole(t, nil); r.Format() != "" {
		t.Errorf("%s", r.Format())
	}
}
