package engine

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/hello"
	"servicetraceroute/internal/names"
	"servicetraceroute/internal/quic"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/stream"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

const (
	// wordsWait is how long the first words of a client are waited for once its flow
	// stands; some servers speak first.
	wordsWait = 500 * time.Millisecond
	// heardEvery is the least time between two looks at who said nothing.
	heardEvery = 20 * time.Millisecond
	// maxWords bounds the flows whose first words are being put together, once those that
	// this host opened and once those that it accepted, which anybody can begin: each
	// holds hello.MaxStream at most, and most none.
	maxWords = 4096
	// maxExpected bounds those of whose words the time has not come, though they are gone.
	maxExpected = 4 * maxWords

	portDNS = 53
)

// words are what is known of a client's first words.
type words struct {
	byPeer bool           // the peer is the client
	start  uint32         // of an accepted TCP flow: the sequence number of its first byte
	stream *stream.Stream // of a TCP flow; nil: nothing is read
	quic   *quic.Conn     // of a UDP flow; nil: nothing is read
	said   service.Words
	until  time.Time // said is awaited no longer than that; zero: the flow does not stand yet
	// Of QUIC: origin waits for the id of its connection (nil: not), checks tells that the
	// flow may be one in which a connection goes on.
	origin *origin
	checks bool
	ids    *ids // of QUIC; nil: none is known
}

// listens reports whether something is yet to come of a flow's first words.
func (a *attachment) listens() bool {
	w := a.words
	return w != nil && (w.said.Awaited || w.stream != nil || w.quic != nil || w.checks)
}

// listen begins to read the first words of a connection whose SYN leaves.
func (e *Engine) listen(a *attachment, seq uint32) {
	if !e.mayListen(false) {
		return
	}
	w := &words{stream: stream.New(hello.MaxStream)}
	w.stream.Start(seq + 1)
	w.said.Awaited = true
	a.words = w
}

// accept begins to read those of a connection that this host accepted, now that it stands:
// a flood of SYNs takes no memory for words.
func (e *Engine) accept(a *attachment) {
	if !e.mayListen(true) {
		e.silent(a)
		return
	}
	w := a.words
	w.stream = stream.New(hello.MaxStream)
	w.stream.Start(w.start)
}

// attend reads what the client of a connection says first.
func (e *Engine) attend(p *capture.Packet, f *flow.Flow, o *flow.Observation) {
	a, _ := f.Attachment.(*attachment)
	if o.FirstSYN {
		a = attached(f)
		a.epoch = 0
		e.deaf(a)
		a.words = nil
		switch {
		case e.tcp.DstPort == portDNS && (o.Outgoing || e.toItself()):
			e.listenDNS(a, e.tcp.Seq)
		case o.Outgoing:
			e.listen(a, e.tcp.Seq)
		case e.tcp.PayloadLen > 0:
			// TCP Fast Open (RFC 7413): what is in a SYN is not kept, so the words lack it.
			a.words = &words{byPeer: true}
		default:
			a.words = &words{byPeer: true, start: e.tcp.Seq + 1}
			a.words.said.Awaited = true
		}
	}
	if p.Brief && e.tcp.PayloadLen > 0 && o.Outgoing == (f.Direction != trace.In) {
		a = e.overhear(p, f)
	}
	if d := e.dnsOf(f, a); d != nil {
		e.resolveTCP(p, f, d)
	}
	if a != nil && a.words != nil && a.words.byPeer && a.words.stream == nil && a.words.said.Awaited && f.TCP.Established {
		e.accept(a)
	}
	if a == nil || a.words == nil || a.words.stream == nil {
		return
	}
	w := a.words
	if w.until.IsZero() && f.TCP.Established {
		w.until = p.Time.Add(wordsWait)
		e.expected = append(e.expected, expectation{f, w})
	}
	if o.Outgoing != w.byPeer && !o.Outside && e.tcp.PayloadLen > 0 {
		e.hear(a, &e.tcp)
	}
}

// deaf ends the reading of a flow's first words.
func (e *Engine) deaf(a *attachment) {
	if a.dns != nil {
		a.dns = nil
		e.listening--
	}
	if w := a.words; w != nil && (w.stream != nil || w.quic != nil) {
		if w.quic != nil {
			w.quic.Close()
		}
		w.stream, w.quic = nil, nil
		*e.listeners(w.byPeer)--
	}
}

// attendUDP reads the hello in a QUIC flow, whichever end is the client.
func (e *Engine) attendUDP(p *capture.Packet, f *flow.Flow) {
	a, _ := f.Attachment.(*attachment)
	fromClient := (p.Direction == capture.Outgoing) == (f.Direction != trace.In)
	if a == nil && f.UDP.PacketsIn+f.UDP.PacketsOut > 1 && !f.UDP.QUIC {
		return // nobody's, and it says nothing
	}
	a = attached(f)
	if a.words == nil {
		a.words = &words{byPeer: f.Direction == trace.In}
		// Not in the middle of a flow, whose keys nobody knows any more.
		switch {
		case f.UDP.PacketsIn+f.UDP.PacketsOut > 1:
			return
		case !f.UDP.QUIC:
			e.arrives(p.Time, f, a, fromClient, e.udp.Payload)
			return
		case !e.mayListen(a.words.byPeer):
			return
		}
		a.words.said.Awaited = true
		e.read(p.Time, f, a)
	}
	w := a.words
	switch {
	case w.checks:
		e.checked(p.Time, f, a, fromClient, e.udp.Payload)
		return
	case !fromClient && f.UDP.QUIC:
		e.noteServer(w, e.udp.Payload)
		if w.quic != nil {
			w.quic.Server(e.udp.Payload)
		}
		return
	case !fromClient:
		return
	case w.quic == nil:
		e.number(p.Time, f, a, e.udp.Payload)
		if f.UDP.QUIC {
			e.another(p.Time, f, a, e.udp.Payload)
		}
	}
	if w.quic == nil {
		return
	}
	if h, status := w.quic.Client(p.Time, e.udp.Payload); status == hello.Done {
		e.noteID(w, w.quic.ID())
		w.said = service.Words{Name: h.Name, By: trace.ByQUICSNI, ECH: h.ECH}
		e.stats.Services.QUIC++
		e.silent(a)
		e.mayMove(p.Time, f, a)
	}
}

// read begins to put together the hello of a QUIC connection that begins in the flow.
func (e *Engine) read(now time.Time, f *flow.Flow, a *attachment) {
	var client netip.Addr // this host
	switch {
	case a.words.byPeer:
		client = f.Key.Dst.Addr()
	case a.passing:
		client = f.Key.Src.Addr()
	}
	a.words.quic, a.words.until = e.quic.NewConn(client), now.Add(wordsWait)
	e.expected = append(e.expected, expectation{f, a.words})
}

// listeners counts the flows whose first words are being put together.
func (e *Engine) listeners(byPeer bool) *int {
	if byPeer {
		return &e.accepted
	}
	return &e.listening
}

// mayListen reports whether one more flow's first words may be read, and counts it.
func (e *Engine) mayListen(byPeer bool) bool {
	n := e.listeners(byPeer)
	if *n >= maxWords || len(e.expected) >= maxExpected {
		e.stats.Services.Dropped++
		return false
	}
	*n++
	return true
}

// hear takes in what the client of a TCP flow said.
func (e *Engine) hear(a *attachment, s *wire.TCP) {
	w := a.words
	w.stream.Add(first(s), s.Payload)
	h, status := hello.First(w.stream.Bytes())
	cut := len(s.Payload) < s.PayloadLen || w.stream.Stopped()
	switch {
	case status == hello.More && !cut:
		return
	case status == hello.More:
		e.stats.Services.Cut++
	}
	if said := wordsOf(h, status); said.Name != "" {
		w.said = said
		e.stats.Services.SNI++
	}
	e.silent(a)
}

// wordsOf is what a hello names.
func wordsOf(h hello.Hello, status hello.Status) (said service.Words) {
	if status == hello.Done && h.Name != "" && !h.Proxy {
		by := trace.BySNI
		if h.Kind == hello.KindHTTP {
			by = trace.ByHTTPHost
		}
		said = service.Words{Name: h.Name, By: by, ECH: h.ECH}
	}
	return said
}

// silent ends the wait for a flow's first words, whatever they were.
func (e *Engine) silent(a *attachment) {
	e.deaf(a)
	a.words.said.Awaited = false
	if a.watch == nil {
		a.epoch = 0 // what they say may decide
	}
}

// expectation is a flow whose first words are awaited.
type expectation struct {
	flow  *flow.Flow
	words *words
}

// unheard gives up on first words that did not come in time. They are awaited equally
// long, so the first of the queue is due first.
func (e *Engine) unheard(now time.Time) {
	for len(e.expected) > 0 && !e.expected[0].words.until.After(now) {
		x := e.expected[0]
		e.expectNext()
		if e.awaits(x) {
			e.silent(x.flow.Attachment.(*attachment))
			e.consider(now, x.flow)
		}
	}
}

func (e *Engine) awaits(x expectation) bool {
	a, ok := x.flow.Attachment.(*attachment)
	return ok && a.words == x.words && (x.words.said.Awaited || x.words.quic != nil) && e.table.Get(x.flow.Key) == x.flow
}

// heardBy is when to give up next; zero: nobody is awaited. Where many flows begin that is once
// in a while for all of them.
func (e *Engine) heardBy(now time.Time) time.Time {
	for len(e.expected) > 0 && !e.awaits(e.expected[0]) {
		e.expectNext()
	}
	if len(e.expected) == 0 {
		return time.Time{}
	}
	if least := now.Add(heardEvery); e.expected[0].words.until.Before(least) {
		return least
	}
	return e.expected[0].words.until
}

// expectNext forgets the first of the queue.
func (e *Engine) expectNext() {
	e.expected[0] = expectation{}
	e.expected = e.expected[1:]
}

// known is what the selectors are told of a flow.
func (e *Engine) known(now time.Time, f *flow.Flow, a *attachment) *service.Known {
	e.about = service.Known{Owner: a.owner}
	if a.words != nil {
		e.about.Words = a.words.said
	}
	if !e.cfg.NoDNS {
		dst := f.Key.Dst
		if a.client != nil {
			dst = a.client.Dst // as its client asked for it
		}
		e.about.Names = e.names.Of(now, dst.Addr())
	}
	return &e.about
}

// resolve takes in a DNS message over UDP: a question of this host's, or an answer.
func (e *Engine) resolve(p *capture.Packet) {
	if e.cfg.NoDNS {
		return
	}
	key := flow.KeyUDP(&e.ip, &e.udp, true)
	switch {
	case key.Dst.Port() == portDNS && (p.Direction == capture.Outgoing || e.toItself()):
		e.names.Query(p.Time, key.Src, key.Dst, e.udp.Payload)
	case e.transit && key.Src.Port() == portDNS && p.Direction == capture.Outgoing && e.cfg.Local(e.ip.Src):
		// This host's own resolver tells a client; what it knows already it does not ask for.
		if e.names.Learn(p.Time, e.udp.Payload) {
			e.stats.Services.DNS++
		}
	case key.Src.Port() == portDNS:
		if e.names.Answer(p.Time, key.Dst, key.Src, e.udp.Payload) {
			e.stats.Services.DNS++
		}
	}
}

// resolver is a TCP connection to a DNS server.
type resolver struct{ questions, answers *names.Stream }

// first is the sequence number of a segment's first byte of payload: that of a SYN, which
// may carry some (TCP Fast Open, RFC 7413), has one of its own before.
func first(s *wire.TCP) uint32 {
	if s.Flags&wire.SYN != 0 {
		return s.Seq + 1
	}
	return s.Seq
}

// toItself reports whether the packet is one of this host to itself. The capture shows such
// a one once, as it comes in, so either direction of a connection looks like a flow of its own.
func (e *Engine) toItself() bool { return e.ip.Src.IsLoopback() || e.ip.Src == e.ip.Dst }

// dnsOf is the flow's attachment whose connection to a DNS server the packet belongs to; nil:
// it belongs to none.
func (e *Engine) dnsOf(f *flow.Flow, a *attachment) *attachment {
	switch {
	case a != nil && a.dns != nil:
		return a
	case e.tcp.SrcPort != portDNS || !e.toItself():
		return nil
	}
	question := e.table.Get(turned(f.Key))
	if question == nil {
		return nil
	}
	if a, ok := question.Attachment.(*attachment); ok && a.dns != nil {
		return a
	}
	return nil
}

// listenDNS begins to read a connection to a DNS server whose SYN leaves.
func (e *Engine) listenDNS(a *attachment, seq uint32) {
	if e.cfg.NoDNS || !e.mayListen(false) {
		return
	}
	a.dns = &resolver{names.NewStream(), names.NewStream()}
	a.dns.questions.Start(seq + 1)
}

// resolveTCP takes in a segment of such a connection.
func (e *Engine) resolveTCP(p *capture.Packet, f *flow.Flow, a *attachment) {
	d, s := a.dns, &e.tcp
	src, dst := netip.AddrPortFrom(e.ip.Src, s.SrcPort), netip.AddrPortFrom(e.ip.Dst, s.DstPort)
	asks := s.DstPort == portDNS
	from := d.answers
	if asks {
		from = d.questions
	}
	if s.Flags&wire.SYN != 0 {
		from.Start(s.Seq + 1)
	}
	if len(s.Payload) > 0 {
		from.Add(first(s), s.Payload)
	}
	for msg, ok := from.Next(); ok; msg, ok = from.Next() {
		if asks {
			e.names.Query(p.Time, src, dst, msg)
		} else if e.names.Answer(p.Time, dst, src, msg) {
			e.stats.Services.DNS++
		}
	}
	cut := len(s.Payload) < s.PayloadLen || from.Stopped()
	if cut {
		e.stats.Services.Cut++
	}
	if cut || f.TCP.Closed {
		e.deaf(a)
	}
}
