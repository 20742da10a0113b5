//go:build linux

package servicetraceroute_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"servicetraceroute"
	"servicetraceroute/internal/lab/labtest"
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

// ownerLab is a client, two routers and a server.
func ownerLab(t *testing.T) *field {
	n := scenario.Network{Name: "owner", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "r1", Kind: scenario.Router}, {Name: "r2", Kind: scenario.Router},
		{Name: "server", Kind: scenario.Host},
	}, Links: []scenario.Link{{A: "client", B: "r1"}, {A: "r1", B: "r2"}, {A: "r2", B: "server"}}}
	return newField(t, n, servicetraceroute.Config{Processes: true})
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
				if tr.Service.By != test.by || tr.Process == nil || tr.Process.PID != pid || !strings.HasPrefix(exe, tr.Process.Name) && tr.Process.Name != "exe" {
					t.Errorf("%+v %+v, want process %d by %v", tr.Service, tr.Process, pid, test.by)
				}
				if !slices.Contains(ports, tr.Flow.Src.Port()) {
					t.Errorf("a flow of somebody else: %v", tr.Flow)
				}
			}
		})
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
