package engine

import (
	"net/netip"
	"slices"
	"time"

	"servicetraceroute/internal/finding"
	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// What quotes say about the path, put down for records and for internal/finding.

func labels(stack []wire.MPLSLabel) []trace.Label {
	var out []trace.Label
	for _, l := range stack {
		out = append(out, trace.Label{Label: l.Label, TC: l.TC, S: l.S, TTL: l.TTL})
	}
	return out
}

// changes names what differs between the quote and the probe as sent.
func changes(s *probe.Sent, r *probe.Reply) []trace.FindingKind {
	var out []trace.FindingKind
	add := func(yes bool, kind trace.FindingKind) {
		if yes {
			out = append(out, kind)
		}
	}
	d := s.Differences(&r.Quote)
	add(d.NATSrc, trace.NATSrc)
	// A host does not forward what is its own: behind a destination NAT all errors bear
	// the address that the flow was sent to (Linux translates their source as well).
	add(d.NATDst || r.Kind == wire.TimeExceeded && r.From == s.Dst.Addr(), trace.NATDst)
	add(d.NATPort, trace.NATPort)
	add(d.Seq, trace.SeqRewritten)
	add(d.DSCP, trace.DSCPChanged)
	add(d.ECN, trace.ECNSet)
	add(len(r.MPLS) > 0, trace.MPLS)
	add(len(r.Info) > 0, trace.InterfaceInfo)
	add(r.Kind == wire.PacketTooBig, trace.MTU)
	return out
}

// quoted is how the quote differs from the probe as sent; nil: it does not.
func quoted(s *probe.Sent, r *probe.Reply) *trace.Quoted {
	q := trace.Quoted{
		Src: netip.AddrPortFrom(r.Quote.Src, r.Quote.SrcPort), Dst: netip.AddrPortFrom(r.Quote.Dst, r.Quote.DstPort), Stale: r.Stale && !s.UDP,
	}
	if r.Quote.HasSeq {
		q.SeqShift = r.Quote.Seq - s.Seq
	}
	if q == (trace.Quoted{Src: s.Src, Dst: s.Dst}) {
		return nil
	}
	out := q // only what differs costs an allocation
	return &out
}

func interfaces(info []wire.InterfaceInfo) []*trace.Interface {
	var out []*trace.Interface
	for _, i := range info {
		out = append(out, &trace.Interface{Role: trace.InterfaceRole(i.Role & 3), Index: i.Index, Addr: i.Addr, Name: i.Name, MTU: i.MTU})
	}
	return out
}

// narrow is what routers said about a flow's own packets.
type narrow struct{ said []finding.TooBig }

// maxTooBig bounds what is kept of one flow: a path has no more narrow links worth telling.
const maxTooBig = 4

// tooBig keeps what a router said about a segment of the flow's own. Somebody off the path
// would have to guess a sequence number in flight (RFC 5927 section 7.2); of datagrams nothing
// like that is known.
func (e *Engine) tooBig(r *probe.Reply) {
	if r.Kind != wire.PacketTooBig || r.MTU == 0 {
		return
	}
	key, ok := about(&r.Quote)
	if !ok || key.Proto != trace.TCP {
		return
	}
	f := e.table.Get(key)
	if f == nil || !heard(f, &r.Quote) {
		return
	}
	a, ok := f.Attachment.(*attachment)
	if !ok {
		return
	}
	if a.narrow == nil {
		a.narrow = &narrow{}
	}
	said := finding.TooBig{From: r.From, MTU: r.MTU, Len: r.Quote.Len}
	again := func(b finding.TooBig) bool { return b.From == said.From && b.MTU == said.MTU }
	if len(a.narrow.said) < maxTooBig && !slices.ContainsFunc(a.narrow.said, again) {
		a.narrow.said = append(a.narrow.said, said)
	}
}

// findings are what the trace and the flow's own packets say about the path.
func findings(now time.Time, f *flow.Flow, t *trace.Trace) []*trace.Finding {
	var tooBig []finding.TooBig
	if a, ok := f.Attachment.(*attachment); ok && a.narrow != nil {
		tooBig = a.narrow.said
	}
	return finding.Of(now, t, tooBig)
}
