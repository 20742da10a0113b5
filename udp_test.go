//go:build linux

package servicetraceroute_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// open is the ladder without its firewall, which lets no UDP in.
func openLadder(stages int) scenario.Network {
	n := ladder(stages, scenario.ICMPLimit{})
	for i := range n.Nodes {
		n.Nodes[i].Firewall = nil
	}
	return n
}

// newUDPField is a field whose server echoes datagrams.
func newUDPField(t *testing.T, n scenario.Network) *field {
	f := newBareField(t, n, servicetraceroute.Config{})
	var err error
	if f.server, err = peer.ServeUDP(t.Context(), f.lab.Node("server"), peer.UDPConfig{Port: 4433}); err != nil {
		t.Fatal(err)
	}
	return f
}

// ask plays UDP clients, one after another begun, and returns what each saw.
func (f *field) ask(cfg peer.ExchangeConfig, ipv6 bool, clients int) []peer.Exchange {
	f.t.Helper()
	cfg.Server = netip.AddrPortFrom(f.lab.Node("server").Addr(ipv6), f.server.Addr.Port())
	out := make([]peer.Exchange, clients)
	var wg sync.WaitGroup
	for i := range out {
		time.Sleep(50 * time.Millisecond)
		wg.Go(func() {
			var err error
			if out[i], err = peer.RunExchange(f.t.Context(), f.lab.Node("client"), cfg); err != nil {
				f.t.Error(err)
			}
		})
	}
	wg.Wait()
	return out
}

// of leaves only the traces of these clients' flows: those of the round before are not
// forgotten at once.
func of(got found, clients []peer.Exchange) found {
	got.traces = slices.DeleteFunc(got.traces, func(tr *trace.Trace) bool {
		return !slices.ContainsFunc(clients, func(x peer.Exchange) bool { return x.Local.Port() == tr.Flow.Src.Port() })
	})
	return got
}

// undisturbed checks that UDP clients saw their answers and nothing else, and that
// nothing came to the server but what they sent.
func (f *field) undisturbed(all []peer.Exchange, before peer.Counters) {
	f.t.Helper()
	sent := 0
	for _, x := range all {
		sent += x.Sent
		if x.Answered != x.Sent || x.Wrong+x.TimedOut+x.SendErrorCount+x.RecvErrorCount > 0 {
			f.t.Errorf("%v: %d of %d answered, %d wrong, errors %v %v", x.Local, x.Answered, x.Sent, x.Wrong, x.SendErrors, x.RecvErrors)
		}
	}
	after, err := peer.ReadCounters(f.t.Context(), f.lab.Node("server"))
	if err != nil {
		f.t.Fatal(err)
	}
	d := after.Delta(before)
	came := d["Udp.InDatagrams"] + d["Udp6.InDatagrams"]
	stray := d["Udp.NoPorts"] + d["Udp.InErrors"] + d["Udp.InCsumErrors"] + d["Udp6.NoPorts"] + d["Udp6.InErrors"] + d["Udp6.InCsumErrors"]
	if came == 0 {
		came = d["Udp6InDatagrams"]
	}
	if int(came) != sent || stray != 0 {
		f.t.Errorf("%d datagrams came to the server, %d were sent: %v", came, sent, d)
	}
}

// TestUDPPaths traces UDP flows across load balancers. What is shown is what the routers
// did, up to the fence two hops before the server, and nobody gets a datagram that no
// application sent.
func TestUDPPaths(t *testing.T) {
	const stages, clients = 3, 8 // seven routers, the server is the eighth hop
	f := newUDPField(t, openLadder(stages))
	for _, test := range []struct {
		name        string
		ipv6        bool
		unconnected bool
	}{{"IPv4", false, false}, {"IPv6", true, false}, {"IPv4, not connected", false, true}, {"IPv6, not connected", true, true}} {
		t.Run(test.name, func(t *testing.T) {
			before, err := peer.ReadCounters(t.Context(), f.lab.Node("server"))
			if err != nil {
				t.Fatal(err)
			}
			stop := f.watch(servicetraceroute.Selection{
				Protos: []trace.Proto{trace.UDP}, Params: servicetraceroute.Params{UDPProbe: servicetraceroute.UDPAlways},
			})
			all := f.ask(peer.ExchangeConfig{Count: 40, Size: 200, Every: 100 * time.Millisecond, Unconnected: test.unconnected}, test.ipv6, clients)
			got := of(stop(), all)
			v := f.judge(f.truth(), got.traces)
			t.Log(v)
			f.undisturbed(all, before)
			for _, tr := range got.traces {
				if tr.Stop != trace.StopFence || len(tr.Hops) != 2*stages+1-1 || tr.Reached || tr.Observed.RTT <= 0 {
					t.Errorf("%s", describe(tr))
				}
				for _, h := range tr.Hops {
					if len(h.Replies) == 0 {
						t.Errorf("TTL %d is silent: %s", h.TTL, describe(tr))
					}
				}
			}
			if len(got.traces) != clients {
				t.Errorf("%d traces of %d flows", len(got.traces), clients)
			}
		})
	}
}

// A socket that hears of ICMP errors is left alone, also when it is not connected.
func TestUDPRecvErr(t *testing.T) {
	f := newUDPField(t, openLadder(2))
	for _, unconnected := range []bool{false, true} {
		for _, ipv6 := range []bool{false, true} {
			before, err := peer.ReadCounters(t.Context(), f.lab.Node("server"))
			if err != nil {
				t.Fatal(err)
			}
			stop := f.watch(servicetraceroute.Selection{
				Protos: []trace.Proto{trace.UDP}, Params: servicetraceroute.Params{UDPProbe: servicetraceroute.UDPAlways},
			})
			all := f.ask(peer.ExchangeConfig{
				Count: 20, Size: 200, Every: 50 * time.Millisecond, Unconnected: unconnected, Socket: peer.Socket{RecvErr: true},
			}, ipv6, 2)
			got := of(stop(), all)
			f.undisturbed(all, before)
			for _, tr := range got.traces {
				if tr.Stop != trace.StopRefused || tr.Reason != trace.ReasonRecvErr {
					t.Errorf("%v %v", tr.Reason, describe(tr))
				}
			}
			if len(got.traces) != 2 {
				t.Errorf("%d traces", len(got.traces))
			}
			truth := f.truth()
			for _, x := range all {
				if sent := truth.Sent(observe.Flow{Proto: 17, Src: x.Local, Dst: x.Remote}, 40); x.Local.Addr().IsValid() && !x.Local.Addr().IsUnspecified() && len(sent) > 0 {
					t.Errorf("%d probes of %v", len(sent), x.Local)
				}
			}
		}
	}
}

// Questions and answers are probed only where that was asked for: a policy, or
// TraceConn, which names the very flow.
func TestUDPAsked(t *testing.T) {
	f := newUDPField(t, openLadder(2))
	stop := f.watch(servicetraceroute.Selection{Protos: []trace.Proto{trace.UDP}})
	f.ask(peer.ExchangeConfig{Count: 10, Size: 60, Every: 50 * time.Millisecond}, false, 1)
	got := stop()
	if len(got.traces) != 1 || got.traces[0].Reason != trace.ReasonProtocol || got.stats.Probes.Sent != 0 {
		t.Errorf("%+v, %d probes", got.traces, got.stats.Probes.Sent)
	}
	server := net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.lab.Node("server").Addr(false), 4433))
	var conn *net.UDPConn
	if err := f.lab.Node("client").Do(func() (err error) { conn, err = net.DialUDP("udp", nil, server); return err }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	chatting := make(chan struct{})
	go func() {
		defer close(chatting)
		b := make([]byte, 100)
		for ctx.Err() == nil {
			_, _ = conn.Write(b)
			_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if _, err := conn.Read(b); err != nil && ctx.Err() == nil {
				t.Errorf("the application got %v", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	tr, err := f.tracer.TraceConn(ctx, conn)
	cancel()
	<-chatting
	if err != nil || tr.Stop != trace.StopFence || len(tr.Hops) != 4 {
		t.Fatalf("%v %v", err, tr)
	}
	f.judge(f.truth(), []*trace.Trace{tr})
}
