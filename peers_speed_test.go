//go:build linux && peers

package servicetraceroute_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/trace"
)

// otherTools are those of Debian, with as many probes a hop as they send by themselves, and
// with one where they can. The network captured tells when they were answered.
var otherTools = []struct {
	name string
	argv []string // %s is the server
	slow bool     // it waits for silent routers one after the other
}{
	{"traceroute, UDP", []string{"traceroute", "-n", "%s"}, false},
	{"traceroute, TCP", []string{"traceroute", "-n", "-T", "-p", "443", "%s"}, false},
	{"traceroute, TCP, one probe a hop, 32 at once", []string{"traceroute", "-n", "-T", "-p", "443", "-q", "1", "-N", "32", "%s"}, false},
	{"tcptraceroute", []string{"tcptraceroute", "-n", "%s", "443"}, true},
	{"tcptraceroute, one probe a hop", []string{"tcptraceroute", "-n", "-q", "1", "%s", "443"}, true},
	{"mtr, ICMP, one cycle", []string{"mtr", "-n", "-r", "-c", "1", "%s"}, false},
	{"mtr, TCP, one cycle", []string{"mtr", "-n", "-r", "-c", "1", "-T", "-P", "443", "%s"}, false},
	{"scamper, UDP, Paris", []string{"scamper", "-I", "trace -P udp-paris %s"}, true},
	{"scamper, TCP acknowledgements", []string{"scamper", "-I", "trace -P tcp-ack -d 443 %s"}, true},
	{"dublin-traceroute, one path", []string{"dublin-traceroute", "-n", "1", "%s"}, true},
}

// toolTiming is one run of another tool.
type toolTiming struct {
	routers time.Duration // from its start to the first answer of the last router that answers
	missing int           // routers that answer, and did not
	whole   time.Duration // from its start to its end
	crashed bool          // a signal ended it: nothing to be seen here
}

// TestPeersSpeed runs the tools that others wrote on the network of TestSpeed: how soon
// every router that answers has done so.
func TestPeersSpeed(t *testing.T) {
	l := labtest.Start(t, longWay(0))
	server, err := peer.ServeTCP(t.Context(), l.Node("server"), peer.TCPConfig{Port: 443})
	if err != nil {
		t.Fatal(err)
	}
	runs := 1
	if full() {
		runs = 3
	}
	var b strings.Builder
	b.WriteString("# Speed beside other tools\n\n12 hops, 60 ms, routers 6, 8 and 10 silent, no limits; an idle network, each tool as Debian 12 has it. \"Routers\": from a tool's start to the\n" +
		"first answer of the last of the 8 routers that answer (medians), as captured. Ours begin with a flow's handshake, whose last acknowledgement is what they are measured from. A round trip takes 60 ms.\n\n" +
		"    SERVICE_TRACEROUTE_FULL=1 go test -tags peers -run TestPeersSpeed .\n\n" +
		"| tool | runs | routers | round trips | routers that were not found | over |\n|---|---|---|---|---|---|\n")
	row := func(name string, all []toolTiming) {
		slices.SortFunc(all, func(a, b toolTiming) int { return int(a.routers - b.routers) })
		m := all[len(all)/2]
		fmt.Fprintf(&b, "| %s | %d | %.0f ms | %.1f | %d | %.1f s |\n", name, len(all), 1e3*m.routers.Seconds(), m.routers.Seconds()/longRTT.Seconds(), m.missing, m.whole.Seconds())
	}
	for _, a := range []trace.Algorithm{trace.Adaptive, trace.Concurrent} {
		var all []toolTiming
		for range 3 * runs {
			m := measure(t, l, server, speedCase{algorithm: a}, false)
			if m.trace == nil {
				t.Fatal("no trace")
			}
			all = append(all, toolTiming{routers: m.routers, missing: m.missing(), whole: m.whole})
		}
		row(fmt.Sprintf("**service-traceroute**, %v", a), all)
		if worst := slices.MaxFunc(all, func(a, b toolTiming) int { return int(a.routers - b.routers) }); full() && a == trace.Adaptive && worst.routers > longRTT*3/2 {
			t.Errorf("the routers took %v", worst.routers)
		}
	}
	for _, tool := range otherTools {
		if tool.slow && !full() {
			continue
		}
		var all []toolTiming
		for range runs {
			all = append(all, timeTool(t, l, tool.argv))
			if tool.slow {
				break
			}
		}
		if all[0].crashed {
			fmt.Fprintf(&b, "| %s | %d | a signal ended it | | | |\n", tool.name, len(all))
			continue
		}
		row(tool.name, all)
	}
	evidence(t, "speed-peers", b.String())
}

// timeTool runs a tool to its end.
func timeTool(t *testing.T, l *lab.Lab, argv []string) (m toolTiming) {
	t.Helper()
	watch := startWatch(t, l.Node("client"))
	argv = slices.Clone(argv)
	for i := range argv {
		argv[i] = strings.Replace(argv[i], "%s", l.Node("server").Addr(false).String(), 1)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out bytes.Buffer
	began := time.Now()
	status, err := l.Node("client").Run(ctx, lab.Program{Argv: argv, Dir: t.TempDir(), Stdout: &out, Stderr: &out})
	m.whole = time.Since(began)
	watch.stop()
	if m.crashed = status < 0 && err == nil; err != nil || status > 0 {
		t.Errorf("%v: %v, status %d\n%s", argv, err, status, out.String())
	}
	for ttl := 1; ttl < longPath; ttl++ {
		if silentAt(ttl) {
			continue
		}
		addr := l.Layout().Nodes[fmt.Sprintf("r%d", ttl)].Interfaces[0].Addr4.Addr()
		at, ok := watch.answered[addr]
		if !ok || !said(out.String(), addr) {
			m.missing++
			continue
		}
		m.routers = max(m.routers, at.Sub(began))
	}
	t.Logf("%v: %+v", argv, m)
	return m
}

// said tells whether a tool has printed an address.
func said(out string, addr netip.Addr) bool {
	return regexp.MustCompile(`(^|[^0-9.])` + regexp.QuoteMeta(addr.String()) + `($|[^0-9.])`).MatchString(out)
}
