//go:build linux

package servicetraceroute_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

const envShort = "SERVICE_TRACEROUTE_TEST_SHORT_FLOWS"

// shortFlows plays a program whose connections live a few milliseconds: it says
// its process's number and each local port.
func shortFlows() {
	words := strings.Fields(os.Getenv(envShort)) // address, number, life
	if len(words) != 3 {
		return
	}
	count, _ := strconv.Atoi(words[1])
	life, _ := time.ParseDuration(words[2])
	fmt.Println(os.Getpid())
	for range count {
		c, err := net.Dial("tcp", words[0])
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		time.Sleep(life)
		fmt.Println(c.LocalAddr().(*net.TCPAddr).Port)
		c.Close()
		time.Sleep(time.Millisecond)
	}
	os.Exit(0)
}

// ownerNetwork is a client, two routers and a server.
func ownerNetwork() scenario.Network {
	return scenario.Network{Name: "owner", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "r1", Kind: scenario.Router}, {Name: "r2", Kind: scenario.Router},
		{Name: "server", Kind: scenario.Host},
	}, Links: []scenario.Link{{A: "client", B: "r1"}, {A: "r1", B: "r2"}, {A: "r2", B: "server"}}}
}

func ownerLab(t *testing.T) *field {
	return newField(t, ownerNetwork(), servicetraceroute.Config{Processes: true})
}

// short runs such a program in the client and returns its number and ports.
func (f *field) short(count int, life time.Duration) (pid int, ports []uint16) {
	f.t.Helper()
	addr := net.JoinHostPort(f.lab.Node("server").Addr(false).String(), strconv.Itoa(int(f.server.Addr.Port())))
	out, errs, status, err := f.lab.Node("client").Exec(f.t.Context(), []string{"/proc/self/exe"},
		[]string{fmt.Sprintf("%s=%s %d %v", envShort, addr, count, life)}, nil)
	if err != nil || status != 0 {
		f.t.Fatalf("%v, status %d: %s%s", err, status, out, errs)
	}
	lines := bufio.NewScanner(strings.NewReader(string(out)))
	for lines.Scan() {
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			f.t.Fatalf("%q", lines.Text())
		}
		if pid == 0 {
			pid = n
		} else {
			ports = append(ports, uint16(n))
		}
	}
	return pid, ports
}

// isProgram reports whether a process may bear that name that runs this program: its own, the
// link's by which it was executed, or that of its node.
func isProgram(exe, name string) bool {
	return strings.HasPrefix(exe, name) || name == "exe" || name == "client"
}

// Selections by process trace the flows of that process and of no other, and say
// whose they are.
func TestByProcess(t *testing.T) {
	f := ownerLab(t)
	exe := executable(t)
	for name, test := range map[string]struct {
		sel   servicetraceroute.Selection
		by    trace.By
		found bool
	}{
		"name":            {servicetraceroute.Selection{Processes: []string{"nothing", exe}}, trace.ByProcess, true},
		"another name":    {servicetraceroute.Selection{Processes: []string{"nothing"}}, 0, false},
		"another number":  {servicetraceroute.Selection{PIDs: []int{os.Getpid()}}, 0, false},
		"control group":   {servicetraceroute.Selection{Cgroups: []string{"/"}}, trace.ByCgroup, true},
		"another one":     {servicetraceroute.Selection{Cgroups: []string{"/no/such/group"}}, 0, false},
		"descendants":     {servicetraceroute.Selection{Run: &servicetraceroute.Run{Name: "x", Descendants: os.Getpid()}}, trace.ByRun, true},
		"host, narrowed":  {servicetraceroute.Selection{Hosts: []string{f.lab.Node("server").Addr(false).String()}, Processes: []string{exe}}, trace.ByAddress, true},
		"host, other one": {servicetraceroute.Selection{Hosts: []string{"192.0.2.99"}, Processes: []string{exe}}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			done := f.tracer.Stats().Traces.Done
			stop := collect(t, f.tracer, test.sel)
			pid, ports := f.short(3, 50*time.Millisecond)
			// Whose a flow is may be told after its end.
			wait := 300 * time.Millisecond
			if test.found {
				wait = 5 * time.Second
			}
			for deadline := time.Now().Add(wait); time.Now().Before(deadline) && f.tracer.Stats().Traces.Done < done+uint64(len(ports)); {
				time.Sleep(10 * time.Millisecond)
			}
			all := stop()
			if !test.found {
				if len(all.traces) != 0 {
					t.Errorf("%v", describe(all.traces[0]))
				}
				return
			}
			if len(all.traces) != len(ports) {
				t.Errorf("%d traces of %d flows", len(all.traces), len(ports))
			}
			for _, tr := range all.traces {
				if tr.Service.By != test.by || tr.Process == nil || tr.Process.PID != pid || !isProgram(exe, tr.Process.Name) {
					t.Errorf("%+v %+v, want process %d by %v", tr.Service, tr.Process, pid, test.by)
				}
				if !slices.Contains(ports, tr.Flow.Src.Port()) {
					t.Errorf("a flow of somebody else: %v", tr.Flow)
				}
			}
		})
	}
}

// The records of a selection that no process decides name it all the same: of a connection
// that was opened, of one that was accepted, and of UDP at a socket of its own and at one
// for all.
func TestRecordsNameTheProcess(t *testing.T) {
	t.Parallel()
	n := ownerNetwork()
	// A trace over links without delay can be over before any process was looked for.
	n.Links[len(n.Links)-1].Delay = 100 * time.Millisecond
	f := newUDPField(t, n)
	client, server := f.lab.Node("client"), f.lab.Node("server")
	if _, err := peer.ServeTCP(t.Context(), client, peer.TCPConfig{Port: 80}); err != nil {
		t.Fatal(err)
	}
	tcp, err := peer.ServeTCP(t.Context(), server, peer.TCPConfig{Port: 443})
	if err != nil {
		t.Fatal(err)
	}
	node := client.Pid() // in which the lab's own applications are
	exe := executable(t)
	for name, test := range map[string]struct {
		sel  servicetraceroute.Selection
		play func(t *testing.T) (pid int)
		want int // traces
	}{
		"opened": {servicetraceroute.Selection{Hosts: []string{server.Addr(false).String()}, Ports: []string{"443"}, Protos: []trace.Proto{trace.TCP}}, func(t *testing.T) int {
			g := *f
			g.t, g.server = t, tcp
			pid, _ := g.short(2, time.Second)
			return pid
		}, 2},
		"accepted": {servicetraceroute.Selection{Ports: []string{"80"}, Directions: []trace.Direction{trace.In}}, func(t *testing.T) int {
			w := scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 100, Every: 100 * time.Millisecond, Duration: 2 * time.Second}
			for _, ipv6 := range []bool{false, true} {
				if _, err := peer.Run(t.Context(), server, peer.RunConfig{Workload: w, Server: netip.AddrPortFrom(client.Addr(ipv6), 80)}); err != nil {
					t.Error(err)
				}
			}
			return node
		}, 2},
		"UDP": {servicetraceroute.Selection{Ports: []string{"4433"}, Protos: []trace.Proto{trace.UDP}, Params: servicetraceroute.Params{UDPProbe: servicetraceroute.UDPAlways}}, func(t *testing.T) int {
			for _, unconnected := range []bool{false, true} {
				f.ask(peer.ExchangeConfig{Count: 20, Size: 100, Every: 100 * time.Millisecond, Unconnected: unconnected}, unconnected, 1)
			}
			return node
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			if len(test.sel.Hosts) == 0 {
				test.sel.Hosts = []string{"0.0.0.0/0", "::/0"}
			}
			stop := collect(t, f.tracer, test.sel)
			pid := test.play(t)
			all := stop()
			if len(all.traces) != test.want {
				t.Errorf("%d traces, %+v", len(all.traces), all.stats)
			}
			for _, tr := range all.traces {
				if p := tr.Process; p == nil || p.PID != pid || !isProgram(exe, p.Name) {
					t.Errorf("%+v, want process %d: %v", p, pid, describe(tr))
				}
			}
		})
	}
	if s := f.tracer.Stats().Owners; s == nil || s.Found == 0 || s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
}

func executable(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe[strings.LastIndexByte(exe, '/')+1:]
}

// A selection by process needs a tracer that looks for processes.
func TestNoProcesses(t *testing.T) {
	labtest.Require(t)
	f := ownerLab(t)
	tracer := f.open(servicetraceroute.Config{})
	for _, err := range tracer.Watch(t.Context(), servicetraceroute.Selection{PIDs: []int{1}}) {
		if !errors.Is(err, servicetraceroute.ErrNoProcesses) {
			t.Errorf("%v", err)
		}
	}
}
