package engine

import (
	"time"

	"servicetraceroute/internal/flow"
	"servicetraceroute/internal/health"
	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// attachment is what the engine knows of a flow beyond the table. A flow that nobody wants has
// none, see settle.
type attachment struct {
	epoch    uint64 // of the selections it was matched against
	watch    *Watch
	service  trace.Service
	run      *run
	told     bool // a flow record was written
	ended    time.Time
	finished int
	anew     bool // another connection of the same tuple began since
	refused  bool
	asks     bool // it was refused since it looked like questions and answers
	waits    bool // a selection could not tell yet whether it is one of its flows
	waited   uint8
	// unanswered: it was refused since its peer had said nothing.
	unanswered bool
	owner      *owner.Owner // nil: not known
	asked      bool         // who the owner is
	claimed    bool         // another watch waits for the end of the trace
	home       *attachment  // what to return to when this watch ends; nil: none
	near       *near        // of the traces so far; nil: there was none
	sized      bool         // the window scale was asked for
	hearing    Hearing      // of a UDP flow's socket
	passing    bool         // neither end is this host
	place      place
	coming     string         // the id of the trace that begins when the place is told; empty: none does
	client     *trace.FlowKey // how the client of a forwarded flow calls it; nil: as on the wire
	words      *words         // what its client said first; nil: not known
	dns        *resolver      // a connection to a DNS server that is read
	ignored    bool           // a record said why it is not traced
	// process is whose the flow is, as far as that was found out for its records alone;
	// nil: not known. It was asked for at wondered; zero: never.
	process  *trace.Process
	wondered time.Time
	gap      time.Time    // since when all packets are shown, if some were not before; else zero
	newest   *[2]print    // of a replayed flow: its newest packet out and in
	path     *path        // of the traces so far, of a flow that is traced again; nil: there was none
	sweep    *sweep       // confirms it; nil: none does
	health   *health.Flow // of a selected TCP flow; nil: it showed nothing yet
	hurt     string       // the trigger that begins a trace; empty: none does
	narrow   *narrow      // nil: nothing was said of it
}

// policy is that of the flow's service. Some watch has the flow.
func (a *attachment) policy() *Policy { return a.watch.policy(a.service.Name) }

// attached is what is known of the flow, which from now on may be added to.
func attached(f *flow.Flow) *attachment {
	a, _ := f.Attachment.(*attachment)
	if a == nil {
		a = &attachment{epoch: f.Judged}
		if f.Judged != 0 { // it was settled
			a.words = &words{byPeer: f.Direction == trace.In}
			if said, ok := f.Attachment.(*service.Words); ok {
				a.words.said = *said
			}
		}
		f.Attachment = a
	}
	return a
}

// settle lets go of what is kept for flows that some watch selects, or may yet, of one that no
// watch does: most of a busy host's are such. What its client said stays, for watches to come.
func (e *Engine) settle(f *flow.Flow, a *attachment) (settled bool) {
	w, rest := a.words, *a
	if e.cfg.Replay || w != nil && (a.listens() || w.origin != nil || w.ids != nil) {
		return false
	}
	rest.epoch, rest.waited, rest.words = 0, 0, nil
	if rest != (attachment{}) {
		return false
	}
	f.Judged, f.Attachment = a.epoch, nil
	if w != nil && w.said != (service.Words{}) {
		said := w.said
		f.Attachment = &said
	}
	return true
}

// forgotten is what stays known of a flow that no watch has any more.
func (a *attachment) forgotten() *attachment {
	return &attachment{
		owner: a.owner, near: a.near, words: a.words, dns: a.dns, hearing: a.hearing, process: a.process, wondered: a.wondered,
		passing: a.passing, place: a.place, client: a.client, gap: a.gap,
	}
}

// socket is what the flow's own socket calls it (that of its client, where this host only
// forwards it), where that is known to be another key than the one on the wire; else the
// zero key.
func (a *attachment) socket() trace.FlowKey {
	if a.watch != nil && a.watch.single() && a.watch.Selector.Flow.NAT != nil {
		return a.watch.Selector.Flow.FlowKey
	}
	if a.client != nil {
		return *a.client
	}
	if a.owner != nil {
		return a.owner.Socket
	}
	return trace.FlowKey{}
}
