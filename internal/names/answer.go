package names

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxTTL is where RFC 8767 section 4 would cap a TTL.
	maxTTL = 7 * 24 * time.Hour
	// maxChain bounds the names of one chain; resolvers follow fewer.
	maxChain = 16
	// maxServices bounds the HTTPS and SVCB records of one answer.
	maxServices = 16
	// maxAddrs bounds the addresses of one answer.
	maxAddrs = 256
	// maxName bounds a name in presentation form. Only names full of escapes are
	// longer, and no host's name is such.
	maxName = 255
)

// answer is what one message says.
type answer struct {
	addrs []addr
	// targets of HTTPS and SVCB records: the chain's last name is the target.
	targets  []target
	services int    // such records read
	dropped  uint64 // addresses, records and chains that were too many or too long
}

type addr struct {
	addr  netip.Addr
	chain []string
	ttl   time.Duration
}

type target struct {
	chain []string
	ttl   time.Duration
}

// record is a resource record that may matter.
type record struct {
	owner string
	ttl   time.Duration
	rr    dns.RR
}

// readAnswer reads the records of an answer whose question was read. It is total:
// should the parser panic, the message was malformed.
func readAnswer(msg []byte, q *question) (a answer, v verdict) {
	defer func() {
		if recover() != nil {
			a, v = answer{}, malformed
		}
	}()
	records, v := readRecords(msg, q)
	if v != useful {
		return a, v
	}
	name, _, err := dns.UnpackDomainName(msg, headerLen)
	if err != nil {
		return a, malformed
	}
	a.follow(canonical(name), records)
	if len(a.addrs)+len(a.targets) == 0 && a.dropped == 0 {
		return a, other
	}
	return a, useful
}

// readRecords returns the records that may matter of the answer section and, for
// HTTPS and SVCB, of the additional one, where servers put their targets'
// addresses (RFC 9460 section 4.1). The upper bits of the RCODE are there in any case.
func readRecords(msg []byte, q *question) (records []record, v verdict) {
	off := q.end
	var last owner
	for i := range q.an + q.ns + q.ar {
		h, next, ok := last.header(msg, off)
		end := next + int(h.Rdlength)
		if !ok || end > len(msg) {
			return records, cut(q)
		}
		additional := i >= q.an+q.ns
		if additional && h.Rrtype == dns.TypeOPT && h.Ttl>>24 != 0 {
			return nil, other // an extended RCODE (RFC 6891 section 6.1.3)
		}
		if i < q.an || additional && (q.qtype == dns.TypeHTTPS || q.qtype == dns.TypeSVCB) {
			if r, wanted, ok := readRecord(h, msg[:end], next); !ok {
				return records, cut(q)
			} else if wanted {
				records = append(records, r)
			}
		}
		off = end
	}
	return records, useful
}

// cut is the verdict on a message that ends within a record: some servers
// truncate so.
func cut(q *question) verdict {
	if q.flags&flagTC != 0 {
		return useful
	}
	return malformed
}

// owner remembers the last owner that was a pointer: the records of a set all
// point to the same name.
type owner struct {
	pointer uint16
	name    string
}

// header reads a record's owner, in canonical form, and its fixed fields.
func (o *owner) header(msg []byte, off int) (h dns.RR_Header, next int, ok bool) {
	pointer := uint16(0)
	if off+2 <= len(msg) && msg[off]&0xC0 == 0xC0 {
		pointer = binary.BigEndian.Uint16(msg[off:])
	}
	if pointer != 0 && pointer == o.pointer {
		h.Name, off = o.name, off+2
	} else {
		name, next, err := dns.UnpackDomainName(msg, off)
		if err != nil {
			return h, 0, false
		}
		h.Name, off = canonical(name), next
		if pointer != 0 {
			*o = owner{pointer, h.Name}
		}
	}
	if off+10 > len(msg) {
		return h, 0, false
	}
	h.Rrtype = binary.BigEndian.Uint16(msg[off:])
	h.Class = binary.BigEndian.Uint16(msg[off+2:])
	h.Ttl = binary.BigEndian.Uint32(msg[off+4:])
	h.Rdlength = binary.BigEndian.Uint16(msg[off+8:])
	return h, off + 10, true
}

// readRecord reads a record's data, from off to the end of msg, if its type matters.
func readRecord(h dns.RR_Header, msg []byte, off int) (r record, wanted, ok bool) {
	switch h.Rrtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME, dns.TypeHTTPS, dns.TypeSVCB:
	default:
		return r, false, true
	}
	if h.Class != dns.ClassINET {
		return r, false, true
	}
	rr, _, err := dns.UnpackRRWithHeader(h, msg, off)
	if err != nil || h.Rdlength == 0 {
		return r, false, false
	}
	ttl := time.Duration(h.Ttl) * time.Second
	if h.Ttl>>31 != 0 {
		ttl = 0 // RFC 2181 section 8
	}
	return record{h.Name, min(ttl, maxTTL), rr}, true, true
}

// follow walks from the question's name to the addresses. The records may stand
// in any order.
func (a *answer) follow(name string, records []record) {
	ttl := maxTTL
	var chain []string
	for {
		if len(name) > maxName || len(chain) == maxChain {
			a.dropped++
			return
		}
		chain = append(chain, name)
		a.named(chain, ttl, records)
		i := slices.IndexFunc(records, func(r record) bool {
			return r.rr.Header().Rrtype == dns.TypeCNAME && r.owner == name
		})
		if i < 0 {
			return
		}
		ttl = min(ttl, records[i].ttl)
		name = canonical(records[i].rr.(*dns.CNAME).Target)
		if name == "" || slices.Contains(chain, name) {
			return
		}
	}
}

// named takes in what the last name of the chain owns.
func (a *answer) named(chain []string, ttl time.Duration, records []record) {
	chain = slices.Clip(chain) // the next name is appended to a copy
	name := chain[len(chain)-1]
	for _, r := range records {
		if r.owner != name {
			continue
		}
		switch rr := r.rr.(type) {
		case *dns.A:
			a.add(rr.A, chain, min(ttl, r.ttl))
		case *dns.AAAA:
			a.add(rr.AAAA, chain, min(ttl, r.ttl))
		case *dns.HTTPS:
			a.service(&rr.SVCB, chain, min(ttl, r.ttl), records)
		case *dns.SVCB:
			a.service(rr, chain, min(ttl, r.ttl), records)
		}
	}
}

// service takes in an HTTPS or SVCB record (RFC 9460 section 2.4): in either mode the
// client goes on with the target, and may begin with the hints.
func (a *answer) service(rr *dns.SVCB, chain []string, ttl time.Duration, records []record) {
	if a.services == maxServices {
		a.dropped++
		return
	}
	a.services++
	name := canonical(rr.Target)
	switch {
	case name == "" && rr.Priority == 0:
		return // there is no such service
	case name != "" && !slices.Contains(chain, name):
		if len(chain) == maxChain || len(name) > maxName {
			a.dropped++
			return
		}
		chain = append(chain, name)
	}
	if len(chain) > 1 {
		a.targets = append(a.targets, target{chain, ttl})
	}
	for _, r := range records {
		if r.owner != name {
			continue
		}
		switch extra := r.rr.(type) {
		case *dns.A:
			a.add(extra.A, chain, min(ttl, r.ttl))
		case *dns.AAAA:
			a.add(extra.AAAA, chain, min(ttl, r.ttl))
		}
	}
	if rr.Priority == 0 {
		return // parameters mean nothing here
	}
	for _, value := range rr.Value {
		switch hint := value.(type) {
		case *dns.SVCBIPv4Hint:
			for _, ip := range hint.Hint {
				a.add(ip, chain, ttl)
			}
		case *dns.SVCBIPv6Hint:
			for _, ip := range hint.Hint {
				a.add(ip, chain, ttl)
			}
		}
	}
}

// add takes in an address, unless nobody can connect to it: blocking resolvers
// answer with the unspecified one.
func (a *answer) add(ip []byte, chain []string, ttl time.Duration) {
	at, ok := netip.AddrFromSlice(ip)
	at = at.Unmap()
	if !ok || at.IsUnspecified() || at.IsMulticast() {
		return
	}
	if len(a.addrs) == maxAddrs {
		a.dropped++
		return
	}
	a.addrs = append(a.addrs, addr{at, chain, ttl})
}

// canonical is a name in lower case without its last dot; "" for the root.
func canonical(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}
