//go:build linux

package observe

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// Truth joins the logs of all nodes. It is built once the traffic has ended.
type Truth struct {
	nat     bool
	logs    map[string]Log
	flows   map[Flow][]key
	packets map[key][]Sighting // by time
	errors  map[key][]answer   // by time
}

// Sighting is a packet at a node.
type Sighting struct {
	Node string
	Packet
}

type answer struct {
	node string
	Error
}

// key tells packets apart by what an ICMP error quotes of them.
type key struct {
	flow Flow // zero when flows cross a NAT
	seq  uint32
	id   uint16
}

// Probe names a packet as its sender put it on the wire.
type Probe struct {
	Flow
	Seq uint32 // of UDP: UDPSeq of the payload
	ID  uint16 // IPv4
	TTL uint8
}

// Answer is an ICMP error that a node really made about a probe.
type Answer struct {
	Node           string
	Addr           netip.Addr // its source, as it left that node
	Type, Code     uint8
	Sent, Answered time.Time // the probe left its sender, the error its node
}

// Verdict is what became of a probe.
type Verdict struct {
	// Sent says that such a packet left a node that it had not come to.
	Sent bool
	// Answers are empty when no node answered.
	Answers []Answer
	// Ambiguous says that there was an answer which another packet may have caused,
	// sent with another TTL in a short time and equal in all else that was quoted.
	// Nobody can tell then which one was answered, and Answers is empty.
	Ambiguous bool
}

// window is how long after a probe its answers come.
const window = 3 * time.Second

// NewTruth joins logs by the names of their nodes. nat says that flows cross a
// NAT: packets are then joined across nodes by sequence number and ID alone.
func NewTruth(logs map[string]Log, nat bool) *Truth {
	t := &Truth{nat: nat, logs: logs, flows: map[Flow][]key{}, packets: map[key][]Sighting{}, errors: map[key][]answer{}}
	type flowAndKey struct {
		Flow
		key
	}
	filed := map[flowAndKey]bool{}
	for name, l := range logs {
		for _, p := range l.Packets {
			k := t.key(p.Flow, p.Seq, p.ID)
			t.packets[k] = append(t.packets[k], Sighting{name, p})
			if in := (flowAndKey{p.Flow, k}); !filed[in] {
				filed[in] = true
				t.flows[p.Flow] = append(t.flows[p.Flow], k)
			}
		}
		for _, e := range l.Errors {
			k := t.key(e.Quoted, e.Seq, e.ID)
			t.errors[k] = append(t.errors[k], answer{name, e})
		}
	}
	for _, all := range t.packets {
		slices.SortStableFunc(all, func(a, b Sighting) int { return a.Time.Compare(b.Time) })
	}
	for _, all := range t.errors {
		slices.SortStableFunc(all, func(a, b answer) int { return a.Time.Compare(b.Time) })
	}
	return t
}

func (t *Truth) key(f Flow, seq uint32, id uint16) key {
	if t.nat {
		f = Flow{Proto: f.Proto}
	}
	return key{f, seq, id}
}

// Dropped sums up what the logs miss. It must be zero for the truth to be whole.
func (t *Truth) Dropped() Dropped {
	var d Dropped
	for _, l := range t.logs {
		d.Ring += l.Dropped.Ring
		d.Flows += l.Dropped.Flows
		d.Packets += l.Dropped.Packets
		d.Errors += l.Dropped.Errors
	}
	return d
}

// Judge tells what became of a probe.
func (t *Truth) Judge(p Probe) Verdict {
	k := t.key(p.Flow, p.Seq, p.ID)
	sent := t.sent(k)
	var v Verdict
	for _, s := range sent {
		v.Sent = v.Sent || s.Flow == p.Flow && s.TTL == p.TTL
	}
	for _, e := range t.errorsAbout(k) {
		causes := causesOf(e, sent)
		mine := func(s Sighting) bool { return s.Flow == p.Flow && s.TTL == p.TTL }
		if !slices.ContainsFunc(causes, mine) {
			continue
		}
		newest := causes[len(causes)-1]
		if slices.ContainsFunc(causes, func(s Sighting) bool { return s.TTL != p.TTL }) {
			v.Ambiguous = true
		}
		v.Answers = append(v.Answers, Answer{e.node, e.Addr, e.Type, e.Code, newest.Time, e.Time})
	}
	if v.Ambiguous {
		v.Answers = nil
	}
	return v
}

// causesOf returns the packets that can have caused an error, by time.
func causesOf(e answer, sent []Sighting) (causes []Sighting) {
	for _, s := range sent {
		if !s.Time.After(e.Time) && e.Time.Sub(s.Time) < window && quotes(e.Error, s.Packet) {
			causes = append(causes, s)
		}
	}
	return causes
}

// quotes reports whether an error can be about a packet with the same key.
func quotes(e Error, p Packet) bool {
	return e.Short || e.Ack == p.Ack && e.TSval == p.TSval && e.Payload == p.Payload
}

// Answered reports whether, and by whom, a probe was answered: the address and the
// node, the first ones if there are several.
func (t *Truth) Answered(p Probe) (addr netip.Addr, node string, ok bool) {
	if a := t.Judge(p).Answers; len(a) > 0 {
		return a[0].Addr, a[0].Node, true
	}
	return addr, "", false
}

// sent returns the sightings of packets at the nodes that made them: those that
// left a node without having come to it.
func (t *Truth) sent(k key) []Sighting {
	var sent []Sighting
	all := t.packets[k]
	for i, s := range all {
		if s.Outgoing && !cameIn(all, i) {
			sent = append(sent, s)
		}
	}
	return sent
}

// cameIn reports whether the packet that left in sighting i had come to the same
// node, with one TTL more, before: not long before, but a router may have had to
// look for its neighbour first.
func cameIn(all []Sighting, i int) bool {
	s := all[i]
	for j := i - 1; j >= 0 && s.Time.Sub(all[j].Time) < window; j-- {
		in := all[j]
		if !in.Outgoing && in.Node == s.Node && in.TTL == s.TTL+1 {
			return true
		}
	}
	return false
}

// errorsAbout returns the errors that quote a key, by time. A short quote of UDP
// does not hold what stands for its sequence number.
func (t *Truth) errorsAbout(k key) []answer {
	all := t.errors[k]
	if k.flow.Proto != 17 || k.seq == 0 {
		return all
	}
	all = slices.Clone(all)
	k.seq = 0
	for _, a := range t.errors[k] {
		if a.Short {
			all = append(all, a)
		}
	}
	slices.SortStableFunc(all, func(a, b answer) int { return a.Time.Compare(b.Time) })
	return all
}

// Sent returns the packets of a flow with a TTL of at most maxTTL, as they left the
// node that made them, in the order of time: the probes that were really sent.
func (t *Truth) Sent(f Flow, maxTTL uint8) []Sighting {
	var all []Sighting
	for _, k := range t.flows[f] {
		for _, s := range t.sent(k) {
			if s.Flow == f && s.TTL <= maxTTL {
				all = append(all, s)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Sighting) int { return a.Time.Compare(b.Time) })
	return all
}

// Hop is who answered at a TTL.
type Hop struct {
	Addr netip.Addr
	Node string
}

// Hops returns, for each TTL at which packets of the flow were sent, who truly
// answered, in the order of addresses. A TTL whose probes nobody answered is there
// with none. Ambiguous probes count as not answered.
func (t *Truth) Hops(f Flow, maxTTL uint8) map[uint8][]Hop {
	hops := map[uint8][]Hop{}
	for _, s := range t.Sent(f, maxTTL) {
		all := hops[s.TTL]
		for _, a := range t.Judge(Probe{f, s.Seq, s.ID, s.TTL}).Answers {
			if h := (Hop{a.Addr, a.Node}); !slices.Contains(all, h) {
				all = append(all, h)
			}
		}
		slices.SortFunc(all, func(a, b Hop) int {
			return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Node, b.Node))
		})
		hops[s.TTL] = all
	}
	return hops
}

// Trail returns every sighting of a probe, whatever its TTL then, by time.
func (t *Truth) Trail(p Probe) []Sighting { return t.packets[t.key(p.Flow, p.Seq, p.ID)] }
