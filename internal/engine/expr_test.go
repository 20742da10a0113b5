package engine

import (
	"testing"
	"time"

	"servicetraceroute/internal/match"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/service"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// exprRig selects by an expression alone.
func exprRig(t *testing.T, text string) *rig {
	t.Helper()
	e, err := match.Compile(text)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, false, 4)
	r.w.Selector = service.Selector{Exprs: []service.Expr{e}}
	return r
}

// An expression decides as soon as what is known decides: at once, with the client's first
// words or when these do not come, with the owner.
func TestExprDecides(t *testing.T) {
	const stands, silent, said, owned = 0, 1, 2, 3
	for text, from := range map[string]int{
		`dport == 443`: stands,
		`dport == 443 || name == "www.video.example"`: stands,
		`name == ""`:                                         silent,
		`domain(name, "video.example")`:                      said,
		`"www.video.example" in names`:                       said,
		`dport == 80 && name == "www.video.example"`:         -1,
		`process == "x"`:                                     owned,
		`dport == 443 && pid == 42`:                          owned,
		`domain(name, "video.example") && process == "x"`:    owned,
		`process == "y"`:                                     -1,
		`domain(name, "other.example") || process == "none"`: -1,
	} {
		r := exprRig(t, text)
		probed := func() bool { return len(r.probes) > 0 }
		check := func(at int) {
			t.Helper()
			if want := from >= 0 && at >= from; probed() != want {
				t.Errorf("%s, step %d: probed %v", text, at, probed())
			}
		}
		r.handshake()
		r.in(segment{flags: wire.ACK})
		check(stands)
		if from == silent {
			r.after(wordsWait + time.Millisecond)
			check(silent)
			continue
		}
		r.say(clientHello(t, "www.video.example"))
		r.exchange()
		check(said)
		r.owned(time.Time{}, 42)
		r.exchange()
		check(owned)
	}
}

// Names of DNS that disagree leave a flow alone, and say so.
func TestExprAmbiguous(t *testing.T) {
	r := exprRig(t, `domain(name, "video.example")`)
	r.asked(t, "www.video.example")
	r.asked(t, "bank.example")
	r.handshake()
	r.exchange()
	r.after(time.Second)
	r.exchange()
	var ignored bool
	for _, rec := range r.e.Records() {
		if f, ok := rec.Event.(*trace.Flow); ok {
			ignored = f.State == trace.FlowIgnored && f.Reason == trace.ReasonAmbiguous
		}
	}
	if len(r.probes) > 0 || !ignored {
		t.Errorf("%d probes, ignored %v", len(r.probes), ignored)
	}
}

// A service has a policy of its own, whole.
func TestPolicies(t *testing.T) {
	r := newRig(t, false, 4)
	own := Policy{Params: probe.Defaults(), Every: time.Minute, Per: PerDestination}
	own.Params.MaxTTL = 2
	r.w.Policies = map[string]*Policy{"x": &own}
	r.w.Every, r.w.OnPayload = -1, true // of others
	r.next(40000, "203.0.113.7:443")
	r.next(40001, "203.0.113.7:80")
	r.after(30 * time.Second)
	r.after(2 * time.Minute)
	r.next(40002, "203.0.113.7:443")
	if got := r.sources(); !got[40000] || got[40001] || !got[40002] {
		t.Errorf("probed: %v", got)
	}
	for _, p := range r.probes {
		if p.TTL > 2 {
			t.Errorf("TTL %d", p.TTL)
		}
	}
}

// Another selection that still selects a flow leaves it its service.
func TestReplaceKeepsService(t *testing.T) {
	r := newRig(t, false, 4)
	r.handshake()
	r.exchange()
	by := Watch{Policy: r.w.Policy, Selector: service.Selector{Rules: []service.Rule{r.w.Selector.Rules[0]}}}
	by.Selector.Rules[0].Service.Name = "y"
	r.e.Replace(r.now, r.w, by)
	r.e.Remove(r.now, r.w, trace.StopCancelled)
	if all := r.traces(); len(all) != 1 || all[0].Service.Name != "x" {
		t.Errorf("%+v", all)
	}
}
