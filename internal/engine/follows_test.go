package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// follower plays a source that shows whole flows only where it is told to.
type follower struct {
	on, ignored map[trace.FlowKey]bool
	calls       int
	since       time.Time // all packets are shown
	tells       bool      // of all that was hidden, as a ring does, which shows no handshakes
}

// FirstShown implements capture.Follower.
func (s *follower) FirstShown() bool { return !s.tells }

// Follow implements capture.Follower.
func (s *follower) Follow(k trace.FlowKey, _ bool) time.Time {
	s.calls++
	s.on[k] = true
	return s.since
}

// Unfollow implements capture.Follower.
func (s *follower) Unfollow(k trace.FlowKey, _ bool) bool {
	s.calls++
	s.on[k] = false
	return !s.tells
}

// Ignore implements capture.Follower.
func (s *follower) Ignore(k trace.FlowKey, _ bool) bool {
	s.ignored[k] = true
	return !s.tells
}

func followedRig(t *testing.T) (*rig, *follower) {
	s := &follower{on: map[trace.FlowKey]bool{}, ignored: map[trace.FlowKey]bool{}}
	return newRigOf(t, false, 4, Config{Follow: s}, netip.MustParseAddrPort("203.0.113.7:443")), s
}

// A selected flow is followed from its first packet on until its trace is over, with Retrace
// for longer; another one is not.
func TestFollows(t *testing.T) {
	for _, retrace := range []time.Duration{0, time.Minute} {
		r, s := followedRig(t)
		r.w.Retrace = retrace
		selected := r.peer
		r.peer = netip.MustParseAddrPort("198.51.100.9:443")
		r.handshake()
		r.after(time.Second) // until nobody waits for its first words any more
		if other := (trace.FlowKey{Proto: trace.TCP, Src: r.me, Dst: r.peer}); s.calls != 0 || !s.ignored[other] {
			t.Errorf("nobody selected %v, ignored %v", s.on, s.ignored)
		}
		r.peer, r.seq, r.ack = selected, 1000, 5000
		r.out(segment{flags: wire.SYN, options: synOptions})
		key := trace.FlowKey{Proto: trace.TCP, Src: r.me, Dst: r.peer}
		r.now = r.now.Add(rtt)
		r.in(segment{flags: wire.SYN | wire.ACK, options: synOptions})
		if s.on[key] || s.ignored[key] {
			t.Error("the flow is followed, or ignored, before its handshake is over")
		}
		s.since = r.now.Add(-time.Microsecond) // the SYN took no room, and was shown
		r.out(segment{flags: wire.ACK})
		if !s.on[key] || !attached(r.flow()).gap.IsZero() {
			t.Errorf("the flow is not followed from its handshake on, or not whole: %v", attached(r.flow()).gap)
		}
		r.exchange()
		r.answering(4, 5*time.Second)
		if tr := r.traces(); len(tr) != 1 || !tr[0].Reached {
			t.Fatalf("%+v", tr)
		}
		if r.after(2 * time.Second); s.on[key] != (retrace > 0) {
			t.Errorf("with Retrace %v, followed after the trace: %v", retrace, s.on[key])
		}
		if s.calls > 2 {
			t.Errorf("%d calls", s.calls)
		}
		if r.after(flowIdle + time.Minute); len(r.e.follows) > 0 || s.on[key] {
			t.Errorf("%d are followed that the table forgot", len(r.e.follows))
		}
	}
}

// Where packets of a flow were not shown before it was followed, nothing is probed until both
// of its sides were seen since.
func TestFollowsLate(t *testing.T) {
	for _, late := range []bool{false, true} {
		r, s := followedRig(t)
		r.e.Remove(r.now, r.w, trace.StopCancelled)
		s.since = r.now // which is when it was first seen
		r.handshake()
		r.exchange()
		if late {
			s.since = r.now
		}
		r.e.Add(r.now, r.w)
		r.after(100 * time.Millisecond)
		if (len(r.probes) > 0) == late {
			t.Errorf("late %v: %d probes at once", late, len(r.probes))
		}
		r.exchange()
		r.after(100 * time.Millisecond)
		if len(r.probes) == 0 {
			t.Errorf("late %v: no probes", late)
		}
	}
}

// A flow that was ignored, since no watch selected it, and is wanted later, is one of which
// packets were not shown; while nobody watches, none is ignored.
func TestFollowsIgnored(t *testing.T) {
	r, s := followedRig(t)
	r.e.Remove(r.now, r.w, trace.StopCancelled)
	r.handshake()
	r.exchange()
	if len(s.ignored) > 0 {
		t.Errorf("%v are ignored, and nobody watches", s.ignored)
	}
	other := *r.w
	other.Selector.Rules = []service.Rule{{Prefix: netip.MustParsePrefix("192.0.2.99/32"), Service: trace.Service{Name: "y"}}}
	r.e.Add(r.now, &other)
	r.exchange()
	if len(s.ignored) != 1 {
		t.Errorf("%v are ignored", s.ignored)
	}
	r.e.Add(r.now, r.w)
	if r.after(100 * time.Millisecond); len(r.probes) > 0 {
		t.Errorf("%d probes at once", len(r.probes))
	}
	r.exchange()
	if r.after(100 * time.Millisecond); len(r.probes) == 0 {
		t.Error("no probes")
	}
}

// A source that does not show handshakes is told of a flow with its SYN; and one that tells of all
// that it hid has nothing waited for where it hid nothing.
func TestFollowsFromSYN(t *testing.T) {
	r, s := followedRig(t)
	s.tells = true
	key := trace.FlowKey{Proto: trace.TCP, Src: r.me, Dst: r.peer}
	if r.out(segment{flags: wire.SYN, options: synOptions}); !s.on[key] {
		t.Error("a selected flow is not followed from its SYN on")
	}
	r.e.Remove(r.now, r.w, trace.StopCancelled)
	other := *r.w
	other.Selector.Rules = []service.Rule{{Prefix: netip.MustParsePrefix("192.0.2.99/32"), Service: trace.Service{Name: "y"}}}
	r.e.Add(r.now, &other)
	r.handshake()
	r.exchange()
	if r.after(2 * time.Second); s.on[key] {
		t.Error("nobody selects the flow, and it is followed")
	}
	r.e.Add(r.now, r.w)
	if r.after(100 * time.Millisecond); len(r.probes) == 0 {
		t.Error("no probes, though nothing was hidden")
	}
}

// A connection of addresses and ports that were ignored before is shown from its SYN on.
func TestFollowsNextConnection(t *testing.T) {
	r := namedRig(t, "video.example")
	r.e.cfg.Follow = &follower{on: map[trace.FlowKey]bool{}, ignored: map[trace.FlowKey]bool{}}
	for _, name := range []string{"bank.example", "www.video.example"} {
		r.handshake()
		if r.after(time.Millisecond); r.flow().Quiet {
			t.Error("ignored before its client said a word")
		}
		r.say(clientHello(t, name))
		r.now = r.now.Add(rtt)
		r.in(segment{flags: wire.ACK})
		r.after(10 * time.Millisecond)
		if wanted := name != "bank.example"; (len(r.probes) > 0) != wanted || r.flow().Quiet == wanted {
			t.Errorf("%s: %d probes, quiet %v, gap %v", name, len(r.probes), r.flow().Quiet, attached(r.flow()).gap)
		}
		r.exchange()
		r.out(segment{flags: wire.ACK | wire.FIN})
		r.in(segment{flags: wire.ACK | wire.FIN})
		r.out(segment{flags: wire.ACK})
		r.after(time.Minute)
		r.seq, r.ack = r.seq+1<<20, r.ack+1<<20
	}
}

// While it is not known who the ends of a flow are that this host may only forward, which may
// yet select it, it is not ignored.
func TestFollowsUnplaced(t *testing.T) {
	for _, tells := range []bool{false, true} {
		r, s := followedRig(t)
		s.tells = tells
		r.w.Selector.Rules[0].Prefix = netip.MustParsePrefix("192.0.2.99/32")
		r.e.transit, r.e.cfg.Tracked = true, true
		r.e.cfg.Local = func(a netip.Addr) bool { return a == r.me.Addr() }
		key := trace.FlowKey{Proto: trace.TCP, Src: r.me, Dst: r.peer}
		if r.out(segment{flags: wire.SYN, options: synOptions}); s.on[key] != tells {
			t.Errorf("first packets hidden %t: followed with its SYN %t", tells, s.on[key])
		}
		r.handshake()
		r.exchange()
		if r.after(2 * time.Second); len(r.e.Places()) == 0 || len(s.ignored) > 0 || s.on[key] != tells {
			t.Errorf("first packets hidden %t: ignored %v, followed %v", tells, s.ignored, s.on)
		}
		r.e.Untracked(r.now, key)
		if len(s.ignored) == 0 || s.on[key] {
			t.Errorf("first packets hidden %t: not ignored when it is known; followed %v", tells, s.on)
		}
	}
}

// From a source that does not show first packets a flow is followed until it is known whose it is,
// and no longer if nobody wants that one's.
func TestFollowsUndecided(t *testing.T) {
	for pid, wanted := range map[int]bool{42: true, 43: false} {
		r := ownedRig(t)
		s := &follower{on: map[trace.FlowKey]bool{}, ignored: map[trace.FlowKey]bool{}, tells: true}
		r.e.cfg.Follow = s
		r.handshake()
		if !s.on[r.key()] || s.ignored[r.key()] {
			t.Error("not followed, or ignored, before it is known whose it is")
		}
		r.owned(time.Time{}, pid)
		r.exchange()
		if s.on[r.key()] != wanted || s.ignored[r.key()] == wanted {
			t.Errorf("of process %d: followed %t, ignored %t", pid, s.on[r.key()], s.ignored[r.key()])
		}
	}
}
