package capture

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"servicetraceroute/trace"
)

// segment is a TCP segment behind its IP header, with options, and no more than it carries.
func segment(src, dst netip.AddrPort, flags byte, options int, payload string) []byte {
	h := append(portBytes(src.Port(), dst.Port()), make([]byte, 16+options)...)
	h[12], h[13] = byte(20+options)/4<<4, flags
	ip := datagram(src.Addr().String(), dst.Addr().String(), protoTCP)
	return append(append(ip[:len(ip)-300], h...), payload...)
}

func udpOf(src, dst netip.AddrPort, payload string) []byte {
	h := append(portBytes(src.Port(), dst.Port()), 0, 0, 0, 0)
	ip := datagram(src.Addr().String(), dst.Addr().String(), protoUDP)
	return append(append(ip[:len(ip)-300], h...), payload...)
}

// hdrProto is where an IP header has the protocol.
func hdrProto(ip []byte) int {
	if ip[0]>>4 == 4 {
		return 9
	}
	return 6
}

// While but few flows are shown, of the others pass what begins or ends them and what tells whose
// they are, and of those everything.
func TestFew(t *testing.T) {
	const ack, psh = 0x10, 0x18
	hello := "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on"
	for _, addrs := range [][2]string{{"10.0.0.1", "192.0.2.7"}, {"fd00::1", "2001:db8::7"}} {
		at := func(i int, port uint16) netip.AddrPort {
			return netip.AddrPortFrom(netip.MustParseAddr(addrs[i]), port)
		}
		client, server := at(0, 40000), at(1, 443)
		cases := map[string]struct {
			ip          []byte
			all, little bool // passes of flows that are not followed, with names and without
		}{
			"SYN":             {segment(client, server, 0x02, 20, ""), true, true},
			"SYN and ACK":     {segment(server, client, 0x12, 20, ""), true, true},
			"ACK":             {segment(client, server, ack, 12, ""), false, false},
			"FIN":             {segment(client, server, 0x11, 12, ""), true, true},
			"RST":             {segment(server, client, 0x04, 0, ""), true, true},
			"data":            {segment(server, client, psh, 12, "some words"), false, false},
			"a byte":          {segment(client, server, psh, 0, "x"), false, false},
			"TLS hello":       {segment(client, server, psh, 12, hello), true, false},
			"behind options":  {segment(client, server, psh, 40, hello), true, false},
			"without options": {segment(client, server, ack, 0, hello), true, false},
			"server's hello":  {segment(server, client, psh, 12, "\x16\x03\x03\x00\x7a\x02\x00\x00\x76"), false, false},
			"TLS data":        {segment(client, server, psh, 12, "\x17\x03\x03\x00\x7a\x01\x00\x00\x76"), false, false},
			"a hello's start": {segment(client, server, psh, 12, hello[:4]), false, false},
			"HTTP":            {segment(client, server, psh, 12, "GET / HTTP/1.1\r\n"), true, false},
			"POST":            {segment(client, server, psh, 12, "POST /x HTTP/1.1\r\n"), true, false},
			"HTTP's answer":   {segment(server, client, psh, 12, "HTTP/1.1 200 OK"), false, false},
			"DNS":             {udpOf(client, at(1, 53), "a question"), true, false},
			"DNS answer":      {udpOf(at(1, 53), client, "an answer"), true, false},
			"DNS over TCP":    {segment(at(1, 53), client, psh, 12, "an answer"), true, false},
			"QUIC Initial":    {udpOf(client, server, "\xc3and so on"), true, false},
			"QUIC":            {udpOf(server, client, "\x43and so on"), false, false},
			"RTP":             {udpOf(server, client, "\x80\x00and so on"), false, false},
			"empty":           {udpOf(server, client, ""), false, false},
		}
		for name, c := range cases {
			f := facts{proto: 0x0800, hatype: 1}
			if client.Addr().Is6() {
				f.proto = 0x86dd
			}
			for _, hatype := range []uint16{1, 65534} { // with Ethernet's header, and as none has it
				f.hatype = hatype
				for _, names := range []bool{true, false} {
					want := c.little
					if names {
						want = c.all
					}
					for _, followed := range []bool{false, true} {
						only := map[trace.FlowKey]struct{}{}
						for i := range 40 { // others
							only[trace.FlowKey{Src: at(0, uint16(1000+i)), Dst: server}] = struct{}{}
						}
						if followed {
							for _, port := range []uint16{443, 53} {
								only[trace.FlowKey{Src: client, Dst: at(1, port)}] = struct{}{}
							}
						}
						cfg := Config{UDP: true, Names: names}
						run := vmOf(t, program(cfg, nil, fewOf(only, true)))
						whole := machine(t, cfg)(f, c.ip)
						if got := vmOf(t, program(cfg, nil, fewOf(only, false)))(f, c.ip); (got > 0) != (want || followed || c.ip[hdrProto(c.ip)] == protoUDP) {
							t.Errorf("%s from %s, all of UDP: keeps %d bytes", name, addrs[0], got)
						}
						if got := run(f, c.ip); (got > 0) != (want || followed) || got > 0 && got != whole {
							t.Errorf("%s from %s, names %t, followed %t, link %d: keeps %d bytes, all in all %d",
								name, addrs[0], names, followed, hatype, got, whole)
						}
					}
				}
			}
		}
	}
}

// The filter computes a flow's key as fewKey does, finds each of as many as there may be, and
// nearly no other.
func TestFewKeys(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	flow := func() trace.FlowKey {
		addr := func(v6 bool) netip.AddrPort {
			a := netip.AddrFrom4([4]byte{10, byte(rnd.IntN(256)), byte(rnd.IntN(4)), byte(rnd.IntN(4))})
			if v6 {
				b := [16]byte{0: 0xfd, 15: byte(rnd.IntN(4))}
				binary.BigEndian.PutUint32(b[4:], rnd.Uint32())
				a = netip.AddrFrom16(b)
			}
			return netip.AddrPortFrom(a, uint16(1024+rnd.IntN(60000)))
		}
		v6 := rnd.IntN(2) == 0
		return trace.FlowKey{Src: addr(v6), Dst: addr(v6)}
	}
	for _, n := range []int{0, 1, 4, 5, 9, 100, maxFew} {
		only := map[trace.FlowKey]struct{}{}
		for range n {
			only[flow()] = struct{}{}
		}
		p := program(Config{UDP: true, Names: true}, nil, fewOf(only, true))
		run := vmOf(t, p)
		passes := func(k trace.FlowKey) bool {
			f := facts{proto: 0x0800, hatype: 1}
			if k.Src.Addr().Is6() {
				f.proto = 0x86dd
			}
			a, b := run(f, segment(k.Src, k.Dst, 0x10, 0, "")), run(f, segment(k.Dst, k.Src, 0x10, 0, ""))
			if a > 0 != (b > 0) {
				t.Fatalf("%v passes one way", k)
			}
			return a > 0
		}
		for k := range only {
			if !passes(k) {
				t.Fatalf("of %d flows %v does not pass", n, k)
			}
		}
		wrong := 0
		for range 2000 {
			if k := flow(); passes(k) {
				wrong++
			}
		}
		if wrong > 1 {
			t.Errorf("of 2000 flows that are none of %d, %d pass", n, wrong)
		}
		t.Logf("%d flows: %d instructions", n, len(p))
	}
}
