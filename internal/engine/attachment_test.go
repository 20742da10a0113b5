package engine

import (
	"testing"
	"time"

	"servicetraceroute/internal/owner"
	"servicetraceroute/internal/probe"
	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// Of a flow that no watch selects the engine keeps its name alone, by which a later watch
// finds it; its tuple's next connection may want another.
func TestNobodysFlow(t *testing.T) {
	r := namedRig(t, "other.example")
	r.handshake()
	r.say(clientHello(t, "www.video.example"))
	r.exchange()
	if said, ok := r.flow().Attachment.(*service.Words); !ok || said.Name != "www.video.example" {
		t.Fatalf("%T is kept", r.flow().Attachment)
	}
	later := &Watch{
		Policy: Policy{Params: probe.Defaults(), Every: time.Hour}, Selector: service.Selector{Domains: domains{"video.example"}},
	}
	r.e.Add(r.now, later)
	r.exchange()
	if flows, _ := r.told(); later.Matched() != 1 || len(flows) != 1 || flows[0].Service.By != trace.BySNI || len(r.probes) == 0 {
		t.Errorf("%d flows, %d probes", later.Matched(), len(r.probes))
	}

	r = namedRig(t, "video.example")
	r.handshake()
	r.say(clientHello(t, "www.other.example"))
	r.exchange()
	r.seq, r.ack = 70_000, 90_000
	r.handshake()
	r.say(clientHello(t, "www.video.example"))
	r.exchange()
	if r.w.Matched() != 1 {
		t.Error("the next connection is taken for the one before")
	}
}

// What was told of a flow that is nobody's is looked at.
func TestNobodysFlowHasAnOwner(t *testing.T) {
	r := newRig(t, false, 4)
	r.w.Selector = service.Selector{Domains: domains{"other.example"}}
	r.handshake()
	r.exchange()
	if r.flow().Attachment != nil {
		t.Fatalf("%T is kept", r.flow().Attachment)
	}
	r.e.Owner(r.now, owner.Owner{Key: r.flow().Key, At: r.now, Process: trace.Process{PID: 7, Name: "x"}})
	if a, ok := r.flow().Attachment.(*attachment); !ok || a.owner == nil || a.owner.Process.PID != 7 {
		t.Errorf("%T is kept", r.flow().Attachment)
	}
}
