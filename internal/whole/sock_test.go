//go:build linux

package whole

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"servicetraceroute"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/observe"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/ladder"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// silentTTL is where nobody answers in the network of TestSock, serverTTL where the server is.
const silentTTL, serverTTL = 6, 7

// newBalanced is a field with two stages of three-way balancing, over IPv6 also by flow
// label, and a silent router before the server.
func newBalanced(t *testing.T) *field {
	t.Helper()
	n := scenario.Network{Name: "sock", Nodes: []scenario.Node{{Name: "client", Kind: scenario.Host}, {Name: "r0", Kind: scenario.Router, Hash: scenario.HashFlowLabel}},
		Links: []scenario.Link{{A: "client", B: "r0"}}}
	for s := range 2 {
		from, to := fmt.Sprintf("r%d", s), fmt.Sprintf("r%d", s+1)
		n.Nodes = append(n.Nodes, scenario.Node{Name: to, Kind: scenario.Router, Hash: scenario.HashFlowLabel})
		for b := range 3 {
			mid := fmt.Sprintf("m%d%c", s, 'a'+b)
			n.Nodes = append(n.Nodes, scenario.Node{Name: mid, Kind: scenario.Router})
			n.Links = append(n.Links, scenario.Link{A: from, B: mid}, scenario.Link{A: mid, B: to})
		}
	}
	n.Nodes = append(n.Nodes, scenario.Node{Name: "quiet", Kind: scenario.Router, Silent: true}, scenario.Node{Name: "server", Kind: scenario.Host})
	n.Links = append(n.Links, scenario.Link{A: "r2", B: "quiet"}, scenario.Link{A: "quiet", B: "server"})
	f := &field{bin: filepath.Join(open(t), "service-traceroute")}
	install(t, build(t), f.bin, nil)
	f.Lab = labtest.Start(t, n)
	f.server = f.Node("server").Addr(false)
	for _, node := range n.Nodes {
		if err := observe.Start(t.Context(), f.Node(node.Name), observe.Config{Sample: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []peer.HTTPSConfig{{Port: 443}, {Port: 80, Plain: true}} {
		if _, err := peer.ServeHTTPS(t.Context(), f.Node("server"), c); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// TestSock dials as a user without any capability.
func TestSock(t *testing.T) {
	t.Parallel()
	othersExist(t)
	f := newBalanced(t)
	t.Run("paths", f.sockPaths)
	t.Run("refused", f.sockRefused)
	t.Run("ends", f.sockEnds)
	t.Run("privileges", f.sockPrivileges)
	t.Run("connection", f.sockConnection)
}

// asNobody has a command run as uid 65534.
func asNobody(cmd *exec.Cmd) {
	cmd.Dir = "/"
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
}

// nobody runs the command as uid 65534 in the client's namespace.
func (f *field) nobody(t *testing.T, args ...string) result {
	t.Helper()
	p := start(t, f.Node("client").Do, asNobody, append([]string{f.bin}, args...)...)
	begun := time.Now()
	status := p.status(t)
	return result{status, p.stdout.String(), p.stderr.String(), p.ended.Sub(begun)}
}

// read are the two records of a run, as their schema wants them.
func (r result) read(t *testing.T) (tr *trace.Trace, s *trace.Stats) {
	t.Helper()
	schema, err := jsonschema.NewCompiler().Compile("../../docs/schema/service-traceroute-1.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(r.stdout) {
		if record, err := jsonschema.UnmarshalJSON(strings.NewReader(line)); err != nil || schema.Validate(record) != nil {
			t.Errorf("%v, %v: %s", err, schema.Validate(record), line)
		}
		ev, err := trace.Unmarshal([]byte(line))
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		switch ev := ev.(type) {
		case *trace.Trace:
			tr = ev
		case *trace.Stats:
			s = ev
		}
	}
	if tr == nil || s == nil {
		t.Fatalf("status %d, records are missing:\n%s%s", r.status, r.stdout, r.stderr)
	}
	return tr, s
}

// Each hop is the router that the connection's own packets passed there.
func (f *field) sockPaths(t *testing.T) {
	var traces []*trace.Trace
	const fast = "--timeout=200ms"
	v6 := f.Node("server").Addr(true)
	for range 4 {
		for _, test := range []struct {
			flags  []string
			stderr string
		}{
			{[]string{fmt.Sprint(f.server), "--insecure", "--request"}, "answer: HTTP/2.0"},
			{[]string{netip.AddrPortFrom(f.server, 80).String(), "--plain", "--request", "--backend", "sock"}, "answer: HTTP/1.1"},
			{[]string{v6.String(), "--insecure"}, "TLS 1.3, h2"},
			{[]string{netip.AddrPortFrom(v6, 80).String(), "--plain", "--request"}, "answer: HTTP/1.1"},
		} {
			r := f.nobody(t, append([]string{"dial", "--output", "json", "--label", "x", fast}, test.flags...)...)
			tr, s := r.read(t)
			picked := strings.Contains(r.stderr, "packets cannot be seen (") && strings.Contains(r.stderr, "operation not permitted")
			asked := slices.Contains(test.flags, "sock")
			if r.status != 0 || !strings.Contains(r.stderr, test.stderr) || picked == asked {
				t.Errorf("%v: status %d\n%s", test.flags, r.status, r.stderr)
			}
			if s.Backend != "sock" || (s.Reason == "asked for") != asked || !asked && !strings.HasPrefix(s.Reason, "auto: ") || s.Probes.Sent == 0 {
				t.Errorf("%+v", s)
			}
			if tr.Stop != trace.StopDestination || !tr.Complete || tr.PathID == "" || tr.Label != "x" || tr.Service.By != trace.ByDial ||
				tr.Flow.Interface != "eth0" || tr.Process == nil || tr.Process.Name != "service-traceroute" || tr.Process.Cgroup == "" ||
				tr.Destination.TTL != serverTTL || tr.Destination.By != trace.DestinationByAck || tr.Observed.RTT != tr.Destination.RTT {
				t.Errorf("%s", r.stdout)
			}
			traces = append(traces, tr)
		}
	}
	f.sockTruth(t, 6, traces, func(tr *trace.Trace, h trace.Hop, answered []observe.Hop, nodes []string) {
		switch {
		case h.TTL == tr.Hops[len(tr.Hops)-1].TTL: // the destination
		case h.TTL == silentTTL:
			if len(h.Replies) != 0 || h.Sent != 3 {
				t.Errorf("%v: the silent hop is %+v", tr.Flow, h)
			}
		case len(h.Replies) != 1 || len(answered) != 1 || h.Replies[0].Addr != answered[0].Addr || answered[0].Node != nodes[h.TTL-1]:
			t.Errorf("%v: TTL %d shows %+v; %v answered, the connection passed %v", tr.Flow, h.TTL, h.Replies, answered, nodes)
		case h.Replies[0].RTT <= 0 || h.Replies[0].RTT > 200*time.Millisecond || h.Replies[0].ReplyTTL != 65-h.TTL:
			t.Errorf("%v: %+v", tr.Flow, h.Replies[0])
		}
	})
}

// observed is what every host and router saw.
func (f *field) observed(t *testing.T) *observe.Truth {
	t.Helper()
	logs := map[string]observe.Log{}
	for _, name := range []string{"client", "r0", "m0a", "m0b", "m0c", "r1", "m1a", "m1b", "m1c", "r2", "quiet", "server"} {
		l, err := observe.Fetch(t.Context(), f.Node(name), false)
		if err != nil {
			t.Fatal(err)
		}
		logs[name] = l
	}
	return observe.NewTruth(logs, false)
}

// sockTruth compares traces with what the routers saw. Each hop is held by check against the
// answers that left routers for it; nodes are those that the connection passed.
func (f *field) sockTruth(t *testing.T, proto uint8, traces []*trace.Trace, check func(tr *trace.Trace, h trace.Hop, answered []observe.Hop, nodes []string)) {
	t.Helper()
	truth := f.observed(t)
	ways := map[string]bool{}
	for _, tr := range traces {
		flow := observe.Flow{Proto: proto, Src: tr.Flow.Src, Dst: tr.Flow.Dst}
		path := truth.Path(flow, 40)
		if len(path) != 1 || len(path[0].Nodes) != serverTTL-1 {
			t.Errorf("%v: the connection went %+v", flow, path)
			continue
		}
		nodes := path[0].Nodes
		ways[fmt.Sprint(flow.Dst.Addr().Is6(), nodes)] = true
		hops := truth.Hops(flow, serverTTL-1)
		for _, h := range tr.Hops {
			check(tr, h, hops[uint8(h.TTL)], nodes)
		}
	}
	if len(ways) < 4 {
		t.Errorf("nothing was balanced: %v", ways)
	}
}

// A port where nobody listens is the destination's answer, and no connection.
func (f *field) sockRefused(t *testing.T) {
	r := f.nobody(t, "dial", "--output", "json", "--timeout", "200ms", netip.AddrPortFrom(f.server, 9).String())
	tr, _ := r.read(t)
	last := tr.Hops[len(tr.Hops)-1]
	if tr.Stop != trace.StopDestination || !tr.Reached || last.TTL != serverTTL || last.Replies[0].Kind != trace.TCPRst || last.Replies[0].Addr != f.server {
		t.Errorf("%s", r.stdout)
	}
	if r.status != 1 || !strings.Contains(r.stderr, "error: dial tcp "+netip.AddrPortFrom(f.server, 9).String()+": connect: connection refused\nhint: ") {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
}

// Where the trace ends before the destination, the connection is made all the same.
func (f *field) sockEnds(t *testing.T) {
	for _, test := range []struct {
		name    string
		flags   []string
		stop    trace.Stop
		hops    int
		passive bool
	}{
		{"max-ttl", []string{"--max-ttl", "2"}, trace.StopMaxTTL, 2, true},
		{"max-silent", []string{"--first-ttl", "6", "--max-silent", "1", "--probes", "1"}, trace.StopSilentHops, 1, true},
		{"border", []string{"--border", "0.0.0.0/0"}, trace.StopBorder, 1, false},
		{"exclude", []string{"--exclude", f.server.String()}, trace.StopRefused, 0, false},
	} {
		r := f.nobody(t, append([]string{"dial", "--output", "json", "--timeout", "200ms", f.server.String(), "--insecure", "--request"}, test.flags...)...)
		tr, _ := r.read(t)
		if r.status != 0 || !strings.Contains(r.stderr, "answer: HTTP/2.0") || tr.Stop != test.stop || len(tr.Hops) != test.hops || tr.Reached ||
			(tr.Destination != nil) != test.passive || tr.Observed.RTT <= 0 {
			t.Errorf("%s: status %d\n%s%s", test.name, r.status, r.stdout, r.stderr)
		}
	}
	r := f.nobody(t, "dial", "--output", "json", f.server.String(), "--insecure", "--first-ttl", "6", "--duration", "500ms")
	if tr, _ := r.read(t); r.status != 0 || tr.Stop != trace.StopDeadline || tr.Complete || r.took > 5*time.Second {
		t.Errorf("duration: status %d after %v\n%s%s", r.status, r.took, r.stdout, r.stderr)
	}
}

// What takes packets says so, as before; a Tracer opens, and refuses.
func (f *field) sockPrivileges(t *testing.T) {
	for _, args := range [][]string{
		{"trace", "--host", "192.0.2.1"}, {"dial", "--quic", f.server.String(), "--backend", "afpacket"}, {"dial", f.server.String(), "--backend", "afpacket"},
		{"dial", f.server.String(), "--pcap", "/nowhere/x"}, {"dial", "--quic", f.server.String(), "--pcap", "/nowhere/x"},
	} {
		r := f.nobody(t, args...)
		if r.status != 1 || !strings.Contains(r.stderr, "operation not permitted\nhint: ") || r.stdout != "" {
			t.Errorf("%v: status %d\n%s", args, r.status, r.stderr)
		}
	}
	err := f.Node("client").Do(func() error {
		tracer, err := servicetraceroute.New(servicetraceroute.Config{Backend: servicetraceroute.BackendSock})
		if err != nil {
			return err
		}
		conn, err := net.Dial("tcp", netip.AddrPortFrom(f.server, 80).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		tr, err := tracer.TraceConn(t.Context(), conn)
		if err != nil || tr.Stop != trace.StopRefused || tr.Reason != trace.ReasonCapability || tr.Flow.Src.String() != conn.LocalAddr().String() {
			t.Errorf("%+v, %v", tr, err)
		}
		if s := tracer.Stats(); s.Backend != "sock" || s.Reason != "asked for" {
			t.Errorf("%+v", s)
		}
		return tracer.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSockFar: a destination whose answer comes after its SYN was given up is connected to
// all the same, and only the trace has no end.
func TestSockFar(t *testing.T) {
	t.Parallel()
	othersExist(t)
	f := &field{bin: filepath.Join(open(t), "service-traceroute")}
	install(t, build(t), f.bin, nil)
	f.Lab = labtest.Start(t, scenario.Network{Name: "sockfar", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "r1", Kind: scenario.Router}, {Name: "server", Kind: scenario.Host},
	}, Links: []scenario.Link{{A: "client", B: "r1"}, {A: "r1", B: "server", Delay: 550 * time.Millisecond}}})
	if _, err := peer.ServeHTTPS(t.Context(), f.Node("server"), peer.HTTPSConfig{Port: 80, Plain: true}); err != nil {
		t.Fatal(err)
	}
	r := f.nobody(t, "dial", "--output", "json", netip.AddrPortFrom(f.Node("server").Addr(false), 80).String(), "--plain", "--request", "--max-silent", "2", "--probes", "1")
	tr, _ := r.read(t)
	if r.status != 0 || !strings.Contains(r.stderr, "answer: HTTP/1.1") || tr.Stop != trace.StopSilentHops || tr.Reached ||
		tr.Destination == nil || tr.Destination.By != trace.DestinationByPassive || tr.Observed.RTT < 1100*time.Millisecond {
		t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
	}
}

// TestSockNAT: a gateway that translates, and a firewall that drops what its connection
// tracking calls invalid, take the SYNs of one connection for one.
func TestSockNAT(t *testing.T) {
	t.Parallel()
	othersExist(t)
	f := &field{bin: filepath.Join(open(t), "service-traceroute")}
	install(t, build(t), f.bin, nil)
	f.Lab = labtest.Start(t, scenario.Network{Name: "socknat", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "server", Kind: scenario.Host},
		{Name: "r1", Kind: scenario.Router, Firewall: &scenario.Firewall{AllowTCP: []uint16{443}}},
		{Name: "gw", Kind: scenario.Router, NAT: &scenario.NAT{Outside: "gw-r1", FullyRandom: true, IPv6: true}},
	}, Links: []scenario.Link{{A: "client", B: "gw"}, {A: "gw", B: "r1"}, {A: "r1", B: "server"}}})
	if _, err := peer.ServeHTTPS(t.Context(), f.Node("server"), peer.HTTPSConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	for _, server := range []netip.Addr{f.Node("server").Addr(false), f.Node("server").Addr(true)} {
		r := f.nobody(t, "dial", "--output", "json", server.String(), "--insecure", "--request")
		tr, _ := r.read(t)
		if r.status != 0 || !strings.Contains(r.stderr, "answer: HTTP/2.0") || !tr.Complete || len(tr.Hops) != 3 || !tr.Reached {
			t.Errorf("status %d\n%s%s", r.status, r.stdout, r.stderr)
		}
	}
}

// The connection carries what is written, both ways, and its socket hears of no ICMP error.
func (f *field) sockConnection(t *testing.T) {
	sent := make([]byte, 300_000)
	_, _ = rand.Read(sent)
	for _, server := range []netip.Addr{f.server, f.Node("server").Addr(true)} {
		var conn *net.TCPConn
		err := f.Node("client").Do(func() error {
			l, err := ladder.Open(netip.AddrPortFrom(server, 80))
			if err != nil {
				return err
			}
			defer l.Close()
			cfg := ladder.Config{FirstTTL: 1, MaxTTL: 32, Probes: 1, Timeout: 200 * time.Millisecond}
			_, conn, err = ladder.Run(t.Context(), cfg, l, server)
			if err == nil && (conn == nil || conn.LocalAddr().String() != l.Local().String()) {
				err = errors.New("no connection from that port")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		give := func(context.Context, string, string) (net.Conn, error) { return conn, nil }
		client := http.Client{Transport: &http.Transport{DialContext: give, DisableKeepAlives: true}, Timeout: patience}
		resp, err := client.Post("http://"+netip.AddrPortFrom(server, 80).String()+"/echo", "", bytes.NewReader(sent))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%v: %d bytes came back, %v", server, len(got), err)
		}
	}
}
