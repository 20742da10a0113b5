//go:build linux

package whole

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/scenario"
)

// envLoad makes this program the server of loads ("serve ADDRESS"), or a client that does
// as much of one as it can and prints how much that was ("bulk ADDRESS").
const envLoad = "SERVICE_TRACEROUTE_TEST_LOAD"

// besideFor is how long a load takes; before it is counted it runs for a while.
const (
	besideFor    = 500 * time.Millisecond
	besideBefore = 100 * time.Millisecond
)

// besideSettles is how many loads it takes until no more is shown than has to be.
var besideSettles = map[string]int{"ebpf": 1, "afpacket": 2}

// The server's ports.
const (
	portBulk = 1 + iota
	portRequests
	portConnections
	portDatagrams
)

const question, answer = 100, 1000 // bytes

func loaded() {
	kind, addr, ok := strings.Cut(os.Getenv(envLoad), " ")
	if !ok {
		return
	}
	err := func() error {
		if kind == "serve" {
			return serveLoads(addr)
		}
		load := loads[kind]
		var n atomic.Int64
		var all sync.WaitGroup
		errs := make(chan error, load.clients)
		for range load.clients {
			all.Go(func() { errs <- load.do(net.JoinHostPort(addr, strconv.Itoa(load.port)), &n) })
		}
		time.Sleep(besideBefore)
		before, began := n.Load(), time.Now()
		time.Sleep(besideFor)
		done, took := n.Load()-before, time.Since(began)
		select {
		case err := <-errs:
			return err
		default:
		}
		fmt.Println(float64(done) / took.Seconds())
		return nil
	}()
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// loads are what applications do, until they are killed: each thing done adds to n.
var loads = map[string]struct {
	port    int
	clients int
	do      func(server string, n *atomic.Int64) error
}{
	"bulk": {portBulk, 1, func(server string, n *atomic.Int64) error {
		c, err := net.Dial("tcp", server)
		for buf := make([]byte, 64<<10); err == nil; n.Add(1) {
			_, err = c.Write(buf)
		}
		return err
	}},
	"requests": {portRequests, 8, func(server string, n *atomic.Int64) error {
		c, err := net.Dial("tcp", server)
		for buf := make([]byte, answer); err == nil; n.Add(1) {
			if _, err = c.Write(buf[:question]); err == nil {
				_, err = io.ReadFull(c, buf)
			}
		}
		return err
	}},
	"connections": {portConnections, 4, func(server string, n *atomic.Int64) error {
		for buf := make([]byte, answer+1); ; n.Add(1) {
			c, err := net.Dial("tcp", server)
			if err != nil {
				return err
			}
			_, err = c.Write(buf[:question])
			if err == nil {
				_, err = io.ReadFull(c, buf) // one byte more: the server closes first, and has the TIME-WAIT
			}
			c.Close()
			if err != io.ErrUnexpectedEOF {
				return err
			}
		}
	}},
	"datagrams": {portDatagrams, 1, func(server string, n *atomic.Int64) error {
		c, err := net.Dial("udp", server)
		if err != nil {
			return err
		}
		for buf := make([]byte, 64); ; n.Add(1) {
			_, _ = c.Write(buf)
		}
	}},
}

func serveLoads(addr string) error {
	for port, serve := range map[int]func(net.Conn) error{
		portBulk: func(c net.Conn) error { _, err := io.Copy(io.Discard, c); return err },
		portRequests: func(c net.Conn) (err error) {
			for buf := make([]byte, answer); err == nil; {
				if _, err = io.ReadFull(c, buf[:question]); err == nil {
					_, err = c.Write(buf)
				}
			}
			return err
		},
		portConnections: func(c net.Conn) error {
			buf := make([]byte, answer)
			_, err := io.ReadFull(c, buf[:question])
			if err == nil {
				_, err = c.Write(buf)
			}
			return err
		},
	} {
		l, err := net.Listen("tcp", net.JoinHostPort(addr, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); _ = serve(c) }()
			}
		}()
	}
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), portDatagrams)))
	if err != nil {
		return err
	}
	fmt.Println("serving")
	for buf := make([]byte, 64); ; {
		if _, err := u.Read(buf); err != nil {
			return err
		}
	}
}

// beside is a host with applications that talk to another one, as fast as they can.
type beside struct {
	*lab.Lab
	bin, server string
}

func newBeside(b *testing.B) *beside {
	b.Helper()
	h := &beside{bin: build(b)}
	h.Lab = labtest.Start(b, scenario.Network{Name: "beside", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "server", Kind: scenario.Host},
	}, Links: []scenario.Link{{A: "client", B: "server"}}})
	h.server = h.Node("server").Addr(false).String()
	p := start(b, h.Node("server").Do, withEnv(envLoad+"=serve "+h.server), self(b))
	eventually(b, "the server", func() bool { return strings.Contains(p.stdout.String(), "serving") })
	return h
}

// run has a load done; how much, each second.
func (h *beside) run(b *testing.B, load string) float64 {
	b.Helper()
	out, _, status, err := h.Node("client").Exec(b.Context(), []string{self(b)}, []string{envLoad + "=" + load + " " + h.server}, nil)
	n, bad := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil || status != 0 || bad != nil || n <= 0 {
		b.Fatalf("%s: %v, status %d: %s", load, err, status, out)
	}
	return n
}

// BenchmarkBeside is what applications get done beside the command, which watches for a
// service that none of them uses, as a share of what they get done alone: the median of
// pairs that take turns, and the interval in which it lies with 95 %.
func BenchmarkBeside(b *testing.B) {
	h := newBeside(b)
	for _, load := range []string{"bulk", "requests", "connections", "datagrams"} {
		b.Run(load, func(b *testing.B) {
			h.run(b, load) // everybody is awake
			shares, cpu := map[string][]float64{}, map[string][]float64{}
			var alone []float64
			for b.Loop() {
				for _, backend := range []string{"ebpf", "afpacket"} {
					var with, without float64
					settle := func() {
						for range besideSettles[backend] {
							h.run(b, load)
						}
					}
					for _, traced := range []bool{len(alone)%4 < 2, len(alone)%4 >= 2} {
						if traced {
							p := start(b, h.Node("client").Do, nil, h.bin, "trace", "--host", "nobody.example", "--backend", backend)
							p.stderr.await(b, "watching")
							settle()
							began, before := time.Now(), p.busy()
							with = h.run(b, load)
							cpu[backend] = append(cpu[backend], float64(p.busy()-before)/float64(time.Since(began)))
							p.signal(b, syscall.SIGINT, false)
						} else {
							settle() // the same work before
							without = h.run(b, load)
						}
					}
					alone = append(alone, without)
					shares[backend] = append(shares[backend], with/without)
				}
			}
			b.ReportMetric(0, "ns/op")
			for backend, all := range shares {
				slices.Sort(all)
				low, high := interval(len(all))
				b.ReportMetric(all[len(all)/2], backend)
				slices.Sort(alone)
				slices.Sort(cpu[backend])
				b.Logf("%s: %.3f (%.3f to %.3f) of %.0f/s, %d pairs; the tracer takes %.3f of a processor", backend,
					all[len(all)/2], all[low], all[high], alone[len(alone)/2], len(all), cpu[backend][len(all)/2])
			}
		})
	}
}

// withEnv gives a program a variable of its environment.
func withEnv(v string) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, v) }
}

// busy is the processor time that a program has taken (proc_pid_stat(5), utime and stime,
// in ticks of 10 ms); 0 if it is over.
func (p *program) busy() time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// interval are the places among n values, in order, between which the median lies with 95 %:
// by the binomial distribution.
func interval(n int) (low, high int) {
	below := 1.0 // of 2^n ways those with so many values below the median or fewer
	term, total := 1.0, 1.0
	for range n {
		total *= 2
	}
	for low = 0; low < n/2; low++ {
		if (below+term*float64(n-low)/float64(low+1))*2 > total*0.05 {
			break
		}
		term = term * float64(n-low) / float64(low+1)
		below += term
	}
	return low, n - 1 - low
}
