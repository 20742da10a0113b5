package simnet_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
)

// network builds a topology from links "a-b"; names that begin with c or s are
// hosts.
func network(links ...string) scenario.Network {
	n := scenario.Network{Name: "test"}
	seen := map[string]bool{}
	for _, l := range links {
		a, b, _ := strings.Cut(l, "-")
		n.Links = append(n.Links, scenario.Link{A: a, B: b})
		for _, name := range []string{a, b} {
			if seen[name] {
				continue
			}
			seen[name] = true
			kind := scenario.Router
			if name[0] == 'c' || name[0] == 's' {
				kind = scenario.Host
			}
			n.Nodes = append(n.Nodes, scenario.Node{Name: name, Kind: kind})
		}
	}
	return n
}

func start(t *testing.T, n scenario.Network, opts simnet.Options) *simnet.Net {
	t.Helper()
	s, err := simnet.New(n, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func flow(t *testing.T, s *simnet.Net, w scenario.Workload) *simnet.Flow {
	t.Helper()
	if w.Client == "" {
		w.Client, w.Server, w.Port = "c", "s", 443
	}
	f, err := s.Start(w)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func families(t *testing.T, f func(t *testing.T, ipv6 bool)) {
	for name, ipv6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, ipv6) })
		})
	}
}

// Links that rewrite are the lab's. A network in memory must not pass for one.
func TestRewritingLinks(t *testing.T) {
	for _, l := range []scenario.Link{{SeqShift: 1}, {QuotesUntranslated: true}, {ShortQuotes: true}} {
		n := network("c-s")
		l.A, l.B = "c", "s"
		n.Links[0] = l
		if _, err := simnet.New(n, simnet.Options{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%+v: %v", l, err)
		}
		s := start(t, network("c-s"), simnet.Options{})
		if err := s.SetLink("c-s", func(is *scenario.Link) { *is = l }); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%+v: %v", l, err)
		}
		if is := s.Layout().Links["c-s"].Link; is.Rewrites() {
			t.Errorf("the refused change was made: %+v", is)
		}
		if err := s.SetLink("c-x", func(*scenario.Link) {}); err == nil || errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("no such link: %v", err)
		}
	}
}

func TestWorkloads(t *testing.T) {
	for name, w := range map[string]scenario.Workload{
		"download":  {Traffic: scenario.Download, Bytes: 2 << 20},
		"timed":     {Traffic: scenario.Download, Duration: 2 * time.Second},
		"upload":    {Traffic: scenario.Upload, Bytes: 2 << 20},
		"slow":      {Traffic: scenario.SlowReader, Bytes: 1 << 20},
		"requests":  {Traffic: scenario.RequestResponse, Bytes: 20000, Every: 50 * time.Millisecond, Duration: 2 * time.Second},
		"one byte":  {Traffic: scenario.OneByte, Bytes: 10, Every: 10 * time.Millisecond},
		"idle":      {Traffic: scenario.Idle, Duration: 10 * time.Second},
		"plain TCP": {Traffic: scenario.Download, Bytes: 2 << 20, NoSACK: true, NoTimestamps: true, NoWindowScale: true},
	} {
		t.Run(name, func(t *testing.T) {
			families(t, func(t *testing.T, ipv6 bool) {
				n := network("c-r1", "r1-r2", "r2-s")
				n.Links[1].Delay, n.Links[1].Rate = 10*time.Millisecond, 40e6
				s := start(t, n, simnet.Options{})
				w.IPv6 = ipv6
				f := flow(t, s, w)
				<-f.Done()
				r := f.Result()
				if !r.Intact || r.Client.Counters.Harm()+r.Server.Counters.Harm() > 0 {
					t.Errorf("%+v\n%+v", r.Client.Counters, r.Server.Counters)
				}
			})
		})
	}
}
