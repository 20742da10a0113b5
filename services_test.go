//go:build linux

package servicetraceroute_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/lab/tap"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/trace"
)

// city is a field in which many services share one address.
type city struct {
	*field
	services []string
	resolver netip.AddrPort

	mu    sync.Mutex
	truth map[trace.FlowKey]string // which service a flow belonged to; "?name" where nothing says so
}

// newCity starts a web server, a QUIC server, a server that lets its clients say nothing,
// and a DNS server that gives all services the same address.
func newCity(t *testing.T, services int) *city {
	c := &city{field: newUDPField(t, openLadder(1)), truth: map[trace.FlowKey]string{}}
	server := c.lab.Node("server")
	var zone strings.Builder
	for i := range services {
		name := fmt.Sprintf("s%d.example", i)
		c.services = append(c.services, name)
		fmt.Fprintf(&zone, "www.%s. 60 IN CNAME edge.%s.\nedge.%s. 60 IN A %v\nedge.%s. 60 IN AAAA %v\n", name, name, name, server.Addr(false), name, server.Addr(true))
	}
	d, err := peer.ServeDNS(t.Context(), server, peer.DNSConfig{Port: 53, Zone: zone.String()})
	if err != nil {
		t.Fatal(err)
	}
	c.resolver = netip.AddrPortFrom(server.Addr(false), d.Addr.Port())
	if _, err := peer.ServeHTTPS(t.Context(), server, peer.HTTPSConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.ServeHTTPS(t.Context(), server, peer.HTTPSConfig{Port: 80, Plain: true}); err != nil {
		t.Fatal(err)
	}
	if c.server, err = peer.ServeTCP(t.Context(), server, peer.TCPConfig{Port: 7000}); err != nil {
		t.Fatal(err)
	}
	serveQUIC(t, server)
	return c
}

func (c *city) belongs(proto trace.Proto, src, dst netip.AddrPort, service string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.truth[trace.FlowKey{Proto: proto, Src: src, Dst: dst}] = service
}

// browse asks the web server for a page of a service, over a connection of its own for
// each request.
func (c *city) browse(service string, plain bool) {
	url := "https://www." + service + "/slow/2000?for=700ms"
	if plain {
		url = "http://www." + service + "/slow/2000?for=700ms"
	}
	all, err := peer.Get(c.t.Context(), c.lab.Node("client"), peer.GetConfig{URL: url, Resolver: c.resolver, Count: 2, Reconnect: true})
	if err != nil {
		c.t.Error(err)
	}
	for _, r := range all {
		if r.Error != "" {
			c.t.Errorf("%s: %s", url, r.Error)
			continue
		}
		c.belongs(trace.TCP, r.Local, r.Remote, service)
	}
}

// lookUp asks for a service's addresses.
func (c *city) lookUp(service string, ipv6 bool) {
	c.t.Helper()
	kind := "A"
	if ipv6 {
		kind = "AAAA"
	}
	if _, err := peer.Resolve(c.t.Context(), c.lab.Node("client"), peer.Question{Server: c.resolver, Name: "www." + service + ".", Type: kind}); err != nil {
		c.t.Error(err)
	}
}

// mutter asks for a service's address and opens a connection whose first words name
// nobody.
func (c *city) mutter(service string, ipv6 bool) {
	c.lookUp(service, ipv6)
	w := scenario.Workload{IPv6: ipv6, Traffic: scenario.RequestResponse, Bytes: 200, Every: 100 * time.Millisecond, Duration: 1500 * time.Millisecond}
	for _, f := range c.run(w, 1, 0) {
		c.belongs(trace.TCP, f.Local, f.Remote, "?"+service)
	}
}

const quicPort = 8443

// serveQUIC answers each stream with what came on it.
func serveQUIC(t testing.TB, node *lab.Node) {
	t.Helper()
	var conn *net.UDPConn
	err := node.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: quicPort})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := quic.Listen(conn, certified(t), &quic.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		for {
			q, err := l.Accept(ctx)
			if err != nil {
				return
			}
			wg.Go(func() {
				for {
					s, err := q.AcceptStream(ctx)
					if err != nil {
						return
					}
					_, _ = io.Copy(s, s)
					_ = s.Close()
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		_ = conn.Close()
		wg.Wait()
	})
}

// talkQUIC opens a connection to a service and exchanges a little on it.
func (c *city) talkQUIC(service string, ipv6 bool) {
	client, server := c.lab.Node("client"), c.lab.Node("server")
	if port := talkQUIC(c.t, client, server, "www."+service, ipv6); port != 0 {
		c.belongs(trace.UDP, netip.AddrPortFrom(client.Addr(ipv6), port), netip.AddrPortFrom(server.Addr(ipv6), quicPort), service)
	}
}

// talkQUIC does so between two nodes and returns the client's port; 0: there was no
// connection.
func talkQUIC(t testing.TB, from, server *lab.Node, name string, ipv6 bool) (port uint16) {
	var conn *net.UDPConn
	err := from.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", &net.UDPAddr{})
		return err
	})
	if err != nil {
		t.Error(err)
		return 0
	}
	defer conn.Close()
	to := netip.AddrPortFrom(server.Addr(ipv6), quicPort)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	q, err := quic.Dial(ctx, conn, net.UDPAddrFromAddrPort(to), &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"echo"}}, nil)
	if err != nil {
		t.Errorf("QUIC to %s: %v", name, err)
		return 0
	}
	port = uint16(conn.LocalAddr().(*net.UDPAddr).Port)
	if err := echoQUIC(ctx, q, 12); err != nil {
		t.Errorf("QUIC to %s: %v", name, err)
		return port
	}
	_ = q.CloseWithError(0, "")
	return port
}

// echoQUIC exchanges a little on a connection to a server of serveQUIC, so many times.
func echoQUIC(ctx context.Context, q *quic.Conn, times int) error {
	for range times {
		s, err := q.OpenStreamSync(ctx)
		if err == nil {
			_, err = s.Write(make([]byte, 3000))
		}
		if err == nil {
			err = s.Close()
		}
		var n int64
		if err == nil {
			n, err = io.Copy(io.Discard, s)
		}
		if err != nil || n != 3000 {
			return fmt.Errorf("%d bytes came back, %v", n, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// certified is a server's configuration with a certificate of its own.
func certified(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"echo"}}
}

// TestServices selects half of the services that share one address. Of all flows, over
// TCP and QUIC, those of the selected ones are found and no others; those that nothing
// tells apart are said to be ambiguous. With DNS hidden the first words alone do it. A file
// of all that gives the same.
func TestServices(t *testing.T) {
	rounds := 1
	if full() {
		rounds = 6
	}
	for _, hidden := range []bool{false, true} {
		t.Run(fmt.Sprintf("DNS hidden=%v", hidden), func(t *testing.T) {
			c := newCity(t, 10)
			var wanted []servicetraceroute.Service
			selected := map[string]bool{}
			for _, name := range c.services[:5] {
				selected[name] = true
				wanted = append(wanted, servicetraceroute.Service{Name: name, Hosts: []string{name}})
			}
			if hidden {
				c.tracer = c.open(servicetraceroute.Config{NoDNS: true})
			}
			recorded := c.record()
			stop := collect(t, c.tracer, servicetraceroute.Selection{Services: wanted})
			// Were a name the only one of its address that was asked for so far, it would be sure.
			for i, name := range c.services {
				c.lookUp(name, i%2 == 0)
				c.lookUp(name, i%2 == 1)
			}
			var wg sync.WaitGroup
			for round := range rounds {
				if round > 0 {
					time.Sleep(time.Second) // clients, servers and tracer share two processors
				}
				for i, name := range c.services {
					wg.Go(func() { c.browse(name, i%3 == 0) })
					wg.Go(func() { c.talkQUIC(name, i%2 == 0) })
					wg.Go(func() { c.talkQUIC(name, i%2 == 1) })
					wg.Go(func() { c.mutter(name, i%2 == 0) })
				}
			}
			wg.Wait()
			all := stop()
			c.compare(all, selected, hidden)
			truth := c.field.truth()
			c.judge(truth, all.traces)
			file, dropped := recorded()
			again, err := replay(t, servicetraceroute.Replay{Packets: bytes.NewReader(file), NoDNS: hidden}, servicetraceroute.Selection{Services: wanted})
			if err != nil || len(again.traces) == 0 {
				t.Errorf("from a file: %d traces, %v", len(again.traces), err)
			}
			again.stats.Packets.Dropped += dropped
			c.compare(again, selected, hidden)
			c.judge(truth, again.traces)
		})
	}
}

// record keeps what passes the client, whole. What it returns ends that: the file, and
// how many packets it lacks.
func (c *city) record() func() ([]byte, uint64) {
	c.t.Helper()
	var ring *tap.Ring
	err := c.lab.Node("client").Do(func() (err error) {
		ring, err = tap.Open(tap.Config{Snap: 1900, Frames: 1 << 15})
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(ring.Close)
	return func() ([]byte, uint64) { return ring.AppendPcap(nil), ring.Dropped() }
}

// compare holds the flow records against what the flows belonged to. The table of
// docs/evidence is that of TestPeersServices.
func (c *city) compare(all found, selected map[string]bool, hidden bool) {
	c.t.Helper()
	type row struct{ right, missed, wrong int }
	confusion := map[string]*row{}
	said := map[trace.FlowKey]string{}
	for _, f := range all.flows {
		switch {
		case f.State == trace.FlowIgnored && f.Reason == trace.ReasonAmbiguous:
			said[f.FlowKey] = "ambiguous"
		case f.Service != nil:
			said[f.FlowKey] = f.Service.Name
		}
	}
	lost, sure := 0, 0
	for key, service := range c.truth {
		verdict := said[key]
		delete(said, key)
		want := ""
		if selected[service] {
			want = service
			sure++
		}
		if strings.HasPrefix(service, "?") && !hidden {
			want = "ambiguous"
		}
		kind := "no"
		switch {
		case selected[service]:
			kind = "yes"
		case strings.HasPrefix(service, "?"):
			kind = "nothing tells"
		}
		dns := map[bool]string{false: "seen", true: "hidden"}[hidden]
		at := fmt.Sprintf("| %s | %v | %s |", dns, key.Proto, kind)
		if confusion[at] == nil {
			confusion[at] = &row{}
		}
		switch {
		case verdict == want:
			confusion[at].right++
		case verdict == "" && want != "":
			confusion[at].missed++
			lost++
			c.t.Logf("missed %v of %s", key, service)
		case verdict == "ambiguous" && all.stats.Packets.Dropped > 0:
			confusion[at].missed++ // its words may be among the packets that were lost
			c.t.Logf("%v of %s is ambiguous after a loss of packets", key, service)
		default:
			confusion[at].wrong++
			c.t.Errorf("%v belongs to %q, was taken for %q", key, service, verdict)
		}
	}
	for key, verdict := range said {
		if key.Dst.Port() != 53 {
			c.t.Errorf("%v, of which nobody knows, was taken for %q", key, verdict)
		}
	}
	rows := ""
	for _, k := range slices.Sorted(maps.Keys(confusion)) {
		rows += fmt.Sprintf("%s %d | %d | %d |\n", k, confusion[k].right, confusion[k].missed, confusion[k].wrong)
	}
	c.t.Logf("\n%s", rows)
	if sure == 0 || lost*100 > sure && all.stats.Packets.Dropped == 0 {
		c.t.Errorf("%d of %d flows were missed", lost, sure)
	}
	c.t.Logf("%d packets lost; %d names by DNS, %d by TLS and HTTP, %d by QUIC; stops: %v", all.stats.Packets.Dropped, all.stats.Services.DNS, all.stats.Services.SNI, all.stats.Services.QUIC, all.stats.Traces.ByStop)
}

// TestAcceptedServices selects by name on a server: the clients' first words say which of
// its names they want. Half of them want another one.
func TestAcceptedServices(t *testing.T) {
	t.Parallel()
	f := newBareField(t, ownerNetwork(), servicetraceroute.Config{})
	server, client := f.lab.Node("client"), f.lab.Node("server") // the tracer is at the former
	if _, err := peer.ServeHTTPS(t.Context(), server, peer.HTTPSConfig{Port: 443}); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.ServeHTTPS(t.Context(), server, peer.HTTPSConfig{Port: 80, Plain: true}); err != nil {
		t.Fatal(err)
	}
	serveQUIC(t, server)
	stop := collect(t, f.tracer, servicetraceroute.Selection{Hosts: []string{"www.video.example"}, Directions: []trace.Direction{trace.In}})
	var wg sync.WaitGroup
	for _, name := range []string{"www.video.example", "www.bank.example"} {
		for _, ipv6 := range []bool{false, true} {
			for _, scheme := range []string{"https", "http"} {
				wg.Go(func() {
					all, err := peer.Get(t.Context(), client, peer.GetConfig{
						URL: scheme + "://" + name + "/slow/2000?for=1500ms", Hosts: map[string]netip.Addr{name: server.Addr(ipv6)},
					})
					if err != nil || len(all) != 1 || !all[0].Intact {
						t.Errorf("%s: %+v, %v", name, all, err)
					}
				})
			}
			wg.Go(func() { talkQUIC(t, client, server, name, ipv6) })
		}
	}
	wg.Wait()
	all := stop()
	by := map[trace.By]int{}
	for _, fl := range all.flows {
		if fl.Direction != trace.In || fl.Service == nil || fl.Service.Value != "www.video.example" {
			t.Errorf("%+v %+v", fl.Tuple, fl.Service)
			continue
		}
		by[fl.Service.By]++
	}
	if by[trace.BySNI] != 2 || by[trace.ByHTTPHost] != 2 || by[trace.ByQUICSNI] != 2 || len(by) != 3 {
		t.Errorf("%v", by)
	}
	if len(all.traces) != 6 {
		t.Errorf("%d traces, %+v", len(all.traces), all.stats)
	}
	f.judge(f.truth(), all.traces)
}
