package engine

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	quicgo "github.com/quic-go/quic-go"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// domains are names, each with all below.
type domains []string

func (s domains) Match(name string) (string, bool) {
	for _, d := range s {
		if name == d || strings.HasSuffix(name, "."+d) {
			return d, true
		}
	}
	return "", false
}

// clientHello is what crypto/tls says first.
func clientHello(t testing.TB, name string) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	go func() { _ = tls.Client(ours, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake() }()
	b := make([]byte, 8192)
	n, err := theirs.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// namedRig selects by name alone.
func namedRig(t *testing.T, domain ...string) *rig {
	r := newRig(t, false, 4)
	r.w.Selector = service.Selector{Domains: domains(domain)}
	return r
}

// say is a segment with these bytes.
func (r *rig) say(data []byte) {
	r.tsval++
	seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: r.me, Dst: r.peer, TTL: 64, ID: uint16(r.tsval), Seq: r.seq, Ack: r.ack, Flags: wire.ACK | wire.PSH, Window: r.window,
		Timestamp: true, TSVal: r.tsval, TSEcr: r.ts2,
	}, Payload: data}
	r.seq += uint32(len(data))
	p := r.captured(seg.AppendTo(nil), capture.Outgoing)
	r.step(&p)
}

// asked plays a DNS question for a name and its answer, the peer's address.
func (r *rig) asked(t *testing.T, name string) {
	t.Helper()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	a := new(dns.Msg).SetReply(q)
	a.Answer = append(a.Answer, &dns.A{
		Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: r.peer.Addr().AsSlice(),
	})
	client, server := netip.AddrPortFrom(r.me.Addr(), 5555), netip.MustParseAddrPort("192.0.2.53:53")
	for _, m := range []struct {
		msg      *dns.Msg
		src, dst netip.AddrPort
		d        capture.Direction
	}{{q, client, server, capture.Outgoing}, {a, server, client, capture.Incoming}} {
		b, err := m.msg.Pack()
		if err != nil {
			t.Fatal(err)
		}
		u := wire.UDPProbe{Src: m.src, Dst: m.dst, TTL: 64, Payload: b}
		p := r.captured(u.AppendTo(nil), m.d)
		r.step(&p)
	}
}

// A question over TCP, as after a truncated answer; both sides come in two segments.
func TestWordsByDNSOverTCP(t *testing.T) {
	r := namedRig(t, "video.example")
	web := r.peer
	q := new(dns.Msg).SetQuestion("www.video.example.", dns.TypeA)
	a := new(dns.Msg).SetReply(q)
	a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: "www.video.example.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: web.Addr().AsSlice()})
	framed := func(m *dns.Msg) []byte {
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{byte(len(b) >> 8), byte(len(b))}, b...)
	}
	r.peer = netip.MustParseAddrPort("192.0.2.53:53")
	r.handshake()
	b := framed(q)
	r.say(b[:1])
	r.say(b[1:])
	for _, part := range [][]byte{framed(a)[:20], framed(a)[20:]} {
		seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{Src: r.peer, Dst: r.me, TTL: 60, Seq: r.ack, Ack: r.seq, Flags: wire.ACK, Window: 501}, Payload: part}
		r.ack += uint32(len(part))
		p := r.captured(seg.AppendTo(nil), capture.Incoming)
		r.step(&p)
	}
	r.out(segment{flags: wire.FIN | wire.ACK})
	if n := r.e.stats.Services.DNS; n != 1 || r.e.listening != 0 {
		t.Fatalf("%d answers were read, %d connections still are", n, r.e.listening)
	}
	r.peer, r.me = web, netip.AddrPortFrom(r.me.Addr(), 40001)
	r.handshake()
	r.after(600 * time.Millisecond)
	if flows, _ := r.told(); len(flows) != 1 || flows[0].Service.By != trace.ByDNS || flows[0].Service.Value != "www.video.example" {
		t.Errorf("%+v", flows)
	}
}

// The same with a resolver of this host, each packet of which is captured as it comes in.
func TestWordsByDNSOverTCPToItself(t *testing.T) {
	r := namedRig(t, "video.example")
	q := new(dns.Msg).SetQuestion("www.video.example.", dns.TypeA)
	a := new(dns.Msg).SetReply(q)
	a.Answer = append(a.Answer, &dns.A{Hdr: dns.RR_Header{Name: "www.video.example.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: r.peer.Addr().AsSlice()})
	client, server := netip.MustParseAddrPort("127.0.0.1:40000"), netip.MustParseAddrPort("127.0.0.53:53")
	next := map[netip.AddrPort]uint32{client: 1000, server: 5000}
	segment := func(src, dst netip.AddrPort, flags wire.TCPFlags, m *dns.Msg) {
		seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{Src: src, Dst: dst, TTL: 64, Seq: next[src], Ack: next[dst], Flags: flags, Window: 501}}
		if m != nil {
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			seg.Payload = append([]byte{byte(len(b) >> 8), byte(len(b))}, b...)
		}
		if next[src] += uint32(len(seg.Payload)); flags&(wire.SYN|wire.FIN) != 0 {
			next[src]++
		}
		p := r.captured(seg.AppendTo(nil), capture.Incoming)
		r.step(&p)
	}
	segment(client, server, wire.SYN, nil)
	segment(server, client, wire.SYN|wire.ACK, nil)
	segment(client, server, wire.ACK, nil)
	segment(client, server, wire.ACK|wire.PSH, q)
	segment(server, client, wire.ACK|wire.PSH, a)
	segment(client, server, wire.ACK|wire.FIN, nil)
	segment(server, client, wire.ACK|wire.FIN, nil)
	segment(client, server, wire.ACK, nil)
	if n := r.e.stats.Services.DNS; n != 1 || r.e.listening != 0 {
		t.Fatalf("%d answers were read, %d connections still are", n, r.e.listening)
	}
	r.handshake()
	r.after(600 * time.Millisecond)
	if flows, _ := r.told(); len(flows) != 1 || flows[0].Service.By != trace.ByDNS {
		t.Errorf("%+v", flows)
	}
}

// fastOpen is a SYN that carries data (TCP Fast Open), from this end or the peer.
func (r *rig) fastOpen(outgoing bool, data []byte) {
	seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: r.me, Dst: r.peer, TTL: 64, Seq: r.seq, Flags: wire.SYN, Window: r.window,
	}, Options: synOptions, Payload: data}
	d := capture.Outgoing
	if !outgoing {
		seg.Src, seg.Dst, seg.TTL, seg.Seq, d = r.peer, r.me, r.ttl, r.ack, capture.Incoming
		r.ack += 1 + uint32(len(data))
	} else {
		r.seq += 1 + uint32(len(data))
	}
	p := r.captured(seg.AppendTo(nil), d)
	r.step(&p)
}

// The first words may come with the SYN.
func TestWordsInSYN(t *testing.T) {
	for _, whole := range []bool{true, false} {
		r := namedRig(t, "video.example")
		hello, cut := clientHello(t, "www.video.example"), 0
		if !whole {
			cut = 100
		}
		r.fastOpen(true, hello[:len(hello)-cut])
		r.now = r.now.Add(rtt)
		r.in(segment{flags: wire.SYN | wire.ACK, options: synOptions})
		r.out(segment{flags: wire.ACK})
		if !whole {
			r.say(hello[len(hello)-cut:])
		}
		if flows, _ := r.told(); len(flows) != 1 || flows[0].Service.By != trace.BySNI || flows[0].Service.Value != "www.video.example" {
			t.Errorf("whole %t: %+v", whole, flows)
		}
	}
	// Those to a server are not kept; nobody waits for them.
	r := namedRig(t, "video.example")
	r.fastOpen(false, clientHello(t, "www.video.example"))
	r.out(segment{flags: wire.SYN | wire.ACK, options: synOptions})
	r.in(segment{flags: wire.ACK})
	if a := attached(r.flow()); a.words == nil || a.words.said.Awaited || r.e.accepted != 0 {
		t.Errorf("%+v", a)
	}
}

// hiding adds an extension with an encrypted hello to a hello.
func hiding(b []byte) []byte {
	grow := func(at, size, by int) {
		for i := at + size - 1; by > 0; i-- {
			by += int(b[i])
			b[i], by = byte(by), by>>8
		}
	}
	ext := []byte{0xfe, 0x0d, 0, 3, 0, 0, 1}
	at := 5 + 4 + 2 + 32
	at += 1 + int(b[at])
	at += 2 + int(b[at])<<8 + int(b[at+1])
	at += 1 + int(b[at])
	grow(3, 2, len(ext))
	grow(6, 3, len(ext))
	grow(at, 2, len(ext))
	return append(b, ext...)
}

// An encrypted hello is told: the name may be another.
func TestWordsHideOthers(t *testing.T) {
	for _, ech := range []bool{false, true} {
		r := namedRig(t, "video.example")
		r.handshake()
		b := clientHello(t, "www.video.example")
		if ech {
			b = hiding(b)
		}
		r.say(b)
		if flows, _ := r.told(); len(flows) != 1 || flows[0].Service.Value != "www.video.example" || flows[0].Service.ECH != ech {
			t.Errorf("%+v", flows)
		}
	}
}

// What is not read of names is counted.
func TestWordsLost(t *testing.T) {
	r := namedRig(t, "video.example")
	r.handshake()
	b := clientHello(t, "www.video.example")
	seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{Src: r.me, Dst: r.peer, TTL: 64, Seq: r.seq, Ack: r.ack, Flags: wire.ACK, Window: r.window}, Payload: b}
	p := r.captured(seg.AppendTo(nil), capture.Outgoing)
	p.Data = p.Data[:len(p.Data)-100] // not captured whole
	r.step(&p)
	u := udpRig{r}
	u.me = netip.MustParseAddrPort("192.0.2.1:40002")
	junk := make([]byte, 1200)
	copy(junk, []byte{0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0})
	u.send(true, junk)
	server := netip.MustParseAddrPort("192.0.2.53:53")
	malformed := wire.UDPProbe{Src: server, Dst: u.me, TTL: 64, Payload: []byte{1, 2, 3}}
	p = r.captured(malformed.AppendTo(nil), capture.Incoming)
	r.step(&p)
	if s := r.e.Stats(r.now).Services; s.Cut != 1 || s.Malformed != 2 || s.Limited+s.Forgotten+s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
	for i := range 20000 { // more than the allowance
		u.me = netip.AddrPortFrom(u.me.Addr(), uint16(1024+i))
		u.send(true, junk)
	}
	if s := r.e.Stats(r.now).Services; s.Limited == 0 {
		t.Errorf("%+v", s)
	}
}

// The next connection of the same addresses and ports may want another name.
func TestWordsOfNextConnection(t *testing.T) {
	r := namedRig(t, "video.example")
	r.w.Every = time.Millisecond
	for i, name := range []string{"www.video.example", "other.example", "www.video.example"} {
		r.handshake()
		r.say(clientHello(t, name))
		r.now = r.now.Add(rtt)
		r.in(segment{flags: wire.ACK | wire.PSH, data: 300})
		r.after(time.Second)
		r.out(segment{flags: wire.ACK | wire.FIN})
		r.in(segment{flags: wire.ACK | wire.FIN})
		r.out(segment{flags: wire.ACK})
		flows, traces := r.told()
		if want := (i + 1) % 2; len(flows) != want || len(traces) != want {
			t.Errorf("connection %d, %s: %d flows, %d traces", i, name, len(flows), len(traces))
		}
		r.seq, r.ack = r.seq+1<<20, r.ack+1<<20
		r.after(time.Minute)
	}
}

func (r *rig) told() (flows []*trace.Flow, traces []*trace.Trace) {
	for _, rec := range r.e.Records() {
		switch ev := rec.Event.(type) {
		case *trace.Flow:
			flows = append(flows, ev)
		case *trace.Trace:
			traces = append(traces, ev)
		}
	}
	return flows, traces
}

// A flow is selected by what its client says first; else by DNS, if that is clear.
func TestWords(t *testing.T) {
	for name, test := range map[string]struct {
		play  func(r *rig)
		by    trace.By // 0: not selected
		value string
		state trace.FlowState
	}{
		"TLS":              {func(r *rig) { r.handshake(); r.say(clientHello(t, "www.video.example")) }, trace.BySNI, "www.video.example", trace.FlowMatched},
		"TLS, another one": {func(r *rig) { r.handshake(); r.say(clientHello(t, "bank.example")) }, 0, "", 0},
		"TLS in pieces": {func(r *rig) {
			r.handshake()
			h := clientHello(t, "www.video.example")
			r.say(h[:100])
			r.say(h[100:1000])
			r.say(h[1000:])
		}, trace.BySNI, "www.video.example", trace.FlowMatched},
		"HTTP":                   {func(r *rig) { r.handshake(); r.say([]byte("GET / HTTP/1.1\r\nHost: video.example:80\r\n\r\n")) }, trace.ByHTTPHost, "video.example", trace.FlowMatched},
		"SSH, asked for":         {func(r *rig) { r.asked(t, "git.video.example"); r.handshake(); r.say([]byte("SSH-2.0-x\r\n")) }, trace.ByDNS, "git.video.example", trace.FlowMatched},
		"nothing, asked for":     {func(r *rig) { r.asked(t, "git.video.example"); r.handshake(); r.after(600 * time.Millisecond) }, trace.ByDNS, "git.video.example", trace.FlowMatched},
		"nothing yet":            {func(r *rig) { r.asked(t, "git.video.example"); r.handshake(); r.after(300 * time.Millisecond) }, 0, "", 0},
		"TLS, asked for another": {func(r *rig) { r.asked(t, "bank.example"); r.handshake(); r.say(clientHello(t, "video.example")) }, trace.BySNI, "video.example", trace.FlowMatched},
		"unclear": {func(r *rig) {
			r.asked(t, "bank.example")
			r.asked(t, "video.example")
			r.handshake()
			r.after(600 * time.Millisecond)
		}, 0, "", trace.FlowIgnored},
		"unclear, then said": {func(r *rig) {
			r.asked(t, "bank.example")
			r.asked(t, "video.example")
			r.handshake()
			r.say(clientHello(t, "video.example"))
		}, trace.BySNI, "video.example", trace.FlowMatched},
		"joined late": {func(r *rig) { r.asked(t, "video.example"); r.exchange(); r.exchange() }, trace.ByDNS, "video.example", trace.FlowMatched},
	} {
		t.Run(name, func(t *testing.T) {
			r := namedRig(t, "video.example")
			test.play(r)
			r.in(segment{flags: wire.ACK}) // makes room for a probe
			r.after(20 * time.Millisecond)
			flows, _ := r.told()
			var by trace.By
			var value string
			var state trace.FlowState
			if len(flows) > 1 {
				t.Errorf("%d flow records", len(flows))
			}
			for _, f := range flows {
				state = f.State
				if f.Service != nil {
					by, value = f.Service.By, f.Service.Value
				}
				if f.State == trace.FlowIgnored && f.Reason != trace.ReasonAmbiguous {
					t.Errorf("ignored: %v", f.Reason)
				}
			}
			if by != test.by || value != test.value || state != test.state || (len(r.probes) > 0) != (test.by != 0) {
				t.Errorf("%v by %v %q, %d probes", state, by, value, len(r.probes))
			}
		})
	}
}

// A connection that follows with the same ports is judged by its own words.
func TestWordsOfTheNextConnection(t *testing.T) {
	r := namedRig(t, "video.example")
	r.handshake()
	r.say(clientHello(t, "bank.example"))
	r.out(segment{flags: wire.RST})
	r.seq += 100_000
	r.handshake()
	r.say(clientHello(t, "video.example"))
	if flows, _ := r.told(); len(flows) != 1 || flows[0].Service.Value != "video.example" {
		t.Errorf("%+v", flows)
	}
	if r.e.listening != 0 || len(r.e.expected) > 2 {
		t.Errorf("%d streams are still read", r.e.listening)
	}
}

// What is not asked for here names nothing.
func TestWordsNoDNS(t *testing.T) {
	r := newRigOf(t, false, 4, Config{NoDNS: true}, netip.MustParseAddrPort("203.0.113.7:443"))
	r.w.Selector = service.Selector{Domains: domains{"video.example"}}
	r.asked(t, "video.example")
	r.handshake()
	r.after(600 * time.Millisecond)
	if len(r.probes) > 0 {
		t.Error("a DNS answer counted")
	}
}

// wireTap is a packet connection that keeps what is written and hears nothing.
type wireTap struct {
	net.PacketConn
	sent chan []byte
	stop chan struct{}
}

func (w *wireTap) WriteTo(b []byte, _ net.Addr) (int, error) {
	select {
	case w.sent <- append([]byte(nil), b...):
	default:
	}
	return len(b), nil
}

func (w *wireTap) ReadFrom([]byte) (int, net.Addr, error) {
	<-w.stop
	return 0, nil, net.ErrClosed
}

func (w *wireTap) LocalAddr() net.Addr              { return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 40000} }
func (w *wireTap) Close() error                     { return nil }
func (w *wireTap) SetDeadline(time.Time) error      { return nil }
func (w *wireTap) SetReadDeadline(time.Time) error  { return nil }
func (w *wireTap) SetWriteDeadline(time.Time) error { return nil }

// initials are the first datagrams of a real QUIC client: its hello takes two.
func initials(t *testing.T, name string) [][]byte {
	t.Helper()
	w := &wireTap{sent: make(chan []byte, 16), stop: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = quicgo.Dial(ctx, w, &net.UDPAddr{IP: net.IPv4(203, 0, 113, 7), Port: 443}, &tls.Config{ServerName: name, NextProtos: []string{"h3"}}, nil)
	}()
	var all [][]byte
	for len(all) < 2 {
		all = append(all, <-w.sent)
	}
	cancel()
	close(w.stop)
	<-done
	return all
}

func TestWordsOfQUIC(t *testing.T) {
	for name, test := range map[string]struct {
		name string
		by   trace.By
	}{"wanted": {"www.video.example", trace.ByQUICSNI}, "another": {"bank.example", 0}} {
		t.Run(name, func(t *testing.T) {
			r := udpRig{namedRig(t, "video.example")}
			for _, b := range initials(t, test.name) {
				r.send(true, b)
			}
			r.now = r.now.Add(rtt)
			r.send(false, make([]byte, 1200))
			r.talk(2, 60, 1200)
			r.hears(false)
			flows, _ := r.told()
			var by trace.By
			for _, f := range flows {
				by = f.Service.By
			}
			if by != test.by || (len(r.probes) > 0) != (by != 0) || r.e.listening != 0 {
				t.Errorf("by %v, %d probes, %d still read: %+v", by, len(r.probes), r.e.listening, r.e.quic.Stats())
			}
		})
	}
}

// One flow may hold several QUIC connections, and is the service's that one of them names. No
// packet of a connection whose hello was read counts as the beginning of another.
func TestWordsOfAnotherQUIC(t *testing.T) {
	const server = "\x08serverid"
	header := func(first byte, dcid, scid string) []byte {
		b := make([]byte, 1200)
		copy(b, string([]byte{first, 0, 0, 0, 1})+dcid+scid+"\x00\x44\x00") // no token, 1024 bytes
		return b
	}
	for _, accepted := range []bool{false, true} {
		r := udpRig{namedRig(t, "video.example")}
		if accepted {
			r = udpRig{serverRig(t)}
		}
		client := !accepted
		connect := func(name string) {
			for _, b := range initials(t, name) {
				r.send(client, b)
			}
			r.send(!client, header(0xc0, "\x00", server))
			r.now = r.now.Add(rtt)
			r.send(client, header(0xc0, server, "\x00")) // acknowledges that
		}
		connect("bank.example")
		if s := r.e.quic.Stats(); s.Done != 1 || s.Failed+s.Limited != 0 || r.e.listening+r.e.accepted != 0 {
			t.Fatalf("%+v, %d are read", s, r.e.listening+r.e.accepted)
		}
		r.after(time.Second)
		r.send(client, header(0xc0, "\x08whatever", "\x00")) // is none
		r.after(time.Second)
		if flows, _ := r.told(); len(flows) != 0 || r.e.listening+r.e.accepted != 0 {
			t.Fatalf("%+v, %d are read", flows, r.e.listening+r.e.accepted)
		}
		connect("www.video.example")
		r.talk(2, 60, 1200)
		r.hears(false)
		flows, _ := r.told()
		if len(flows) != 1 || flows[0].Service.By != trace.ByQUICSNI || flows[0].Service.Value != "www.video.example" || len(r.probes) == 0 || r.e.listening+r.e.accepted != 0 {
			t.Errorf("%+v, %d probes, %d are read", flows, len(r.probes), r.e.listening+r.e.accepted)
		}
		connect("bank.example")
		if s := r.e.quic.Stats(); s.Done != 2 {
			t.Errorf("%d hellos were read, though the flow is somebody's", s.Done)
		}
	}
}

// tells is a segment of the peer with these bytes, so far ahead of what is expected.
func (r *rig) tells(data []byte, ahead int) {
	r.ts2++
	seg := wire.TCPSegment{TCPProbe: wire.TCPProbe{
		Src: r.peer, Dst: r.me, TTL: r.ttl, Seq: r.ack + uint32(ahead), Ack: r.seq, Flags: wire.ACK | wire.PSH, Window: 501,
		Timestamp: true, TSVal: r.ts2, TSEcr: r.tsval,
	}, Payload: data}
	if ahead == 0 {
		r.ack += uint32(len(data))
	}
	p := r.captured(seg.AppendTo(nil), capture.Incoming)
	r.step(&p)
}

// serverRig is a rig whose own end is the server.
func serverRig(t *testing.T) *rig {
	r := newRigOf(t, false, 4, Config{}, netip.MustParseAddrPort("203.0.113.7:50000"))
	r.me = netip.MustParseAddrPort("192.0.2.1:443")
	r.w.Selector = service.Selector{Domains: domains{"video.example"}, Directions: []trace.Direction{trace.In}}
	return r
}

// Of an accepted flow the peer's first words count, and what its address is called.
func TestWordsOfAccepted(t *testing.T) {
	wanted, other := clientHello(t, "www.video.example"), clientHello(t, "bank.example")
	for name, test := range map[string]struct {
		play  func(r *rig)
		by    trace.By // 0: not selected
		value string
	}{
		"TLS":              {func(r *rig) { r.tells(wanted, 0) }, trace.BySNI, "www.video.example"},
		"TLS, another one": {func(r *rig) { r.tells(other, 0) }, 0, ""},
		"TLS in pieces, out of order": {func(r *rig) {
			r.tells(wanted[100:], 100)
			r.tells(wanted[:100], 0)
			r.ack += uint32(len(wanted) - 100)
		}, trace.BySNI, "www.video.example"},
		"HTTP":                           {func(r *rig) { r.tells([]byte("GET / HTTP/1.1\r\nHost: video.example\r\n\r\n"), 0) }, trace.ByHTTPHost, "video.example"},
		"only this end speaks":           {func(r *rig) { r.say(wanted); r.after(600 * time.Millisecond) }, 0, ""},
		"the peer's name":                {func(r *rig) { r.asked(t, "cam.video.example"); r.after(600 * time.Millisecond) }, trace.ByDNS, "cam.video.example"},
		"the peer's name, and its words": {func(r *rig) { r.asked(t, "cam.video.example"); r.tells(other, 0) }, trace.ByDNS, "cam.video.example"},
		"nothing yet":                    {func(r *rig) { r.asked(t, "cam.video.example"); r.after(300 * time.Millisecond) }, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := serverRig(t)
			r.accepts()
			test.play(r)
			r.out(segment{flags: wire.ACK | wire.PSH, data: 100})
			r.in(segment{flags: wire.ACK})
			r.after(20 * time.Millisecond)
			flows, _ := r.told()
			var by trace.By
			var value string
			for _, f := range flows {
				by, value = f.Service.By, f.Service.Value
				if f.Direction != trace.In {
					t.Errorf("%v", f.Tuple)
				}
			}
			if by != test.by || value != test.value || (len(r.probes) > 0) != (test.by != 0) {
				t.Errorf("by %v %q, %d probes", by, value, len(r.probes))
			}
			if n := r.e.accepted; n != 0 && name != "nothing yet" || r.e.listening != 0 {
				t.Errorf("%d and %d are still read", n, r.e.listening)
			}
		})
	}
}

// A flood of SYNs, or of connections that say nothing, takes no room from the flows that
// this host opens.
func TestWordsOfAFlood(t *testing.T) {
	r := namedRig(t, "video.example")
	me, peer := r.me, r.peer
	for i := range 2 * maxWords {
		r.me, r.peer = netip.AddrPortFrom(me.Addr(), 443), netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 50000)
		r.in(segment{flags: wire.SYN, options: synOptions})
		if r.e.accepted > i/2 {
			t.Fatalf("%d are read after %d SYNs", r.e.accepted, i)
		}
		if i%2 == 0 {
			continue
		}
		r.out(segment{flags: wire.SYN | wire.ACK, options: synOptions})
		r.in(segment{flags: wire.ACK})
	}
	if r.e.accepted != maxWords {
		t.Errorf("%d are read", r.e.accepted)
	}
	r.me, r.peer = me, peer
	r.handshake()
	r.say(clientHello(t, "video.example"))
	if flows, _ := r.told(); len(flows) != 1 || flows[0].Service.By != trace.BySNI {
		t.Errorf("%+v", flows)
	}
	r.after(time.Second)
	if r.e.accepted != 0 || r.e.stats.Services.Dropped != 0 {
		t.Errorf("%d are still read, %d were not", r.e.accepted, r.e.stats.Services.Dropped)
	}
}

func TestWordsOfAcceptedQUIC(t *testing.T) {
	for name, test := range map[string]struct {
		name string
		by   trace.By
	}{"wanted": {"www.video.example", trace.ByQUICSNI}, "another": {"bank.example", 0}} {
		t.Run(name, func(t *testing.T) {
			r := udpRig{serverRig(t)}
			for _, b := range initials(t, test.name) {
				r.send(false, b)
			}
			r.send(true, make([]byte, 1200))
			r.now = r.now.Add(rtt)
			r.send(false, make([]byte, 60))
			r.send(true, make([]byte, 60))
			r.now = r.now.Add(rtt)
			r.send(false, make([]byte, 60))
			r.hears(false)
			flows, _ := r.told()
			var by trace.By
			for _, f := range flows {
				by = f.Service.By
			}
			if by != test.by || (len(r.probes) > 0) != (by != 0) || r.e.accepted != 0 || r.e.listening != 0 {
				t.Errorf("by %v, %d probes, %d still read: %+v", by, len(r.probes), r.e.accepted, r.e.quic.Stats())
			}
		})
	}
}
