package engine

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// enough is how many flows have to agree.
const enough = 10

// sharingRig is a rig whose traces share hops, before its first flow.
func sharingRig(t *testing.T, distance int) *rig {
	r := newRig(t, false, distance)
	r.w.Policy.Params.Share = true
	return r
}

// connect opens the next connection, of which the first probes are due.
func (r *rig) connect() {
	r.me = netip.AddrPortFrom(r.me.Addr(), r.me.Port()+1)
	r.seq, r.ack = 1000, 5000
	r.handshake()
	r.exchange()
}

// hangUp closes the connection, which ends its trace.
func (r *rig) hangUp() *trace.Trace {
	r.t.Helper()
	r.in(segment{flags: wire.ACK | wire.FIN})
	all := r.traces()
	if len(all) == 0 {
		r.t.Fatal("no trace ended")
	}
	return all[len(all)-1]
}

// agree lets so many flows see all routers, one a second and a bit: so often every router
// may be asked.
func (r *rig) agree(flows, distance int) (last *trace.Trace) {
	r.t.Helper()
	for range flows {
		r.connect()
		for range 12 {
			r.after(100 * time.Millisecond)
			r.routers(distance)
		}
		last = r.hangUp()
	}
	return last
}

// probedTTLs are the TTLs below the destination at which the flow at hand was probed.
func (r *rig) probedTTLs(distance int) (ttls []int) {
	for _, p := range r.probes {
		if ttl := int(p.TTL); p.Src == r.me && ttl < distance && !slices.Contains(ttls, ttl) {
			ttls = append(ttls, ttl)
		}
	}
	slices.Sort(ttls)
	return ttls
}

// sharedTTLs are those whose reply is another trace's.
func sharedTTLs(tr *trace.Trace) (ttls []int) {
	for _, h := range tr.Hops {
		if len(h.Replies) > 0 && h.Replies[0].SharedFrom != "" {
			ttls = append(ttls, h.TTL)
		}
	}
	return ttls
}

func (r *rig) wants(what string, ttls []int, want ...int) {
	r.t.Helper()
	if !slices.Equal(ttls, want) {
		r.t.Errorf("%s: TTLs %v, want %v", what, ttls, want)
	}
}

// What ten flows saw the eleventh does not ask for, but for the last before the destination.
func TestShare(t *testing.T) {
	r := sharingRig(t, 5)
	before := r.agree(enough-1, 5)
	r.connect()
	r.wants("the tenth asks for", r.probedTTLs(5), 1, 2, 3, 4)
	r.routers(5)
	r.after(50 * time.Millisecond)
	last := r.hangUp()
	if sharedTTLs(before) != nil || sharedTTLs(last) != nil {
		t.Errorf("shared: %v, %v", sharedTTLs(before), sharedTTLs(last))
	}
	r.connect()
	r.wants("the eleventh asks for", r.probedTTLs(5), 4)
	r.after(50 * time.Millisecond)
	r.routers(5)
	tr := r.hangUp()
	r.wants("shared", sharedTTLs(tr), 1, 2, 3)
	for i, h := range tr.Hops[:3] {
		want := last.Hops[i].Replies[0]
		got := h.Replies[0]
		if h.Sent != 0 || h.Deferred != 0 || got.Addr != want.Addr || got.RTT != want.RTT || got.ReplyTTL != want.ReplyTTL || got.SharedFrom != last.ID {
			t.Errorf("%+v, measured was %+v by %s", h, want, last.ID)
		}
	}
	if tr.Complete || tr.PathID != "" {
		t.Errorf("complete: %+v", tr)
	}
}

// A trace that knows its destination and every other hop is not complete.
func TestShareNeverComplete(t *testing.T) {
	r := sharingRig(t, 4)
	r.agree(enough, 4)
	r.connect()
	var tr *trace.Trace
	for end := r.now.Add(8 * time.Second); tr == nil && r.now.Before(end); {
		n := r.reaching(4)
		r.after(10 * time.Millisecond)
		r.routers(4)
		if r.reaching(4) > n {
			r.now = r.now.Add(rtt)
			r.in(segment{flags: wire.ACK})
		}
		if all := r.traces(); len(all) > 0 {
			tr = all[0]
		}
	}
	if tr == nil || tr.Stop != trace.StopDestination || !tr.Reached || tr.Complete || tr.PathID != "" {
		t.Fatalf("%+v", tr)
	}
	r.wants("shared", sharedTTLs(tr), 1, 2)
}

// Who does not want it does without, and bears witness all the same.
func TestShareOnlyWhereWanted(t *testing.T) {
	r := sharingRig(t, 5)
	r.agree(1, 5)
	r.w.Policy.Params.Share = false
	r.agree(enough-1, 5)
	r.connect()
	r.wants("without sharing", r.probedTTLs(5), 1, 2, 3, 4)
	r.routers(5)
	r.w.Policy.Params.Share = true
	r.connect()
	r.wants("with sharing", r.probedTTLs(5), 4)
}

// One that sees something else ends the sharing there and beyond, also of a trace in
// progress, which asks for what it left out.
func TestShareDisputed(t *testing.T) {
	r := sharingRig(t, 6)
	r.agree(enough, 6)
	r.w.Policy.Params.Share = false
	r.connect() // one that looks itself
	var third []byte
	for i, p := range r.probes {
		if p.Src == r.me && p.TTL == 3 {
			third = r.packets[i]
		}
	}
	r.w.Policy.Params.Share = true
	r.connect()
	r.wants("while all agree", r.probedTTLs(6), 5)
	me := r.me
	r.error("198.51.100.99", 11, 0, third, 0)
	r.after(1500 * time.Millisecond)
	r.wants("since one saw another", r.probedTTLs(6), 3, 4, 5)
	r.me = me
	tr := r.hangUp()
	r.wants("shared in the end", sharedTTLs(tr), 1, 2)
	r.connect()
	r.after(1500 * time.Millisecond)
	r.wants("the next", r.probedTTLs(6), 3, 4, 5)
}

// Behind what it left out a trace sees what others saw there, or it leaves nothing out.
func TestShareOtherWay(t *testing.T) {
	r := sharingRig(t, 5)
	r.agree(enough, 5)
	r.connect()
	r.wants("at first", r.probedTTLs(5), 4)
	r.error("198.51.100.99", 11, 0, r.packets[len(r.packets)-1], 0)
	r.after(1500 * time.Millisecond)
	r.wants("when the last hop is another", r.probedTTLs(5), 1, 2, 3, 4)
	r.wants("shared", sharedTTLs(r.hangUp()))
}

// Where others are answered one is silent that nobody answers, unless a limit may be why.
func TestShareSilence(t *testing.T) {
	r := sharingRig(t, 5)
	r.agree(enough, 5)
	r.after(2 * time.Second)
	r.w.Policy.Params.Share = false
	r.connect()
	for range 100 {
		r.after(100 * time.Millisecond)
		for i, p := range r.probes {
			if b := r.packets[i]; b != nil && p.Src == r.me && p.TTL != 2 && p.TTL < 5 {
				r.packets[i] = nil
				r.timeExceeded(int(p.TTL), b)
			}
		}
	}
	tr := r.hangUp()
	if h := tr.Hops[1]; h.Sent != 3 || h.Limited || h.Deferred > 0 || len(h.Replies) > 0 {
		t.Fatalf("%+v", h)
	}
	r.w.Policy.Params.Share = true
	r.connect() // looks, after so long
	r.connect()
	r.after(1500 * time.Millisecond)
	r.wants("since one is silent", r.probedTTLs(5), 2, 3, 4)
}

// After some seconds in which nobody looked one does, and leaves nothing out.
func TestShareLooks(t *testing.T) {
	r := sharingRig(t, 5)
	r.agree(enough, 5)
	r.after(4 * time.Second)
	r.connect()
	r.wants("one looks", r.probedTTLs(5), 1, 2, 3, 4)
	r.connect()
	r.wants("another does not", r.probedTTLs(5), 4)
}

// A flow that leaves by another interface than before, or another label, or by none that is
// known to be the same, goes its own way.
func TestShareMoved(t *testing.T) {
	r := sharingRig(t, 5)
	r.agree(enough, 5)
	r.link = 3
	r.connect()
	r.wants("by another interface", r.probedTTLs(5), 1, 2, 3, 4)
	r.link = 2
	r.connect()
	r.wants("by the one before", r.probedTTLs(5), 4)
	r.link = 3
	for range 6 {
		r.exchange()
		r.after(100 * time.Millisecond)
	}
	r.after(1500 * time.Millisecond)
	r.wants("it moves", r.probedTTLs(5), 1, 2, 3, 4)
	r.wants("shared", sharedTTLs(r.hangUp()))
}

// A border is asked for: the trace ends there.
func TestShareBorder(t *testing.T) {
	r := sharingRig(t, 5)
	r.agree(enough, 5)
	r.w.Policy.Params.Borders = []netip.Prefix{netip.MustParsePrefix("198.51.100.2/32")}
	r.connect()
	r.after(50 * time.Millisecond)
	r.wants("with a border", r.probedTTLs(5), 2, 4)
	r.routers(5)
	r.after(3 * time.Second)
	all := r.traces()
	if len(all) != 1 || all[0].Stop != trace.StopBorder || len(all[0].Hops) != 2 || all[0].Complete {
		t.Fatalf("%+v", all)
	}
	r.wants("shared", sharedTTLs(all[0]), 1)
}

// All algorithms leave out the same.
func TestShareAlgorithms(t *testing.T) {
	for _, a := range []trace.Algorithm{trace.PacketByPacket, trace.HopByHop, trace.Concurrent} {
		r := sharingRig(t, 5)
		r.agree(enough, 5)
		r.w.Policy.Params.Algorithm, r.w.Policy.Params.Probes = a, 1
		r.connect()
		for range 30 {
			r.after(100 * time.Millisecond)
			r.routers(5)
		}
		r.wants(a.String(), r.probedTTLs(5), 4)
		r.wants(a.String()+" shared", sharedTTLs(r.hangUp()), 1, 2, 3)
	}
}

// A UDP flow asks for all, whatever flows over TCP to the same destination saw: its fence
// goes by what answered it. It bears no witness either.
func TestShareUDP(t *testing.T) {
	r := sharingRig(t, 8)
	r.agree(enough, 8)
	r.me = netip.AddrPortFrom(r.me.Addr(), 50000)
	u := udpRig{r}
	u.quic()
	u.hears(false)
	r.after(1500 * time.Millisecond)
	r.wants("over UDP", r.probedTTLs(8), 1, 2)
	known := r.e.common.Disputes()
	r.error("198.51.100.99", 11, 0, r.packets[len(r.packets)-1], 0)
	if r.e.common.Disputes() != known {
		t.Error("a UDP flow's answer counts")
	}
}

// A flow that has picked another label, and perhaps another way, asks for all.
func TestShareAnotherLabel(t *testing.T) {
	r := newRig(t, true, 5)
	r.w.Policy.Params.Share = true
	r.agree(enough, 5)
	r.connect()
	r.wants("at first", r.probedTTLs(5), 4)
	r.label++
	r.exchange()
	r.after(1500 * time.Millisecond)
	r.wants("with another label", r.probedTTLs(5), 1, 2, 3, 4)
	r.wants("shared", sharedTTLs(r.hangUp()))
}

// Nothing is shared in a file: nothing is asked for.
func TestShareReplay(t *testing.T) {
	p := probe.Defaults()
	p.Share = true
	if ReplayParams(p).Share {
		t.Error("a replayed trace leaves out hops")
	}
}

// Where the way back is longer than the way there, probes come to the destination. Then the
// flow meets the last router itself, and the search goes on from there.
func TestShareOvershot(t *testing.T) {
	r := sharingRig(t, 9)
	r.agree(enough, 5)
	r.after(1500 * time.Millisecond) // the silent may be asked again
	r.connect()
	r.wants("at first", r.probedTTLs(9), 5, 6, 7, 8)
	r.now = r.now.Add(rtt)
	r.in(segment{flags: wire.ACK}) // to some of them
	r.after(1500 * time.Millisecond)
	r.wants("when the destination answered", r.probedTTLs(5), 4)
	r.routers(5)
	r.wants("shared", sharedTTLs(r.hangUp()), 1, 2, 3)

	// If it is no farther than a hop that was left out, nothing is taken for granted.
	r.after(4 * time.Second)
	r.connect() // looks
	first := r.e.runs[0]
	r.connect()
	for _, run := range r.e.runs {
		if run == first {
			continue
		}
		before := run.left
		if top := run.overshot(3); before == 0 || top != 0 || run.left != 0 {
			t.Errorf("routers up to TTL %d, %d of %d hops left out", top, run.left, before)
		}
	}
}

// The search for the destination does not ask what was left out, as long as a router farther
// off may answer; and then only for the last.
func TestShareSearch(t *testing.T) {
	r := sharingRig(t, 6)
	r.agree(enough, 4) // the one before the destination is silent
	r.after(1500 * time.Millisecond)
	r.connect()
	r.after(400 * time.Millisecond)
	r.wants("at first", r.probedTTLs(6), 4, 5)
	for end := r.now.Add(12 * time.Second); r.now.Before(end); {
		n := r.reaching(6)
		r.after(10 * time.Millisecond)
		r.routers(4)
		if r.reaching(6) > n {
			r.now = r.now.Add(rtt)
			r.in(segment{flags: wire.ACK})
		}
	}
	r.wants("in the end", r.probedTTLs(6), 3, 4, 5)
	all := r.traces()
	if len(all) != 1 || !all[0].Reached || all[0].Destination.TTL != 6 || all[0].Complete {
		t.Fatalf("%+v", all)
	}
	r.wants("shared", sharedTTLs(all[0]), 1, 2)
}
