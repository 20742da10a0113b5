//go:build linux

package whole

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// envFlood makes this program send to a host what nobody asked for, until it is killed:
// "syn|icmp ADDRESS PACKETS-A-SECOND", where 0 is as many as it can. Each second it prints
// how many it has sent.
const envFlood = "SERVICE_TRACEROUTE_TEST_FLOOD"

func floods() {
	words := strings.Fields(os.Getenv(envFlood))
	if len(words) != 3 {
		return
	}
	rate, _ := strconv.Atoi(words[2])
	if err := flood(words[0], netip.MustParseAddr(words[1]), rate); err != nil {
		fmt.Println("error:", err)
	}
	os.Exit(1)
}

func flood(kind string, to netip.Addr, rate int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	sa := &unix.SockaddrInet4{Addr: to.As4()}
	began, told := time.Now(), time.Now()
	for n := 1; ; n++ {
		p := junk(kind, to)
		if err := unix.Sendto(fd, p, 0, sa); err != nil && err != unix.ENOBUFS && err != unix.EPERM {
			return err
		}
		if n%64 != 0 {
			continue
		}
		now := time.Now()
		if now.Sub(told) > time.Second {
			fmt.Println(n)
			told = now
		}
		if rate > 0 {
			time.Sleep(time.Until(began.Add(time.Second * time.Duration(n) / time.Duration(rate))))
		}
	}
}

// junk is a SYN from anybody, or a Time Exceeded from anybody about a packet of this host
// that never was.
func junk(kind string, to netip.Addr) []byte {
	p := make([]byte, 20, 60)
	p[0], p[8], p[9] = 0x45, 60, wire.ProtoTCP
	binary.BigEndian.PutUint32(p[12:], 10<<24|rand.Uint32()&0xffffff)
	copy(p[16:], to.AsSlice())
	port := 1024 + uint16(rand.UintN(60000))
	if kind == "syn" {
		p = binary.BigEndian.AppendUint16(p, port)
		p = binary.BigEndian.AppendUint16(p, portRequests)
		p = binary.BigEndian.AppendUint32(p, rand.Uint32())
		p = append(p, 0, 0, 0, 0, 0x60, byte(wire.SYN), 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4)
	} else {
		p[9] = wire.ProtoICMP
		p = append(p, 11, 0, 0, 0, 0, 0, 0, 0)
		quote := make([]byte, 20, 28)
		quote[0], quote[3], quote[8], quote[9] = 0x45, 40, 1, wire.ProtoTCP
		copy(quote[12:], to.AsSlice())
		binary.BigEndian.PutUint32(quote[16:], 10<<24|rand.Uint32()&0xffffff)
		quote = binary.BigEndian.AppendUint16(quote, port)
		quote = binary.BigEndian.AppendUint16(quote, portRequests)
		quote = binary.BigEndian.AppendUint32(quote, rand.Uint32())
		p = append(p, quote...)
		sum := uint32(0)
		for i := 20; i < len(p); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(p[i:]))
		}
		for sum>>16 != 0 {
			sum = sum&0xffff + sum>>16
		}
		binary.BigEndian.PutUint16(p[22:], ^uint16(sum))
	}
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	return p
}

// TestFlood sends to the traced host as much as it can that nobody asked for: SYNs from
// everywhere to a port that is selected, and errors about packets that never were. What is
// traced meanwhile is right, memory is bounded, and what was not looked at is counted.
func TestFlood(t *testing.T) {
	for_, flows, most := 4*time.Second, 8, 256<<20
	if full() {
		for_, flows = time.Minute, 100
	}
	n := scenario.Network{Name: "flood", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "r1", Kind: scenario.Router}, {Name: "r2", Kind: scenario.Router},
		{Name: "server", Kind: scenario.Host}, {Name: "anybody", Kind: scenario.Host},
	}, Links: []scenario.Link{{A: "client", B: "r1"}, {A: "r1", B: "r2"}, {A: "r2", B: "server"}, {A: "anybody", B: "r1"}}}
	bin := build(t)
	l := labtest.Start(t, n)
	server, client := l.Node("server").Addr(false), l.Node("client").Addr(false)
	p := start(t, l.Node("server").Do, withEnv(envLoad+"=serve "+server.String()), self(t))
	eventually(t, "the server", func() bool { return strings.Contains(p.stdout.String(), "serving") })
	path := []netip.Addr{l.Layout().Nodes["r1"].Interfaces[0].Addr4.Addr(), l.Layout().Nodes["r2"].Interfaces[0].Addr4.Addr(), server}
	var rows strings.Builder
	for _, kind := range []struct {
		name string
		rate int
	}{{"syn", 100_000}, {"icmp", 0}} {
		for _, backend := range backends() {
			t.Run(kind.name+", "+backend, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "out.ndjson")
				began := time.Now()
				tool := start(t, l.Node("client").Do, nil, bin, "trace", "--host", "10.0.0.0/8", "--port", strconv.Itoa(portRequests), "--backend", backend, "--output", "json", "-o", file)
				tool.stderr.await(t, "watching")
				f := start(t, l.Node("anybody").Do, withEnv(fmt.Sprintf("%s=%s %v %d", envFlood, kind.name, client, kind.rate)), self(t))
				eventually(t, "the flood", func() bool { return f.stdout.String() != "" })
				for i := range flows {
					start(t, l.Node("client").Do, withEnv(fmt.Sprintf("%s=%v 1 200ms", envHold, server)), self(t))
					time.Sleep(time.Until(began.Add(for_ * time.Duration(i+1) / time.Duration(flows))))
				}
				// What takes longer than a trace has to.
				time.Sleep(2 * time.Second)
				busy, resident, took := tool.busy(), tool.resident(t), time.Since(began)
				f.signal(t, syscall.SIGKILL, false)
				if status, took := tool.signal(t, syscall.SIGINT, false); status != 0 || took > patience {
					t.Errorf("status %d, %v after the end: %s", status, took, tool.stderr.String())
				}
				told := strings.Fields(f.stdout.String())
				sent, _ := strconv.Atoi(told[len(told)-1])
				traces, stats := parsed(t, file), lastStats(t, file)
				complete := 0
				for _, tr := range traces {
					if tr.Complete {
						complete++
					}
					for _, h := range tr.Hops {
						for _, r := range h.Replies {
							if h.TTL > len(path) || r.Addr != path[h.TTL-1] {
								t.Errorf("%v answered at TTL %d: %v", r.Addr, h.TTL, tr)
							}
						}
					}
				}
				rate := sent / max(len(told), 1)
				if len(traces) < flows || resident > most || sent == 0 {
					t.Errorf("%d traces of %d flows, %d complete, %d MiB, %d sent; %+v", len(traces), flows, complete, resident>>20, sent, stats)
				}
				fmt.Fprintf(&rows, "| %s | %s | %d | %d | %d | %d | %.2f | %d MiB | %d | %d | %d | %d | %d |\n", kind.name, backend, rate, flows, len(traces), complete,
					busy.Seconds()/took.Seconds(), resident>>20, stats.Packets.Seen, stats.Packets.Dropped, stats.Flows.Withheld, stats.Flows.Evicted, stats.Replies.Unmatched)
				if !slices.ContainsFunc(traces, func(tr *trace.Trace) bool { return tr.Complete }) {
					t.Error("no complete trace")
				}
			})
		}
	}
	evidence(t, "floods", fmt.Sprintf(`# Floods

Against the traced host, %v each: SYNs from all over 10.0.0.0/8 to the port that is selected, 100,000 a second; ICMP errors from as many, about packets that never were, as fast as one process sends them. Meanwhile new connections are opened, an exchange of %d and %d bytes on each every 200 ms, 2 routers on their way.
No trace shows an address that does not lie on it.

    SERVICE_TRACEROUTE_FULL=1 go test -count=1 -run TestFlood ./internal/whole

| flood | back end | packets a second | connections | traces | complete | processors | resident, most | packets seen | dropped | flows withheld | flows evicted | replies unmatched |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
`, for_, question, answer)+rows.String())
}
