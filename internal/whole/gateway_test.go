//go:build linux

package whole

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// TestGateway runs the command on a gateway that masquerades: it traces a client's
// connection, by the client's address, of which the client hears nothing. It keeps the
// capability that takes, beside those that tell whose flows are.
func TestGateway(t *testing.T) {
	t.Parallel()
	f := &field{bin: build(t)}
	n := scenario.Network{Name: "gateway", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "gw", Kind: scenario.Router, NAT: &scenario.NAT{Outside: "gw-r1"}},
		{Name: "r1", Kind: scenario.Router}, {Name: "r2", Kind: scenario.Router}, {Name: "r3", Kind: scenario.Router},
		{Name: "server", Kind: scenario.Host},
	}}
	for i := range len(n.Nodes) - 1 {
		n.Links = append(n.Links, scenario.Link{A: n.Nodes[i].Name, B: n.Nodes[i+1].Name})
	}
	f.Lab = labtest.Start(t, n)
	f.server = f.Node("server").Addr(false)
	if _, err := peer.ServeHTTPS(t.Context(), f.Node("server"), peer.HTTPSConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	before, err := peer.ReadCounters(t.Context(), f.Node("client"))
	if err != nil {
		t.Fatal(err)
	}
	client := f.Node("client").Addr(false)
	file := filepath.Join(t.TempDir(), "paths.ndjson")
	p := start(t, f.Node("gw").Do, nil, f.bin, "trace", "--host", client.String(), "--direction", "transit", "--output", "json", "-o", file)
	p.stderr.await(t, "watching")
	for _, s := range threads(t, f.bin) {
		for _, want := range []string{"CapEff:\t0000000000081004\n", "CapPrm:\t0000000000081004\n", "CapInh:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
			if !strings.Contains(s, want) {
				t.Errorf("lacks %q:\n%s", want, s)
			}
		}
	}
	f.download(t, 3*time.Second)
	if status, _ := p.signal(t, syscall.SIGINT, false); status != 0 {
		t.Errorf("status %d: %s", status, p.stderr.String())
	}
	traces := parsed(t, file)
	if len(traces) != 1 {
		t.Fatalf("%d traces", len(traces))
	}
	tr := traces[0]
	if tr.Flow.Src.Addr() != client || tr.Flow.NAT == nil || tr.Flow.Direction != trace.Transit || tr.Stop != trace.StopFence || len(tr.Hops) != 2 || tr.Service.By != trace.ByAddress {
		t.Errorf("%+v", tr)
	}
	f.gatewayWithoutNetAdmin(t)
	after, err := peer.ReadCounters(t.Context(), f.Node("client"))
	if err != nil {
		t.Fatal(err)
	}
	if d := after.Delta(before); d["Icmp.InMsgs"] != 0 {
		t.Errorf("the client heard %d errors", d["Icmp.InMsgs"])
	}
}

// gatewayWithoutNetAdmin traces nothing, and says why: what is translated cannot be told from
// the gateway's own, and of what is not (IPv6 here) the client would hear.
func (f *field) gatewayWithoutNetAdmin(t *testing.T) {
	server := f.Node("server").Addr(true)
	file := filepath.Join(t.TempDir(), "paths.ndjson")
	p := start(t, f.Node("gw").Do, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, envConfined+"=1") }, self(t),
		f.bin, "trace", "--host", f.server.String(), "--host", server.String(), "--direction", "transit", "--output", "json", "-o", file)
	p.stderr.await(t, "watching")
	f.download(t, time.Second)
	got, err := peer.Get(t.Context(), f.Node("client"), peer.GetConfig{URL: fmt.Sprintf("https://[%v]/slow/400000?for=1s", server)})
	if err != nil || len(got) != 1 || !got[0].Intact {
		t.Errorf("%+v, %v", got, err)
	}
	eventually(t, "a trace", func() bool { return len(parsed(t, file)) > 0 })
	p.signal(t, syscall.SIGINT, false)
	all := parsed(t, file)
	if len(all) != 1 || all[0].Flow.Dst.Addr() != server || all[0].Stop != trace.StopRefused || all[0].Reason != trace.ReasonCapability {
		t.Errorf("%+v", all)
	}
	text := p.stderr.String()
	for _, want := range []string{"warning: forwarded flows are refused: ", "warning: forwarded flows whose addresses", "\nhint: "} {
		if strings.Count(text, want) != 1 {
			t.Errorf("want %q once in:\n%s", want, text)
		}
	}
}
