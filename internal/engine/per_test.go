package engine

import (
	"net/netip"
	"testing"
	"time"

	"servicetraceroute/internal/wire"
)

// next goes on with another flow of this host, from the given port to the given peer.
func (r *rig) next(port uint16, peer string) {
	r.me = netip.AddrPortFrom(r.me.Addr(), port)
	r.peer = netip.MustParseAddrPort(peer)
	r.handshake()
	r.exchange()
}

// sources are the ports from which probes went.
func (r *rig) sources() map[uint16]bool {
	all := map[uint16]bool{}
	for _, p := range r.probes {
		all[p.Src.Port()] = true
	}
	return all
}

// Of the flows that share a key one is traced, and the next one only when its time has
// come.
func TestPer(t *testing.T) {
	for name, test := range map[string]struct {
		per                    Per
		same, port, later, old bool // is traced: a flow to the same end, to another port, later, after Every
	}{
		"flow":        {PerFlow, true, true, true, true},
		"port":        {PerPort, false, true, false, true},
		"destination": {PerDestination, false, false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, false, 4)
			r.w.Per, r.w.Every = test.per, time.Minute
			r.next(40000, "203.0.113.7:443")
			r.next(40001, "203.0.113.7:443")
			r.next(40002, "203.0.113.7:80")
			r.after(30 * time.Second) // the first trace is over
			r.next(40003, "203.0.113.7:443")
			r.after(2 * time.Minute)
			r.next(40004, "203.0.113.7:443")
			got := r.sources()
			if !got[40000] || got[40001] != test.same || got[40002] != test.port || got[40003] != test.later || got[40004] != test.old {
				t.Errorf("probed: %v", got)
			}
		})
	}
}

func TestPerOnce(t *testing.T) {
	r := newRig(t, false, 4)
	r.w.Per, r.w.Every = PerDestination, -1
	r.next(40000, "203.0.113.7:443")
	r.after(24 * time.Hour)
	r.next(40001, "203.0.113.7:443")
	if got := r.sources(); len(got) != 1 {
		t.Errorf("probed: %v", got)
	}
}

// A trace can wait for the flow's first payload.
func TestOnPayload(t *testing.T) {
	r := newRig(t, false, 4)
	r.w.OnPayload = true
	r.handshake()
	r.in(segment{flags: wire.ACK})
	r.after(time.Second)
	if len(r.probes) != 0 {
		t.Fatal("probed before it carried any")
	}
	r.exchange()
	r.after(time.Second)
	if len(r.probes) == 0 {
		t.Error("not probed when it did")
	}
}

func TestPerWords(t *testing.T) {
	for p := PerFlow; p <= PerPort; p++ {
		text, err := p.MarshalText()
		var back Per
		if err != nil || back.UnmarshalText(text) != nil || back != p || p.String() != string(text) {
			t.Errorf("%v: %q, %v, %v", p, text, err, back)
		}
	}
	var p Per
	if _, err := Per(9).MarshalText(); err == nil || p.UnmarshalText([]byte("host")) == nil || Per(9).String() != "Per(9)" {
		t.Error("what is unknown is no error")
	}
}
