//go:build linux

package peer

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/lab/nstest"
	"servicetraceroute/internal/scenario"
)

// loopback is a node on the host itself; all its traffic stays on loopback.
func loopback(t *testing.T) (context.Context, node.Caller) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx, (*nstest.NS)(nil).Caller(t, Roles())
}

func at(s Server, host string) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(host), s.Addr.Port())
}

func TestWorkloads(t *testing.T) {
	ctx, c := loopback(t)
	srv, err := ServeTCP(ctx, c, TCPConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name           string
		w              scenario.Workload
		sent, received int64 // exactly, -1: some
		exchanges      int   // at most
	}{
		{"download", scenario.Workload{Traffic: scenario.Download, Bytes: 1<<20 + 7}, 0, 1<<20 + 7, 0},
		{"download tiny", scenario.Workload{Traffic: scenario.Download, Bytes: 1}, 0, 1, 0},
		{"download for a time", scenario.Workload{Traffic: scenario.Download, Duration: 200 * time.Millisecond}, 0, -1, 0},
		{"upload", scenario.Workload{Traffic: scenario.Upload, Bytes: 1<<20 + 7}, 1<<20 + 7, 0, 0},
		{"upload for a time", scenario.Workload{Traffic: scenario.Upload, Duration: 200 * time.Millisecond}, -1, 0, 0},
		{"slow reader", scenario.Workload{Traffic: scenario.SlowReader, Bytes: 100_000}, 0, 100_000, 0},
		{"request/response", scenario.Workload{Traffic: scenario.RequestResponse, Bytes: 2000, Every: 20 * time.Millisecond, Duration: 190 * time.Millisecond}, -1, -1, 10},
		{"one byte", scenario.Workload{Traffic: scenario.OneByte, Bytes: 30, Every: time.Millisecond}, 30, 30, 30},
		{"idle", scenario.Workload{Traffic: scenario.Idle, Bytes: 100, Duration: 100 * time.Millisecond}, 100, 100, 1},
	} {
		for _, host := range []string{"127.0.0.1", "::1"} {
			t.Run(tt.name+" "+host, func(t *testing.T) {
				flows, err := Run(ctx, c, RunConfig{Workload: tt.w, Server: at(srv, host), Seed: 5})
				if err != nil || len(flows) != 1 {
					t.Fatalf("%d flows, %v", len(flows), err)
				}
				f := flows[0]
				if !f.Intact || f.Error != "" {
					t.Errorf("not intact: %s", f.Error)
				}
				if tt.sent >= 0 && f.Sent != tt.sent || tt.sent < 0 && f.Sent == 0 {
					t.Errorf("sent %d, want %d", f.Sent, tt.sent)
				}
				if tt.received >= 0 && f.Received != tt.received || tt.received < 0 && f.Received == 0 {
					t.Errorf("received %d, want %d", f.Received, tt.received)
				}
				if tt.w.Traffic == scenario.Download && f.SHA256 != StreamHash(5, f.Received) {
					t.Errorf("hash is not that of the stream")
				}
				// On a busy machine a paced flow has time for fewer.
				if n := f.Latency.Count; n > tt.exchanges || (n > 0) != (tt.exchanges > 0) {
					t.Errorf("%d exchanges, want %d", n, tt.exchanges)
				} else if size := max(tt.w.Bytes, 1); tt.sent < 0 && n > 0 && (f.Sent != int64(n)*size || f.Received != f.Sent) {
					t.Errorf("sent %d and received %d in %d exchanges of %d", f.Sent, f.Received, n, size)
				}
				if took := f.End.Sub(f.Connected); took < tt.w.Duration-30*time.Millisecond {
					t.Errorf("took %v, want at least %v", took, tt.w.Duration)
				}
				if f.TCPInfo.SegsOut == 0 || f.TCPInfo.MSS == 0 {
					t.Errorf("no tcp_info: %+v", f.TCPInfo)
				}
			})
		}
	}
	conns := waitConns(t, ctx, c, srv, 18)
	for _, conn := range conns {
		if conn.Error != "" || conn.TCPInfo.SegsOut == 0 {
			t.Errorf("server's view: %+v", conn)
		}
	}
}

// waitConns collects n ended connections: a server learns of an end a little
// after its client.
func waitConns(t *testing.T, ctx context.Context, c node.Caller, srv Server, n int) []Conn {
	t.Helper()
	var all []Conn
	for deadline := time.Now().Add(5 * time.Second); len(all) < n; time.Sleep(10 * time.Millisecond) {
		conns, err := Conns(ctx, c, srv)
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, conns...); time.Now().After(deadline) {
			t.Fatalf("server saw %d connections end, want %d", len(all), n)
		}
	}
	return all
}

func TestManyFlows(t *testing.T) {
	ctx, c := loopback(t)
	srv, err := ServeTCP(ctx, c, TCPConfig{})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	flows, err := Run(ctx, c, RunConfig{
		Workload: scenario.Workload{Traffic: scenario.OneByte, Every: 100 * time.Millisecond, Duration: 500 * time.Millisecond},
		Server:   at(srv, "127.0.0.1"), Flows: 500, Stagger: time.Millisecond,
	})
	if err != nil || len(flows) != 500 {
		t.Fatalf("%d flows, %v", len(flows), err)
	}
	ports := map[uint16]bool{}
	for i, f := range flows {
		ports[f.Local.Port()] = true
		if !f.Intact {
			t.Fatalf("flow %d: %s", i, f.Error)
		}
	}
	if len(ports) != 500 || time.Since(began) < time.Second {
		t.Errorf("%d ports in %v: want 500 flows, a millisecond apart", len(ports), time.Since(began))
	}
}

// A checker that cannot see damage would make every other test worthless.
func TestCheckerSeesDamage(t *testing.T) {
	good := make([]byte, 100_000)
	newStream(1).Read(good)
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { b[70_001] ^= 1; return b },
		func(b []byte) []byte { return slices.Delete(b, 70_001, 70_002) },
		func(b []byte) []byte { return slices.Insert(b, 70_001, b[70_001]^7) },
	} {
		c := newChecker(newStream(1))
		c.Write(damage(slices.Clone(good)))
		if c.err() == nil || !strings.Contains(c.err().Error(), "70001") {
			t.Errorf("damage at byte 70001 not seen: %v", c.err())
		}
	}
	c := newChecker(newStream(1))
	c.Write(good)
	if c.err() != nil || c.hash() != StreamHash(1, 100_000) {
		t.Errorf("undamaged stream: %v", c.err())
	}
}

func TestShortTransferIsNotIntact(t *testing.T) {
	ctx, c := loopback(t)
	srv, err := ServeTCP(ctx, c, TCPConfig{})
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan Flow, 1)
	go func() {
		flows, err := Run(ctx, c, RunConfig{
			Workload: scenario.Workload{Traffic: scenario.SlowReader, Duration: time.Minute}, Server: at(srv, "127.0.0.1"),
		})
		if err != nil || len(flows) != 1 {
			flows = []Flow{{}}
		}
		got <- flows[0]
	}()
	time.Sleep(200 * time.Millisecond)
	if err := Stop(ctx, c, srv); err != nil {
		t.Fatal(err)
	}
	if f := <-got; f.Intact || f.Error == "" || f.Received == 0 {
		t.Errorf("a flow cut short: %+v", f)
	}
	if err := Stop(ctx, c, srv); err == nil {
		t.Error("a stopped server can be stopped again")
	}
}

func TestHTTP(t *testing.T) {
	ctx, c := loopback(t)
	srv, err := ServeHTTPS(ctx, c, HTTPSConfig{Names: []string{"www.lab.example"}})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := ServeHTTPS(ctx, c, HTTPSConfig{Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	hosts := map[string]netip.Addr{"www.lab.example": netip.MustParseAddr("127.0.0.1")}
	secure := "https://www.lab.example" + strings.TrimPrefix(at(srv, "127.0.0.1").String(), "127.0.0.1")
	six := "https://" + at(srv, "::1").String()
	for _, tt := range []struct {
		name  string
		cfg   GetConfig
		proto string
		bytes int64
		least time.Duration
		count int
	}{
		{"h1", GetConfig{URL: secure + "/bytes/100000", Proto: HTTP1, Hosts: hosts}, "HTTP/1.1", 100_000, 0, 1},
		{"h2", GetConfig{URL: secure + "/bytes/100000", Hosts: hosts, Count: 3}, "HTTP/2.0", 100_000, 0, 3},
		{"v6", GetConfig{URL: six + "/bytes/5", Proto: HTTP2}, "HTTP/2.0", 5, 0, 1},
		{"reconnect", GetConfig{URL: six + "/bytes/5", Count: 4, Reconnect: true}, "HTTP/2.0", 5, 0, 4},
		{"plain", GetConfig{URL: "http://" + at(plain, "127.0.0.1").String() + "/bytes/5", Proto: HTTP1}, "HTTP/1.1", 5, 0, 1},
		{"slow", GetConfig{URL: six + "/slow/5000?for=300ms"}, "HTTP/2.0", 5000, 250 * time.Millisecond, 1},
		{"paced", GetConfig{URL: six + "/bytes/30000", Rate: 100_000}, "HTTP/2.0", 30_000, 250 * time.Millisecond, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			all, err := Get(ctx, c, tt.cfg)
			if err != nil || len(all) != tt.count {
				t.Fatalf("%d responses, %v", len(all), err)
			}
			ports := map[netip.AddrPort]bool{}
			for _, r := range all {
				ports[r.Local] = true
				if !r.Intact || r.Proto != tt.proto || r.Bytes != tt.bytes || r.SHA256 != StreamHash(0, tt.bytes) {
					t.Errorf("got %+v", r)
				}
			}
			if want := map[bool]int{true: tt.count, false: 1}[tt.cfg.Reconnect]; len(ports) != want {
				t.Errorf("%d connections, want %d", len(ports), want)
			}
			if time.Since(began) < tt.least {
				t.Errorf("took %v, want at least %v", time.Since(began), tt.least)
			}
		})
	}
	all, err := Get(ctx, c, GetConfig{URL: six + "/nothing"})
	if err != nil || len(all) != 1 || all[0].Status != 404 || all[0].Intact {
		t.Errorf("a page that is not there: %+v, %v", all, err)
	}
}

func TestDNS(t *testing.T) {
	ctx, c := loopback(t)
	srv, err := ServeDNS(ctx, c, DNSConfig{Zone: `
www.lab.example.  60 IN CNAME edge.cdn.example.
edge.cdn.example. 30 IN A 127.0.0.1
edge.cdn.example. 30 IN AAAA ::1
`})
	if err != nil {
		t.Fatal(err)
	}
	for _, tcp := range []bool{false, true} {
		rrs, err := Resolve(ctx, c, Question{Server: at(srv, "127.0.0.1"), Name: "WWW.lab.example", Type: "AAAA", TCP: tcp})
		want := []string{"www.lab.example.\t60\tIN\tCNAME\tedge.cdn.example.", "edge.cdn.example.\t30\tIN\tAAAA\t::1"}
		if err != nil || !slices.Equal(rrs, want) {
			t.Errorf("tcp %v: %q, %v", tcp, rrs, err)
		}
	}
	if _, err := Resolve(ctx, c, Question{Server: at(srv, "::1"), Name: "none.example", Type: "A"}); err == nil || !strings.Contains(err.Error(), "NXDOMAIN") {
		t.Errorf("unknown name: %v", err)
	}
	web, err := ServeHTTPS(ctx, c, HTTPSConfig{})
	if err != nil {
		t.Fatal(err)
	}
	port := strings.TrimPrefix(at(web, "127.0.0.1").String(), "127.0.0.1")
	all, err := Get(ctx, c, GetConfig{URL: "https://www.lab.example" + port + "/bytes/9", Resolver: at(srv, "127.0.0.1")})
	if err != nil || len(all) != 1 || !all[0].Intact {
		t.Errorf("a name of the zone: %+v, %v", all, err)
	}
}

func TestUDP(t *testing.T) {
	ctx, c := loopback(t)
	srv, err := ServeUDP(ctx, c, UDPConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		for _, unconnected := range []bool{false, true} {
			x, err := RunExchange(ctx, c, ExchangeConfig{Server: at(srv, host), Count: 20, Size: 100, Unconnected: unconnected, Socket: Socket{RecvErr: true}})
			if err != nil || x.Sent != 20 || x.Answered != 20 || x.Latency.Count != 20 {
				t.Errorf("%s, unconnected %v: %+v, %v", host, unconnected, x, err)
			}
		}
	}
	if err := Stop(ctx, c, srv); err != nil {
		t.Fatal(err)
	}
	x, err := RunExchange(ctx, c, ExchangeConfig{Server: at(srv, "127.0.0.1"), Count: 2, Wait: 50 * time.Millisecond})
	if err != nil || x.Answered != 0 || x.RecvErrorCount+x.SendErrorCount == 0 {
		t.Errorf("without a server: %+v, %v", x, err)
	}
}

func TestDial(t *testing.T) {
	ctx, c := loopback(t)
	srv, err := ServeHTTPS(ctx, c, HTTPSConfig{Plain: true})
	if err != nil {
		t.Fatal(err)
	}
	d, err := Dial(ctx, c, DialConfig{Remote: at(srv, "127.0.0.1"), Send: []byte("GET /bytes/0 HTTP/1.0\r\n\r\n"), Expect: 8, Hold: time.Second})
	if err != nil || d.Error != "" || d.Received != "485454502f312e30" || !d.PeerClosed {
		t.Errorf("%+v, %v", d, err)
	}
	if err := Stop(ctx, c, srv); err != nil {
		t.Fatal(err)
	}
	if d, err := Dial(ctx, c, DialConfig{Remote: at(srv, "127.0.0.1")}); err != nil || !strings.Contains(d.Error, "refused") {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestCounters(t *testing.T) {
	ns := nstest.New(t)
	c := ns.Caller(t, Roles())
	ctx := t.Context()
	before, err := ReadCounters(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Concat(Harm, Expected, Jitter) {
		if _, ok := before[name]; !ok && !strings.HasPrefix(name, "TcpExt.") {
			t.Errorf("this kernel has no counter %s", name)
		} else if !ok {
			t.Logf("this kernel has no counter %s", name)
		}
	}
	// A connection to nobody: one active open, one reset.
	if _, err := Dial(ctx, c, DialConfig{Remote: netip.MustParseAddrPort("127.0.0.1:9")}); err != nil {
		t.Fatal(err)
	}
	after, err := ReadCounters(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	d := after.Delta(before)
	if d["Tcp.ActiveOpens"] != 1 || d["Tcp.OutRsts"] != 1 || d["Tcp.RetransSegs"] != 0 {
		t.Errorf("delta %v", d)
	}
	if got := d.Only(Harm).String(); got != "Tcp.OutRsts=1" {
		t.Errorf("harm %q", got)
	}
}

func TestSysctl(t *testing.T) {
	ns, other := nstest.New(t), nstest.New(t)
	c := ns.Caller(t, Roles())
	ctx := t.Context()
	if err := ApplyOptions(ctx, c, scenario.Workload{NoSACK: true}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"net.ipv4.tcp_sack": "0", "net.ipv4.tcp_timestamps": "1"} {
		if v, err := GetSysctl(ctx, c, name); err != nil || v != want {
			t.Errorf("%s is %q, %v", name, v, err)
		}
	}
	if v, err := GetSysctl(ctx, other.Caller(t, Roles()), "net.ipv4.tcp_sack"); err != nil || v != "1" {
		t.Errorf("another namespace's tcp_sack is %q, %v", v, err)
	}
	if _, err := GetSysctl(ctx, c, "kernel.hostname"); err == nil {
		t.Error("a sysctl of the whole machine can be read")
	}
}
