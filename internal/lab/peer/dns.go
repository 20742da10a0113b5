//go:build linux

package peer

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"servicetraceroute/internal/lab/node"
)

// DNSConfig describes a DNS server.
type DNSConfig struct {
	Port uint16 // 0: any
	// Zone is in the text form of RFC 1035: "www.example. 60 IN CNAME host.example."
	// Names below no record are answered with NXDOMAIN.
	Zone string
}

// ServeDNS starts a DNS server over UDP and TCP.
func ServeDNS(ctx context.Context, c node.Caller, cfg DNSConfig) (Server, error) {
	return node.Call[Server](ctx, c, "peer/dns", cfg)
}

// Question asks a DNS server.
type Question struct {
	Server netip.AddrPort
	Name   string
	Type   string // "A"
	TCP    bool
}

// Resolve asks and returns the answer section's records in text form.
func Resolve(ctx context.Context, c node.Caller, q Question) ([]string, error) {
	return node.Call[[]string](ctx, c, "peer/resolve", q)
}

func (p *peer) dns(ctx context.Context, cfg DNSConfig) (Server, error) {
	z, err := parseZone(cfg.Zone)
	if err != nil {
		return Server{}, err
	}
	ln, err := listen(ctx, cfg.Port, false, "")
	if err != nil {
		return Server{}, err
	}
	var lc net.ListenConfig
	// One port for both, whichever TCP got.
	pc, err := lc.ListenPacket(ctx, "udp", fmt.Sprintf(":%d", addrOf(ln.Addr()).Port()))
	if err != nil {
		ln.Close()
		return Server{}, err
	}
	return p.start(ctx, ln.Addr(), nil, func(life context.Context) {
		var wg sync.WaitGroup
		for _, srv := range []*dns.Server{{Listener: ln, Handler: z}, {PacketConn: pc, Handler: z}} {
			wg.Go(func() { _ = srv.ActivateAndServe() }) // ends when its socket is closed
		}
		<-life.Done()
		ln.Close()
		pc.Close()
		wg.Wait()
	})
}

// zone is records by lower-case owner name.
type zone map[string][]dns.RR

func parseZone(text string) (zone, error) {
	z := zone{}
	p := dns.NewZoneParser(strings.NewReader(text), ".", "")
	p.SetDefaultTTL(60)
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		name := strings.ToLower(rr.Header().Name)
		z[name] = append(z[name], rr)
	}
	if err := p.Err(); err != nil {
		return nil, fmt.Errorf("zone: %w", err)
	}
	return z, nil
}

// maxChain ends a loop of CNAMEs.
const maxChain = 16

// answer returns the records of a question, with the CNAMEs that lead to them,
// and whether the last name exists at all.
func (z zone) answer(q dns.Question) (rrs []dns.RR, exists bool) {
	name := strings.ToLower(q.Name)
	for range maxChain {
		next := ""
		exists = len(z[name]) > 0
		for _, rr := range z[name] {
			cname, isCNAME := rr.(*dns.CNAME)
			if rr.Header().Rrtype == q.Qtype || isCNAME {
				rrs = append(rrs, rr)
			}
			if isCNAME && q.Qtype != dns.TypeCNAME {
				next = strings.ToLower(cname.Target)
			}
		}
		if next == "" {
			return rrs, exists
		}
		name = next
	}
	return rrs, true
}

// ServeDNS answers one query.
func (z zone) ServeDNS(w dns.ResponseWriter, r *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative, m.RecursionAvailable = true, true
	if len(r.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		_ = w.WriteMsg(m)
		return
	}
	rrs, exists := z.answer(r.Question[0])
	m.Answer = rrs
	if !exists {
		m.Rcode = dns.RcodeNameError
	}
	if w.LocalAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := r.IsEdns0(); opt != nil {
			size = max(int(opt.UDPSize()), size)
		}
		m.Truncate(size)
	}
	_ = w.WriteMsg(m) // a client that has left is no concern
}

func resolve(ctx context.Context, q Question) ([]string, error) {
	qtype, ok := dns.StringToType[strings.ToUpper(q.Type)]
	if !ok {
		return nil, fmt.Errorf("DNS type %q is unknown", q.Type)
	}
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(q.Name), qtype)
	c := &dns.Client{Timeout: 5 * time.Second}
	if q.TCP {
		c.Net = "tcp"
	}
	r, _, err := c.ExchangeContext(ctx, m, q.Server.String())
	if err != nil {
		return nil, err
	}
	if r.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("%s %s: %s", q.Name, q.Type, dns.RcodeToString[r.Rcode])
	}
	var out []string
	for _, rr := range r.Answer {
		out = append(out, rr.String())
	}
	return out, nil
}
