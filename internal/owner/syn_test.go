package owner

import (
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"

	"servicetraceroute/internal/wire"
)

func segment(src, dst string, flags wire.TCPFlags, options []byte) []byte {
	s := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst), TTL: 64, Seq: 1, Flags: flags, Window: 100,
	}, Options: options}
	return s.AppendTo(nil)
}

func TestSynKey(t *testing.T) {
	for _, ends := range [][2]string{{"192.0.2.1:40000", "203.0.113.7:443"}, {"[2001:db8::1]:40000", "[2001:db8::7]:443"}} {
		for flags, want := range map[wire.TCPFlags]bool{
			wire.SYN: true, wire.SYN | wire.ACK: false, wire.ACK: false, wire.FIN | wire.ACK: false, wire.RST: false,
		} {
			b := segment(ends[0], ends[1], flags, []byte{2, 4, 5, 180})
			got, ok := synKey(b)
			if ok != want || ok && (got.Src.String() != ends[0] || got.Dst.String() != ends[1]) {
				t.Errorf("%v %v: %v, %v", ends, flags, got, ok)
			}
			if len(b) <= snapSYN {
				continue
			}
			t.Errorf("%d bytes", len(b))
		}
	}
	for n := range 40 {
		if _, ok := synKey(segment("192.0.2.1:1", "192.0.2.2:2", wire.SYN, nil)[:n]); ok {
			t.Errorf("%d bytes are a SYN", n)
		}
	}
}

// The filter must be one that the kernel takes: its jumps stay inside.
func TestFilterIsWhole(t *testing.T) {
	program := synOnly()
	if _, err := bpf.Assemble(program); err != nil {
		t.Fatal(err)
	}
	for i, in := range program {
		j, ok := in.(bpf.JumpIf)
		if far := i + 1 + int(max(j.SkipTrue, j.SkipFalse)); ok && far >= len(program) {
			t.Errorf("instruction %d jumps to %d of %d", i, far, len(program))
		}
	}
}

// The virtual machine of x/net knows neither network offsets nor facts about the
// packet; here the one fact lies in front of it.
func TestFilter(t *testing.T) {
	program := synOnly()
	for i, in := range program {
		switch in := in.(type) {
		case bpf.LoadAbsolute:
			if in.Off == adType {
				in.Off = 0
			} else {
				in.Off -= netOffset - 1
			}
			program[i] = in
		case bpf.LoadIndirect:
			in.Off -= netOffset - 1
			program[i] = in
		}
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	udp := segment("192.0.2.1:1", "192.0.2.2:2", wire.SYN, nil)
	udp[9] = protoUDP
	udp6 := segment("[2001:db8::1]:1", "[2001:db8::2]:2", wire.SYN, nil)
	udp6[6] = protoUDP
	later := segment("192.0.2.1:1", "192.0.2.2:2", wire.SYN, nil)
	later[7] = 9
	for name, test := range map[string]struct {
		direction byte
		packet    []byte
		want      bool
	}{
		"IPv4":               {typeOutgoing, segment("192.0.2.1:1", "192.0.2.2:2", wire.SYN, []byte{2, 4, 5, 180}), true},
		"IPv6":               {typeOutgoing, segment("[2001:db8::1]:1", "[2001:db8::2]:2", wire.SYN, nil), true},
		"with ECN":           {typeOutgoing, segment("192.0.2.1:1", "192.0.2.2:2", wire.SYN|0xc0, nil), true},
		"incoming":           {0, segment("192.0.2.1:1", "192.0.2.2:2", wire.SYN, nil), false},
		"SYN-ACK":            {typeOutgoing, segment("192.0.2.1:1", "192.0.2.2:2", wire.SYN|wire.ACK, nil), false},
		"SYN-ACK, IPv6":      {typeOutgoing, segment("[2001:db8::1]:1", "[2001:db8::2]:2", wire.SYN|wire.ACK, nil), false},
		"ACK":                {typeOutgoing, segment("192.0.2.1:1", "192.0.2.2:2", wire.ACK, nil), false},
		"ACK, IPv6":          {typeOutgoing, segment("[2001:db8::1]:1", "[2001:db8::2]:2", wire.ACK, nil), false},
		"UDP":                {typeOutgoing, udp, false},
		"UDP, IPv6":          {typeOutgoing, udp6, false},
		"a later fragment":   {typeOutgoing, later, false},
		"neither IPv4 nor 6": {typeOutgoing, make([]byte, 60), false},
	} {
		n, err := vm.Run(append([]byte{test.direction}, test.packet...))
		if err != nil || (n > 0) != test.want {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
}
