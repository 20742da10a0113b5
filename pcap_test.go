//go:build linux

package servicetraceroute_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"servicetraceroute"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/simnet"
	"servicetraceroute/trace"
)

// comments reads a packet file: the comments in it, and how many packets have none.
func comments(t *testing.T, b []byte) (words []string, plain int) {
	t.Helper()
	r, err := pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	var last time.Time
	for {
		_, ci, opts, err := r.ReadPacketDataWithOptions()
		if err == io.EOF {
			return words, plain
		}
		if err != nil {
			t.Fatal(err)
		}
		if ci.Timestamp.Before(last) {
			t.Errorf("%v after %v", ci.Timestamp, last)
		}
		last = ci.Timestamp
		if len(opts.Comments) == 0 {
			plain++
		}
		words = append(words, opts.Comments...)
	}
}

// The file says of every probe and reply what the record says.
func TestSimPcap(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := changed(wires(chain(4), 5*time.Millisecond), silence, "r2")
			var out bytes.Buffer // read after Close
			s := newSim(t, n, simnet.Options{Seed: 1}, servicetraceroute.Config{Pcap: &out})
			stop := s.watch(servicetraceroute.Selection{})
			s.start(chatty(v6))
			time.Sleep(8 * time.Second)
			all := stop()
			if err := s.tracer.Close(); err != nil {
				t.Fatal(err)
			}
			if len(all.traces) != 1 || all.traces[0].Stop != trace.StopDestination {
				t.Fatalf("%+v", all.traces)
			}
			words, plain := comments(t, out.Bytes())
			if all.stats.Pcap == nil || all.stats.Pcap.Dropped != 0 || plain < 10 {
				t.Errorf("%+v, %d packets of the flow", all.stats.Pcap, plain)
			}
			for _, h := range all.traces[0].Hops {
				probes, silent := 0, 0
				for _, w := range words {
					if strings.Contains(w, " ttl "+string(rune('0'+h.TTL))+" probe ") {
						probes++
						if strings.HasSuffix(w, ": silent") || strings.HasSuffix(w, ": cut short") {
							silent++
						}
					}
				}
				if probes != h.Sent+len(h.Replies) || silent != h.Sent-len(h.Replies) {
					t.Errorf("TTL %d: %d comments, %d silent, record %+v\n%s", h.TTL, probes, silent, h, strings.Join(words, "\n"))
				}
			}
		})
	}
}

// A writer that fails ends the packets, not the traces; Close says so.
func TestSimPcapFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, err := simnet.New(chain(3), simnet.Options{Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer net.Close()
		cfg := servicetraceroute.Config{Pcap: broken{}}
		if cfg.Source, cfg.Sink, err = net.Tap("client"); err != nil {
			t.Fatal(err)
		}
		tracer, err := servicetraceroute.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		s := &sim{t: t, net: net, tracer: tracer}
		stop := s.watch(servicetraceroute.Selection{})
		s.start(chatty(false))
		time.Sleep(8 * time.Second)
		all := stop()
		if len(all.traces) != 1 || !all.traces[0].Complete {
			t.Errorf("%+v", all.traces)
		}
		if p := all.stats.Pcap; p == nil || p.Written != 0 || p.Dropped == 0 {
			t.Errorf("%+v", p)
		}
		if err := tracer.Close(); !errors.Is(err, io.ErrShortWrite) || !strings.Contains(err.Error(), "Config.Pcap") {
			t.Errorf("%v", err)
		}
	})
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// chain is a client, n routers r1 to rn and a server in a row.
func chain(n int) scenario.Network {
	net := scenario.Network{Name: "chain", Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}}}
	at := "client"
	for i := range n {
		next := "r" + string(rune('1'+i))
		net.Nodes = append(net.Nodes, scenario.Node{Name: next, Kind: scenario.Router})
		net.Links = append(net.Links, scenario.Link{A: at, B: next})
		at = next
	}
	net.Nodes = append(net.Nodes, scenario.Node{Name: "server", Kind: scenario.Host})
	net.Links = append(net.Links, scenario.Link{A: at, B: "server"})
	return net
}
