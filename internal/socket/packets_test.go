package socket

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/errqueue"
	"servicetraceroute/internal/wire"
)

var flows = []flow{
	{netip.MustParseAddrPort("192.0.2.1:4000"), netip.MustParseAddrPort("203.0.113.7:443"), 2},
	{netip.MustParseAddrPort("[2001:db8::1]:4000"), netip.MustParseAddrPort("[2001:db8::7]:443"), 2},
}

// expired is a Time Exceeded of the flow's family, from its first router.
func (f flow) expired() errqueue.Error {
	if f.local.Addr().Is4() {
		return errqueue.Error{Kind: wire.TimeExceeded, Type: 11, From: netip.MustParseAddr("198.51.100.1"), TTL: 63, At: time.Unix(9, 0)}
	}
	return errqueue.Error{Kind: wire.TimeExceeded, Type: 3, From: netip.MustParseAddr("2001:db8:1::1"), TTL: 63, At: time.Unix(9, 0)}
}

// An ICMP error is shown as from its maker, quoting the flow's ends and of the payload what
// a probe has; what follows the quote, if a router appended it, as extensions.
func TestComplaint(t *testing.T) {
	const probe = "\x05abcdefgh"
	labels := []byte{0x20, 0, 0, 0, 0, 8, 1, 1, 0x03, 0xe8, 0x11, 0x40}
	sum := uint32(0)
	for i := 0; i < len(labels); i += 2 {
		sum += uint32(labels[i])<<8 | uint32(labels[i+1])
	}
	sum = ^(sum&0xffff + sum>>16)
	labels[2], labels[3] = byte(sum>>8), byte(sum)
	for _, f := range flows {
		head := 28
		if f.local.Addr().Is6() {
			head = 48
		}
		padded := append(append([]byte(probe), make([]byte, leastQuote-head-len(probe))...), labels...)
		for _, test := range []struct {
			name   string
			quoted []byte
			quotes string
			mpls   bool
		}{
			{"a probe", []byte(probe), probe, false}, {"padded", padded, probe, true}, {"too short", []byte(probe)[:4], probe[:4], false},
			{"none of it", nil, "", false},
		} {
			p := f.complaint(f.expired(), test.quoted, len(probe))
			var ip wire.Packet
			var m wire.ICMP
			var q wire.Quote
			if err := ip.Decode(p.Data, p.Len); err != nil {
				t.Fatal(err)
			}
			if err := m.Decode(ip.Version, ip.Transport); err != nil {
				t.Fatal(err)
			}
			if err := q.Decode(m.Quote); err != nil {
				t.Fatal(err)
			}
			if ip.Src != f.expired().From || ip.TTL != 63 || m.Kind != wire.TimeExceeded || p.Direction != capture.Incoming || !p.Time.Equal(time.Unix(9, 0)) {
				t.Errorf("%s: %+v, %+v", test.name, ip, m)
			}
			if netip.AddrPortFrom(q.Src, q.SrcPort) != f.local || netip.AddrPortFrom(q.Dst, q.DstPort) != f.remote ||
				string(q.UDPHead[:q.UDPHeadLen]) != test.quotes || int(q.UDPLen) != 8+len(test.quotes) {
				t.Errorf("%s: %+v", test.name, q)
			}
			if got := wire.AppendMPLS(nil, m.Extensions); (len(got) == 1) != test.mpls || test.mpls && (got[0].Label != 16001 || got[0].TTL != 0x40) {
				t.Errorf("%s: %+v", test.name, got)
			}
		}
	}
}

// Whatever a router quotes, the packet that is shown can be decoded.
func FuzzComplaint(f *testing.F) {
	f.Add([]byte("\x05abcdefgh"), 9, true)
	f.Add(make([]byte, 200), 9, false)
	f.Fuzz(func(t *testing.T, quoted []byte, probeLen int, v6 bool) {
		fl := flows[0]
		if v6 {
			fl = flows[1]
		}
		if probeLen < 0 || probeLen > 20 || len(quoted) > maxDatagram {
			return
		}
		p := fl.complaint(fl.expired(), quoted, probeLen)
		var ip wire.Packet
		if err := ip.Decode(p.Data, p.Len); err != nil {
			t.Fatal(err)
		}
		var m wire.ICMP
		if err := m.Decode(ip.Version, ip.Transport); err != nil {
			t.Fatal(err)
		}
		var q wire.Quote
		if err := q.Decode(m.Quote); err != nil {
			t.Fatal(err)
		}
	})
}

// What nobody reads does not grow without bound, and is counted.
func TestQueueBounded(t *testing.T) {
	q := newQueue()
	for range maxQueued + 3 {
		q.put(capture.Packet{})
	}
	if n, s := len(q.take()), q.counted(); n != maxQueued || s.Seen != maxQueued+3 || s.Dropped != 3 {
		t.Errorf("%d, %+v", n, s)
	}
}

func TestDeadline(t *testing.T) {
	var d deadline
	if isClosed(d.passed()) {
		t.Error("no deadline has passed")
	}
	waiting := d.passed()
	d.set(time.Now().Add(time.Hour))
	d.set(time.Now().Add(time.Millisecond))
	<-waiting
	d.set(time.Now().Add(time.Hour))
	if isClosed(d.passed()) {
		t.Error("it was moved ahead")
	}
	d.set(time.Unix(1, 0))
	if !isClosed(d.passed()) {
		t.Error("it has passed")
	}
	d.set(time.Time{})
	if isClosed(d.passed()) {
		t.Error("there is none any more")
	}
}
