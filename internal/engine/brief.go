package engine

import (
	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/hello"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/stream"
	"servicetraceroute/trace"
)

// While very many flows begin, a source may show of each but a packet that tells whose it is,
// and neither its handshake nor its end (capture.Packet.Brief).

// beginUnseen takes in the packet that is shown of such a flow, and reports false where no
// watch wants the flow: most are such, and none of these takes a place anywhere.
func (e *Engine) beginUnseen(p *capture.Packet, k trace.FlowKey) (wanted bool) {
	// Of another connection with its addresses and ports the end was not shown either.
	if f := e.table.Get(k); f != nil && !f.Followed {
		e.table.Remove(f)
	}
	if e.cfg.Follow == nil || len(e.watches) == 0 || e.transit || e.early.byKey[k] != nil {
		return true
	}
	outgoing := p.Direction == capture.Outgoing
	t := trace.Tuple{FlowKey: k, Direction: flow.Oriented(k), NetNS: e.cfg.NetNS}
	if e.cfg.InterfaceName != nil && outgoing {
		t.Interface = e.cfg.InterfaceName(p.Interface)
	}
	e.about = service.Known{}
	if outgoing == (t.Direction != trace.In) {
		h, status := hello.First(e.tcp.Payload)
		e.about.Words = wordsOf(h, status)
		e.about.Words.Awaited = status == hello.More || len(e.tcp.Payload) < e.tcp.PayloadLen
	}
	if !e.cfg.NoDNS {
		e.about.Names = e.names.Of(p.Time, k.Dst.Addr())
	}
	for _, w := range e.watches {
		if w.Selector.ByInterface() && !outgoing {
			return true
		}
		if _, v := w.Selector.Match(t, &e.about); v != service.No {
			return true
		}
	}
	if e.about.Words.Name != "" {
		e.stats.Services.SNI++
	}
	e.cfg.Follow.Ignore(k, false)
	return false
}

// overhear begins to read what the client of such a flow says with the packet that is shown:
// it may have said something before, and then says no name any more.
func (e *Engine) overhear(p *capture.Packet, f *flow.Flow) *attachment {
	byPeer := f.Direction == trace.In
	if !e.mayListen(byPeer) {
		return nil
	}
	a, w := attached(f), &words{byPeer: byPeer, stream: stream.New(hello.MaxStream), until: p.Time.Add(wordsWait)}
	w.stream.Start(e.tcp.Seq)
	w.said.Awaited = true
	a.words = w
	e.expected = append(e.expected, expectation{f, w})
	return a
}
