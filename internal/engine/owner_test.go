package engine

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// ownedRig selects by process alone.
func ownedRig(t *testing.T) *rig {
	r := newRig(t, false, 4)
	r.w.Selector = service.Selector{PIDs: []int{42}}
	return r
}

func (r *rig) key() trace.FlowKey { return trace.FlowKey{Proto: trace.TCP, Src: r.me, Dst: r.peer} }

func (r *rig) owned(at time.Time, pid int) {
	r.e.Owner(r.now, owner.Owner{Key: r.key(), At: at, Process: trace.Process{PID: pid, Name: "x"}, Final: true})
	r.step(nil)
}

// The owner of a flow is told before its SYN, while it goes on, or never.
func TestOwnerDecides(t *testing.T) {
	for name, test := range map[string]struct {
		tell func(r *rig, before bool)
		want bool
	}{
		"before the SYN":        {func(r *rig, before bool) { r.when(before, r.now, 42) }, true},
		"after the handshake":   {func(r *rig, before bool) { r.when(!before, time.Time{}, 42) }, true},
		"another one, before":   {func(r *rig, before bool) { r.when(before, r.now, 43) }, false},
		"another one, after":    {func(r *rig, before bool) { r.when(!before, time.Time{}, 43) }, false},
		"never":                 {func(*rig, bool) {}, false},
		"not found, afterwards": {func(r *rig, before bool) { r.when(before, r.now, 42); r.when(!before, time.Time{}, 0) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := ownedRig(t)
			test.tell(r, true)
			r.handshake()
			test.tell(r, false)
			r.exchange()
			if got := len(r.probes) > 0; got != test.want {
				t.Fatalf("probed: %v", got)
			}
			r.e.Remove(r.now, r.w, trace.StopCancelled)
			for _, tr := range r.traces() {
				if tr.Process == nil || tr.Process.PID != 42 || tr.Service.By != trace.ByProcess {
					t.Errorf("%+v %+v", tr.Process, tr.Service)
				}
			}
		})
	}
}

func (r *rig) when(yes bool, at time.Time, pid int) {
	if yes {
		r.owned(at, pid)
	}
}

// A flow whose beginning nobody told about is asked about once.
func TestQuestions(t *testing.T) {
	r := ownedRig(t)
	r.handshake()
	r.exchange()
	r.exchange()
	if q := r.e.Questions(); len(q) != 1 || q[0] != (Question{r.key(), 2}) {
		t.Errorf("%+v", q)
	}
	// Its first packet tells too little when it is joined late.
	r = ownedRig(t)
	r.exchange()
	if q := r.e.Questions(); len(q) != 1 {
		t.Errorf("joined late: %+v", q)
	}
	// The peer's packet does not tell by which interface the flow's leave.
	r = ownedRig(t)
	r.in(segment{flags: wire.ACK | wire.PSH, data: 100})
	r.exchange()
	if q := r.e.Questions(); len(q) != 1 {
		t.Errorf("joined late by the peer's packet: %+v", q)
	}
	u := udpRig{ownedRig(t)}
	u.send(false, make([]byte, 100))
	u.send(true, make([]byte, 100))
	if q := u.e.Questions(); len(q) != 1 || q[0].Key.Proto != trace.UDP {
		t.Errorf("datagrams that come first: %+v", q)
	}
	r = newRig(t, false, 4)
	r.handshake()
	if q := r.e.Questions(); len(q) != 0 {
		t.Errorf("nobody depends on it: %+v", q)
	}
}

// The next connection with the same ports may be somebody else's.
func TestOwnerOfNextConnection(t *testing.T) {
	r := ownedRig(t)
	r.owned(r.now, 42)
	r.handshake()
	r.exchange()
	if len(r.probes) == 0 {
		t.Fatal("not probed")
	}
	r.now = r.now.Add(time.Second)
	// While the old connection is still traced, the new one's owner is told.
	r.owned(r.now, 43)
	before := len(r.probes)
	r.seq += 100000
	r.handshake()
	r.exchange()
	if len(r.probes) != before {
		t.Errorf("%d probes in a connection of another process", len(r.probes)-before)
	}
	all := r.traces()
	if len(all) != 1 || all[0].Process.PID != 42 || all[0].Stop != trace.StopFlowClosed {
		t.Errorf("%d traces, %+v", len(all), all)
	}
}

// Owners of flows that never appear are forgotten.
func TestEarlyOwnersAreBounded(t *testing.T) {
	var y early
	now := time.Unix(0, 0)
	key := func(i int) trace.FlowKey {
		return trace.FlowKey{Proto: trace.TCP, Src: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.1:%d", i+1))}
	}
	for i := range 3 * maxEarly {
		y.put(now, &owner.Owner{Key: key(i)})
		y.put(now, &owner.Owner{Key: key(i), Final: true})
	}
	if len(y.byKey) > maxEarly || len(y.order) > maxEarly {
		t.Errorf("%d and %d are kept", len(y.byKey), len(y.order))
	}
	if o := y.take(key(3*maxEarly - 1)); o == nil || !o.Final {
		t.Errorf("%+v", o)
	}
	y.put(now.Add(earlyLife+1), &owner.Owner{Key: key(0)})
	if len(y.byKey) != 1 {
		t.Errorf("%d are kept for too long", len(y.byKey))
	}
}

// A flow whose owner is told after its end is reported all the same, once.
func TestOwnerToldTooLate(t *testing.T) {
	r := ownedRig(t)
	r.handshake()
	r.exchange()
	r.out(segment{flags: wire.FIN | wire.ACK})
	r.in(segment{flags: wire.FIN | wire.ACK})
	if n := len(r.traces()); n != 0 {
		t.Fatalf("%d traces before the owner is known", n)
	}
	r.owned(time.Time{}, 42)
	r.owned(time.Time{}, 42)
	tr := r.traces()
	if len(tr) != 1 || tr[0].Stop != trace.StopFlowClosed || tr[0].Process.PID != 42 || len(r.probes) != 0 {
		t.Errorf("%+v", tr)
	}
	// To a watch that begins later it is history.
	r.now = r.now.Add(time.Second)
	r.e.Remove(r.now, r.w, trace.StopCancelled)
	later := *r.w
	r.e.Add(r.now, &later)
	r.step(nil)
	if n := len(r.traces()); n != 0 {
		t.Errorf("%d records of a flow that was over", n)
	}
}

// found answers what the engine wonders about.
func (r *rig) found(process trace.Process) (asked int) {
	all := r.e.Wonders()
	for _, q := range all {
		r.e.Found(owner.Finding{Query: q, Process: process})
	}
	return len(all)
}

// The records of a flow name its process where nothing depends on that, which is asked
// for once.
func TestRecordsNameTheProcess(t *testing.T) {
	curl := trace.Process{PID: 42, Name: "curl"}
	for name, begin := range map[string]func(r *rig){
		"opened": func(r *rig) { r.handshake() }, "accepted": func(r *rig) { r.accepts() }, "joined late": func(r *rig) { r.exchange() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, false, 4)
			begin(r)
			if n := r.found(curl); n != 1 {
				t.Errorf("asked %d times", n)
			}
			r.exchange()
			r.exchange()
			if n := r.found(trace.Process{PID: 43}); n != 0 {
				t.Errorf("asked %d times more", n)
			}
			r.e.Remove(r.now, r.w, trace.StopCancelled)
			if all := r.traces(); len(all) != 1 || all[0].Process == nil || *all[0].Process != curl {
				t.Errorf("%+v", all)
			}
		})
	}
}

// Nobody waits for it, and what is told of the connection before is not the next one's.
func TestRecordsWithoutProcess(t *testing.T) {
	r := newRig(t, false, 4)
	r.handshake()
	before := r.e.Wonders()
	r.exchange()
	if len(r.probes) == 0 {
		t.Fatal("not probed while the process is looked for")
	}
	r.now = r.now.Add(time.Second)
	r.seq += 100000
	r.w.Every = 0
	r.handshake()
	r.e.Found(owner.Finding{Query: before[0], Process: trace.Process{PID: 42}})
	r.exchange()
	r.e.Remove(r.now, r.w, trace.StopCancelled)
	for _, tr := range r.traces() {
		if tr.Process != nil {
			t.Errorf("%+v", tr.Process)
		}
	}
	r.e.Found(owner.Finding{Query: owner.Query{Key: trace.FlowKey{Proto: trace.UDP}}}) // of no flow
}

// A trace that is over before its flow's process is known waits for that, until the
// answer, for long enough, or until its watch ends.
func TestRecordsWaitForTheProcess(t *testing.T) {
	curl := trace.Process{PID: 42, Name: "curl"}
	for name, test := range map[string]struct {
		answer func(r *rig, asked owner.Query)
		want   *trace.Process
	}{
		"found":          {func(r *rig, asked owner.Query) { r.e.Found(owner.Finding{Query: asked, Process: curl}) }, &curl},
		"unknown":        {func(r *rig, asked owner.Query) { r.e.Found(owner.Finding{Query: asked}) }, nil},
		"no answer":      {func(r *rig, _ owner.Query) { r.after(namelessWait) }, nil},
		"the watch ends": {func(r *rig, _ owner.Query) { r.e.Remove(r.now, r.w, trace.StopCancelled) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRigOf(t, false, 4, Config{Finds: true}, netip.MustParseAddrPort("203.0.113.7:443"))
			r.handshake()
			r.exchange()
			r.out(segment{flags: wire.FIN | wire.ACK})
			r.in(segment{flags: wire.FIN | wire.ACK})
			asked := r.e.Wonders()
			if n := len(r.traces()); n != 0 || len(asked) != 1 || r.w.Running() != 1 {
				t.Fatalf("%d traces, %d questions, %d running", n, len(asked), r.w.Running())
			}
			r.e.Found(owner.Finding{Query: owner.Query{Key: asked[0].Key, At: asked[0].At.Add(-time.Second)}, Process: trace.Process{PID: 1}})
			r.after(namelessWait / 2)
			if n := len(r.traces()); n != 0 {
				t.Fatalf("%d traces before the answer", n)
			}
			test.answer(r, asked[0])
			all := r.traces()
			if len(all) != 1 || r.w.Running() != 0 || r.e.Held(r.now).Waiting != 0 {
				t.Fatalf("%d traces, %d running, %+v", len(all), r.w.Running(), r.e.Held(r.now))
			}
			if got := all[0].Process; (got == nil) != (test.want == nil) || got != nil && *got != *test.want {
				t.Errorf("%+v", got)
			}
		})
	}
}

// Whose SYN bears no time but that of its reading, of a flow that nobody seemed to want: it is
// this one's owner all the same, for no packet will come that could take it.
func TestOwnerOfIgnored(t *testing.T) {
	r, s := followedRig(t)
	inside := r.key()
	inside.Dst = netip.MustParseAddrPort("10.9.9.9:443")
	r.w.Selector = service.Selector{PIDs: []int{42}, Rules: []service.Rule{{Prefix: netip.MustParsePrefix("10.9.9.9/32")}}}
	r.handshake()
	r.exchange()
	if !s.ignored[r.key()] {
		t.Fatal("it is not ignored")
	}
	r.now = r.now.Add(10 * time.Millisecond)
	r.e.Owner(r.now, owner.Owner{Key: r.key(), Socket: inside, At: r.now, Process: trace.Process{PID: 42, Name: "x"}, Final: true})
	if r.step(nil); !s.on[r.key()] {
		t.Fatal("it is not followed")
	}
	r.after(time.Second)
	r.exchange()
	r.after(time.Second)
	if len(r.probes) == 0 {
		t.Error("nothing was probed")
	}
}
