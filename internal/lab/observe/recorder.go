//go:build linux

package observe

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"servicetraceroute/internal/lab/tap"
)

// recorder makes records of packets: all of an observer but its socket.
type recorder struct {
	cfg     Config
	local   []netip.Addr
	counts  map[countKey]*Count
	packets []Packet
	errors  []Error
	dropped Dropped
}

type countKey struct {
	Flow
	iface    string
	outgoing bool
}

func newRecorder(cfg Config, local []netip.Addr) *recorder {
	cfg.TTL = cmp.Or(cfg.TTL, 32)
	cfg.Sample = max(cmp.Or(cfg.Sample, 32), 1)
	cfg.MaxFlows = cmp.Or(cfg.MaxFlows, 1<<16)
	cfg.MaxPackets = cmp.Or(cfg.MaxPackets, 1<<18)
	cfg.MaxErrors = cmp.Or(cfg.MaxErrors, 1<<17)
	r := &recorder{cfg: cfg, local: local}
	r.clear()
	return r
}

func (r *recorder) clear() {
	r.counts = map[countKey]*Count{}
	r.packets, r.errors = nil, nil
	r.dropped = Dropped{}
}

func (r *recorder) log() Log {
	l := Log{Local: r.local, Packets: r.packets, Errors: r.errors, Dropped: r.dropped}
	for _, c := range r.counts {
		l.Counts = append(l.Counts, *c)
	}
	slices.SortFunc(l.Counts, func(a, b Count) int { return a.First.Compare(b.First) })
	return l
}

// add records a packet that passed an interface. It may be cut short.
func (r *recorder) add(at time.Time, iface string, outgoing bool, ip []byte) {
	h, ok := tap.Parse(ip)
	if !ok || h.Fragment {
		return
	}
	switch h.Proto {
	case tap.TCP, tap.UDP:
		r.addPacket(at, iface, outgoing, h)
	case tap.ICMP, tap.ICMPv6:
		r.addError(at, iface, outgoing, h)
	}
}

func (r *recorder) addPacket(at time.Time, iface string, outgoing bool, h tap.Header) {
	f := flowOf(h)
	r.count(at, iface, outgoing, f, h)
	if !r.keeps(h) {
		return
	}
	if len(r.packets) >= r.cfg.MaxPackets {
		r.dropped.Packets++
		return
	}
	seq, _ := seqOf(h)
	r.packets = append(r.packets, Packet{
		Flow: f, Time: at, Interface: iface, Outgoing: outgoing, TTL: h.TTL, ID: h.ID,
		Seq: seq, Ack: h.Ack, TSval: h.TSval, Flags: h.Flags, Payload: h.Payload,
	})
}

func (r *recorder) count(at time.Time, iface string, outgoing bool, f Flow, h tap.Header) {
	k := countKey{f, iface, outgoing}
	c := r.counts[k]
	if c == nil {
		if len(r.counts) >= r.cfg.MaxFlows {
			r.dropped.Flows++
			return
		}
		c = &Count{Flow: f, Interface: iface, Outgoing: outgoing, First: at}
		r.counts[k] = c
	}
	c.Packets++
	c.Bytes += int64(h.Len)
	if h.TTL <= r.cfg.TTL {
		c.Probes++
	}
	c.Last = at
}

// little is how much payload a packet may have to be always kept. What is sent in
// such packets is never much.
const little = 256

// keeps decides which packets are kept. But for the TTL it looks only at what no
// router changes, so that all nodes decide alike.
func (r *recorder) keeps(h tap.Header) bool {
	switch {
	case h.TTL <= r.cfg.TTL:
		return true
	case h.Flags&(tap.SYN|tap.FIN|tap.RST) != 0:
		return true
	case h.Payload > 0 && h.Payload < little:
		return true
	case h.Proto == tap.TCP && h.Payload == 0 && r.cfg.AllACKs:
		return true
	}
	seq, _ := seqOf(h)
	x := seq ^ h.Ack*0x9e3779b1 ^ uint32(h.ID)*0x85ebca6b ^ h.TSval*0xc2b2ae35
	x = (x ^ x>>15) * 0x2c1b3c6d
	x ^= x >> 13
	return x%uint32(r.cfg.Sample) == 0
}

// addError records an error if the node made it itself. A local source address
// does not prove that: a masquerading router puts its own on errors it forwards.
// But those have lost some of their TTL.
func (r *recorder) addError(at time.Time, iface string, outgoing bool, h tap.Header) {
	fresh := h.TTL == 64 || h.TTL == 128 || h.TTL == 255
	own := slices.Contains(r.local, h.Src) || slices.Contains(r.cfg.Aliases, h.Src)
	if !outgoing || !fresh || !own {
		return
	}
	q, typ, code, ok := h.Quote()
	if !ok || q.Fragment || q.Proto != tap.TCP && q.Proto != tap.UDP {
		return
	}
	seq, known := seqOf(q)
	if len(r.errors) >= r.cfg.MaxErrors {
		r.dropped.Errors++
		return
	}
	r.errors = append(r.errors, Error{
		Time: at, Interface: iface, Addr: h.Src, To: h.Dst, Type: typ, Code: code,
		Quoted: flowOf(q), ID: q.ID, Seq: seq, Ack: q.Ack, TSval: q.TSval, Payload: q.Payload,
		Short: !known || !q.Whole,
	})
}

func flowOf(h tap.Header) Flow {
	return Flow{h.Proto, netip.AddrPortFrom(h.Src, h.Sport), netip.AddrPortFrom(h.Dst, h.Dport)}
}

// seqOf returns what stands in Packet.Seq, and whether the packet reaches far
// enough to know it.
func seqOf(h tap.Header) (uint32, bool) {
	if h.Proto == tap.TCP {
		return h.Seq, true
	}
	payload := h.Transport[8:]
	if want := min(h.Payload, udpHashed); len(payload) >= want {
		return UDPSeq(payload[:want]), true
	}
	return 0, false
}
