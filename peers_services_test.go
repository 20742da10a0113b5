//go:build linux && peers

package servicetraceroute_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/quic-go/quic-go"

	"servicetraceroute"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/trace"
)

// The programs of the market: two that others wrote, and two of ours around the Go
// standard library's HTTP client and quic-go.
const (
	progCurl = "curl"
	progDig  = "dig"
	progHTTP = "goclient"
	progQUIC = "quicgo"

	// nobody is whom flows belong to whose clients ask for an address.
	nobody = "(no name)"
	// resolverName is the service of the DNS server.
	resolverName = "resolver"

	// ring is ample: clients, servers, observers and two tracers share the processors.
	ring = 64 << 20

	envErrand = "SERVICE_TRACEROUTE_TEST_ERRAND"
)

// errand is what a program of ours is sent for: so many connections to a service by its
// name, and so many by its address, over IPv4 and IPv6 in turn.
type errand struct {
	QUIC        bool
	Service     string
	Addrs       [2]netip.Addr
	Named, Bare int
}

// Before TestMain: these programs open no labs.
func init() {
	text := os.Getenv(envErrand)
	if text == "" {
		return
	}
	var e errand
	err := json.Unmarshal([]byte(text), &e)
	if err == nil {
		err = e.run()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (e errand) run() error {
	errs := make(chan error)
	for i := range e.Named + e.Bare {
		addr := e.Addrs[i%2]
		name := "www." + e.Service
		if i >= e.Named {
			name = addr.String()
		}
		go func() {
			if e.QUIC {
				errs <- e.exchange(addr, name)
			} else {
				errs <- e.get(addr, name, i%3 == 0)
			}
		}()
	}
	var all error
	for range e.Named + e.Bare {
		all = errors.Join(all, <-errs)
	}
	return all
}

func (e errand) get(addr netip.Addr, name string, plain bool) error {
	scheme, port := "https", uint16(443)
	if plain {
		scheme, port = "http", 80
	}
	to := netip.AddrPortFrom(addr, port).String()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // the lab's own certificate
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", to)
		},
	}}
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	resp, err := client.Get(scheme + "://" + name + "/" + e.Service)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func (e errand) exchange(addr netip.Addr, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	q, err := quic.DialAddr(ctx, netip.AddrPortFrom(addr, quicPort).String(),
		&tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"echo"}}, &quic.Config{MaxIdleTimeout: 2 * time.Minute})
	if err != nil {
		return err
	}
	defer q.CloseWithError(0, "")
	s, err := q.OpenStreamSync(ctx)
	if err == nil {
		_, err = io.WriteString(s, e.Service)
	}
	if err == nil {
		err = s.Close()
	}
	if err == nil {
		_, err = io.Copy(io.Discard, s)
	}
	return err
}

// flowOf is whom a flow belongs to, as its server saw it.
type flowOf struct{ service, program string }

func (f flowOf) theService() string { return f.service }
func (f flowOf) theProgram() string { return f.program }

// market is a field in which ten services share one address of each family, and servers
// that answer nobody before all are there.
type market struct {
	*field
	services []string
	addrs    [2]netip.Addr
	// resolvers are the DNS server's addresses: at those of the services it would have
	// their names as well.
	resolvers [2]netip.Addr
	dir       string // with our programs
	released  chan struct{}

	mu    sync.Mutex
	truth map[trace.FlowKey]flowOf
	here  int // flows that wait for their answer
}

func newMarket(t *testing.T) *market {
	m := &market{field: newBareField(t, openLadder(1), servicetraceroute.Config{RingBytes: ring}), released: make(chan struct{}), truth: map[trace.FlowKey]flowOf{}, dir: t.TempDir()}
	for i := range 10 {
		m.services = append(m.services, fmt.Sprintf("s%d.example", i))
	}
	for i, ipv6 := range []bool{false, true} {
		m.addrs[i], m.resolvers[i] = m.lab.Node("server").Addr(ipv6), m.lab.Node("r1").Addr(ipv6)
	}
	for _, name := range []string{progHTTP, progQUIC} {
		exe, err := os.Executable()
		if err == nil {
			err = os.Symlink(exe, filepath.Join(m.dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	m.serve()
	return m
}

// serve starts the servers: of web pages with and without TLS, QUIC and DNS.
func (m *market) serve() {
	m.t.Helper()
	var wg sync.WaitGroup
	var closers []io.Closer
	ctx, cancel := context.WithCancel(context.Background())
	m.t.Cleanup(func() {
		cancel()
		for _, c := range closers {
			_ = c.Close()
		}
		wg.Wait()
	})
	conf := certified(m.t)
	for i, addr := range m.addrs {
		var secure, plain net.Listener
		var udp, quicUDP net.PacketConn
		err := m.lab.Node("server").Do(func() (err error) {
			at := func(port uint16) string { return netip.AddrPortFrom(addr, port).String() }
			if plain, err = net.Listen("tcp", at(80)); err != nil {
				return err
			}
			if secure, err = net.Listen("tcp", at(443)); err != nil {
				return err
			}
			quicUDP, err = net.ListenPacket("udp", at(quicPort))
			return err
		})
		if err == nil {
			err = m.lab.Node("r1").Do(func() (err error) {
				udp, err = net.ListenPacket("udp", netip.AddrPortFrom(m.resolvers[i], 53).String())
				return err
			})
		}
		if err != nil {
			m.t.Fatal(err)
		}
		// Two, since one sets HTTP/2 up only once, for its first listener.
		web, secureWeb := &http.Server{Handler: m}, &http.Server{Handler: m, TLSConfig: &tls.Config{Certificates: conf.Certificates}}
		name := &dns.Server{PacketConn: udp, Handler: m.resolves(netip.AddrPortFrom(m.resolvers[i], 53))}
		listener, err := quic.Listen(quicUDP, conf, &quic.Config{MaxIdleTimeout: 2 * time.Minute})
		if err != nil {
			m.t.Fatal(err)
		}
		closers = append(closers, web, secureWeb, listener, quicUDP, udp)
		wg.Go(func() { _ = web.Serve(plain) })
		wg.Go(func() { _ = secureWeb.ServeTLS(secure, "", "") })
		wg.Go(func() { _ = name.ActivateAndServe() })
		wg.Go(func() { m.listen(ctx, listener, netip.AddrPortFrom(addr, quicPort)) })
	}
}

// comes notes whose flow it is and, if it is one of the market's, keeps it until all
// are there.
func (m *market) comes(ctx context.Context, key trace.FlowKey, service, program string) {
	m.mu.Lock()
	m.truth[key] = flowOf{service, program}
	m.here++
	m.mu.Unlock()
	select {
	case <-m.released:
	case <-ctx.Done():
	}
}

// ServeHTTP implements http.Handler. The path tells the service where the name does not.
func (m *market) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	service, program := strings.TrimPrefix(r.URL.Path, "/"), progHTTP
	if strings.HasPrefix(r.UserAgent(), "curl/") {
		program = progCurl
	}
	if !strings.HasPrefix(r.Host, "www."+service) {
		service = nobody
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	m.comes(r.Context(), trace.FlowKey{Proto: trace.TCP, Src: netip.MustParseAddrPort(r.RemoteAddr), Dst: netip.MustParseAddrPort(local.String())}, service, program)
	_, _ = io.WriteString(w, "served\n") // a client that left is no concern
}

// resolves answers questions for addresses at once, those of dig for a text when all are
// there.
func (m *market) resolves(at netip.AddrPort) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		key := trace.FlowKey{Proto: trace.UDP, Src: netip.MustParseAddrPort(w.RemoteAddr().String()), Dst: at}
		answer := new(dns.Msg)
		answer.SetReply(r)
		q := r.Question[0]
		edge := "edge." + strings.TrimPrefix(q.Name, "www.")
		alias := &dns.CNAME{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 60}, Target: edge}
		head := dns.RR_Header{Name: edge, Rrtype: q.Qtype, Class: dns.ClassINET, Ttl: 60}
		switch q.Qtype {
		case dns.TypeA:
			answer.Answer = []dns.RR{alias, &dns.A{Hdr: head, A: m.addrs[0].AsSlice()}}
		case dns.TypeAAAA:
			answer.Answer = []dns.RR{alias, &dns.AAAA{Hdr: head, AAAA: m.addrs[1].AsSlice()}}
		default:
			head.Name = q.Name
			answer.Answer = []dns.RR{&dns.TXT{Hdr: head, Txt: []string{"served"}}}
			m.comes(m.t.Context(), key, resolverName, progDig)
		}
		if q.Qtype != dns.TypeTXT {
			m.mu.Lock()
			m.truth[key] = flowOf{resolverName, "(another)"}
			m.mu.Unlock()
		}
		_ = w.WriteMsg(answer)
	}
}

// listen serves QUIC. What a client writes is its service.
func (m *market) listen(ctx context.Context, l *quic.Listener, at netip.AddrPort) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		q, err := l.Accept(ctx)
		if err != nil {
			return
		}
		wg.Go(func() {
			s, err := q.AcceptStream(ctx)
			if err != nil {
				return
			}
			said, _ := io.ReadAll(io.LimitReader(s, 100))
			service := string(said)
			if q.ConnectionState().TLS.ServerName != "www."+service {
				service = nobody
			}
			m.comes(ctx, trace.FlowKey{Proto: trace.UDP, Src: netip.MustParseAddrPort(q.RemoteAddr().String()), Dst: at}, service, progQUIC)
			_, _ = io.WriteString(s, "served\n")
			_ = s.Close()
		})
	}
}

// Of each service so many clients: thirty, of which six name nobody.
const (
	curls, bareCurls = 8, 2
	gets, bareGets   = 6, 2
	quics, bareQUICs = 4, 2
	digs             = 6
	perService       = curls + bareCurls + gets + bareGets + quics + bareQUICs + digs
)

// fill lets all clients come, a few at a time, and returns when all are there, how long
// that took and what ends them.
func (m *market) fill() (took time.Duration, leave func()) {
	m.t.Helper()
	var wg sync.WaitGroup
	leave = sync.OnceFunc(func() { close(m.released); wg.Wait() })
	m.t.Cleanup(leave) // before the servers end
	sent, start := 0, time.Now()
	arrived := func(most int) {
		for m.t.Context().Err() == nil && !m.t.Failed() {
			m.mu.Lock()
			missing := sent - m.here
			m.mu.Unlock()
			if missing <= most {
				return
			}
			if time.Since(start) > time.Minute {
				m.t.Errorf("%d of %d flows did not come", missing, sent)
			}
			time.Sleep(2 * time.Millisecond)
		}
	}
	// send starts a program of so many flows. What competes with too many others says its
	// first words too late for anybody.
	send := func(flows int, env []string, argv ...string) {
		arrived(8)
		sent += flows
		wg.Go(func() {
			out, errs, status, err := m.lab.Node("client").Exec(m.t.Context(), argv, env, nil)
			if err != nil || status != 0 {
				m.t.Errorf("%v: status %d, %v: %s%s", argv, status, err, out, errs)
			}
		})
	}
	for _, name := range m.services {
		for i := range curls + bareCurls {
			m.sendCurl(send, name, i)
		}
		for i := range digs {
			send(1, nil, progDig, "@"+m.resolvers[i%2].String(), "+time=120", "+tries=1", "TXT", "www."+name)
		}
		for program, e := range map[string]errand{
			progHTTP: {Service: name, Addrs: m.addrs, Named: gets, Bare: bareGets},
			progQUIC: {QUIC: true, Service: name, Addrs: m.addrs, Named: quics, Bare: bareQUICs},
		} {
			text, err := json.Marshal(e)
			if err != nil {
				m.t.Fatal(err)
			}
			send(e.Named+e.Bare, []string{envErrand + "=" + string(text)}, filepath.Join(m.dir, program))
		}
	}
	arrived(0)
	return time.Since(start), leave
}

func (m *market) sendCurl(send func(int, []string, ...string), service string, i int) {
	addr, host, scheme, port := m.addrs[i%2], "www."+service, "https", uint16(443)
	if i%3 == 0 {
		scheme, port = "http", 80
	}
	at := addr.String()
	if addr.Is6() {
		at = "[" + at + "]"
	}
	if i >= curls {
		host = at
	}
	send(1, nil, progCurl, "-gsSkf", "--noproxy", "*", "--max-time", "120", "-o", "/dev/null",
		"--resolve", fmt.Sprintf("www.%s:%d:%s", service, port, at), fmt.Sprintf("%s://%s/%s", scheme, host, service))
}

// matrix counts, by what was so, what was said.
type matrix map[string]map[string]int

func (m matrix) add(was, said string) {
	if m[was] == nil {
		m[was] = map[string]int{}
	}
	m[was][said]++
}

// table is the matrix as text.
func (m matrix) table(corner string) string {
	columns := map[string]bool{}
	for _, row := range m {
		for said := range row {
			columns[said] = true
		}
	}
	said := slices.Sorted(maps.Keys(columns))
	text := "| " + corner + " | " + strings.Join(said, " | ") + " |\n|---|" + strings.Repeat("---|", len(said)) + "\n"
	for _, was := range slices.Sorted(maps.Keys(m)) {
		text += "| " + was
		for _, s := range said {
			if n := m[was][s]; n > 0 {
				text += fmt.Sprintf(" | %d", n)
			} else {
				text += " | "
			}
		}
		text += " |\n"
	}
	return text
}

// rates are how much of what was named was right, and how much of what was to be named
// was. wanted tells what should be said of a flow; nothing is "".
func (m matrix) rates(wanted func(was string) string) (precision, recall float64) {
	right, said, due := 0, 0, 0
	for was, row := range m {
		want := wanted(was)
		for s, n := range row {
			if s != nothing {
				said += n
			}
			if want != nothing {
				due += n
			}
			if want != nothing && s == want {
				right += n
			}
		}
	}
	return float64(right) / float64(max(said, 1)), float64(right) / float64(max(due, 1))
}

const (
	nothing   = "nothing"
	ambiguous = "ambiguous"
)

// TestPeersServices opens 300 flows of curl, dig, a Go HTTP client and quic-go to
// services that share their addresses, all open at once, a fifth with nothing that tells
// whose they are; selects half of the services, and half of the programs.
func TestPeersServices(t *testing.T) {
	var text strings.Builder
	fmt.Fprintf(&text, "# Many services at one address\n\n"+
		"Ten services share one address of each family. %d flows of Debian's curl and dig, a Go HTTP client and quic-go, half of them IPv6, all open at once: the servers answer nobody "+
		"before all are there. A fifth ask for the address instead of a name, so that nothing tells which service they want. Five services are selected by their domain, and the DNS server by "+
		"address and port; beside that, by another tracer, two of the four programs. Before, somebody else asked for all addresses. Whose a flow is was noted by its server. Rows are what was "+
		"so, columns what was said; hidden means `--no-dns`.\n\nMade by `SERVICE_TRACEROUTE_FULL=1 go test -tags peers -run TestPeersServices .`\n", 10*perService)
	for _, hidden := range []bool{false, true} {
		t.Run(fmt.Sprintf("DNS hidden=%v", hidden), func(t *testing.T) { text.WriteString(newMarket(t).day(hidden)) })
	}
	if !t.Failed() {
		evidence(t, "services", text.String())
	}
}

// day is one run, and returns what it showed.
func (m *market) day(hidden bool) (text string) {
	programs := []string{progCurl, progQUIC}
	if hidden {
		m.tracer = m.open(servicetraceroute.Config{NoDNS: true, RingBytes: ring})
		programs = []string{progDig, progHTTP}
	}
	named := func(was string) string {
		switch {
		case was == resolverName, slices.Contains(m.services[:5], was):
			return was
		case was == nobody && !hidden:
			return ambiguous
		}
		return nothing
	}
	owned := func(was string) string {
		if slices.Contains(programs, was) {
			return was
		}
		return nothing
	}
	wanted := []servicetraceroute.Service{{
		Name: resolverName, Hosts: []string{m.resolvers[0].String(), m.resolvers[1].String()}, Ports: []string{"53"}, Protos: []trace.Proto{trace.UDP},
	}}
	for _, name := range m.services[:5] {
		wanted = append(wanted, servicetraceroute.Service{Name: name, Hosts: []string{name}})
	}
	// Two tracers would share the routers' allowances: the second one only looks on.
	looker := m.open(servicetraceroute.Config{Processes: true, NoProbe: true, RingBytes: ring})
	byService := collect(m.t, m.tracer, servicetraceroute.Selection{Services: wanted})
	byProgram := collect(m.t, looker, servicetraceroute.Selection{Processes: programs})
	m.lookUp()
	took, leave := m.fill()
	due := func(wanted func(string) string, of func(flowOf) string) (n uint64) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, f := range m.truth {
			if w := wanted(of(f)); w != nothing && w != ambiguous {
				n++
			}
		}
		return n
	}
	dueByService, dueByProgram := due(named, flowOf.theService), due(owned, flowOf.theProgram)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) &&
		(m.tracer.Stats().Flows.Matched < dueByService || looker.Stats().Flows.Matched < dueByProgram); {
		time.Sleep(10 * time.Millisecond)
	}
	leave()
	a, b := byService(), byProgram()
	m.judge(m.field.truth(), a.traces)
	text = fmt.Sprintf("\n## DNS %s\n\nAll %d flows were there after %.1f s.\n\n", map[bool]string{false: "seen", true: "hidden"}[hidden], 10*perService, took.Seconds())
	text += m.confusion("service", a, named, flowOf.theService, func(f *trace.Flow) string { return f.Service.Name })
	text += m.confusion("program", b, owned, flowOf.theProgram, func(f *trace.Flow) string { return f.Process.Name })
	return text
}

// lookUp asks for all addresses of all services.
func (m *market) lookUp() {
	m.t.Helper()
	for _, name := range m.services {
		for _, kind := range []string{"A", "AAAA"} {
			q := peer.Question{Server: netip.AddrPortFrom(m.resolvers[0], 53), Name: "www." + name + ".", Type: kind}
			if _, err := peer.Resolve(m.t.Context(), m.lab.Node("client"), q); err != nil {
				m.t.Fatal(err)
			}
		}
	}
}

// confusion holds flow records against what was so, and describes it.
func (m *market) confusion(what string, all found, wanted func(string) string, of func(flowOf) string, name func(*trace.Flow) string) string {
	m.t.Helper()
	verdicts := map[trace.FlowKey]string{}
	for _, f := range all.flows {
		switch {
		case f.State == trace.FlowIgnored && f.Reason == trace.ReasonAmbiguous:
			verdicts[f.FlowKey] = ambiguous
		case f.State == trace.FlowMatched && f.Service != nil:
			verdicts[f.FlowKey] = name(f)
		}
	}
	counts := matrix{}
	for key, f := range m.truth {
		was, said := of(f), verdicts[key]
		if said == "" {
			said = nothing
		}
		delete(verdicts, key)
		counts.add(was, said)
		if said != wanted(was) {
			m.t.Logf("%v of %s by %q: %s is said, %s is right", key, f.service, f.program, said, wanted(was))
		}
	}
	for key, said := range verdicts {
		m.t.Errorf("%v, of which no server knows, was taken for %q", key, said)
	}
	precision, recall := counts.rates(wanted)
	if precision < 1 || recall < 0.99 && all.stats.Packets.Dropped == 0 { // what is lost cannot be known
		m.t.Errorf("%s: precision %.2f %%, recall %.2f %%, %d packets lost", what, 100*precision, 100*recall, all.stats.Packets.Dropped)
	}
	return fmt.Sprintf("%s\nPrecision %.2f %%, recall %.2f %%, %d packets lost.\n\n", counts.table(what), 100*precision, 100*recall, all.stats.Packets.Dropped)
}
