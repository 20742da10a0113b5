package simnet

import "time"

// Options is what a scenario does not describe. The zero value is the documented
// default of every field.
type Options struct {
	// Seed chooses initial sequence numbers, ports, flow labels, load balancers'
	// hashes and jitter.
	Seed uint64
	// Nodes are peculiarities of nodes, by name.
	Nodes map[string]NodeOptions
	// LoseAll lets Link.Loss hit every packet, of each flow other ones. By default, as
	// in the lab, it hits TCP segments with payload only, of every flow the same: a probe
	// must not shift what the flow loses.
	LoseAll bool
	// Pace is the most that one TCP sender sends, in bit/s; 0: 100 Mbit/s.
	// Without it a transfer over links without Rate would never end in virtual
	// time.
	Pace int64
	// GSO shows taps at hosts one large packet, without checksum, for each burst
	// of segments that TCP sends, as segmentation offload does.
	GSO bool
	// GRO shows taps at hosts one large packet for the segments in a row that come at
	// one instant, as receive offload does.
	GRO bool
	// OffloadSize is how much payload those large packets carry at most; 0: 40 KiB.
	// Beyond 64 KiB they look as BIG TCP's do.
	OffloadSize int
	// Snap cuts captured packets to so many bytes from the IP header on; 0: whole.
	Snap int
	// Buffer is how many packets a tap holds for its reader; 0: 4096.
	Buffer int
	// CaptureDelay is the time from a packet's timestamp until ReadBatch returns
	// it; 0: 1 µs. It is never nothing: a reader that wakes up by itself at the
	// same instant would see the packet or not, by chance.
	CaptureDelay time.Duration
	// Drop, when set, is asked about every packet that enters a link and loses
	// those it answers true for. It must not call the Net.
	Drop func(Crossing) bool
}

// Crossing is a packet on its way from one node to the next.
type Crossing struct {
	Time     time.Time
	From, To string // nodes
	Packet   []byte // from the IP header on; not to be kept or changed
}

// NodeOptions are peculiarities of one node. The zero value is Linux with its
// defaults.
type NodeOptions struct {
	// TTL of the packets that the node makes; 0: 64.
	TTL uint8

	// Of hosts.

	// ISS is the initial sequence number of the host's connections; 0: Seed chooses
	// one for each.
	ISS uint32
	// TOS of the host's TCP segments: DSCP<<2 | ECN.
	TOS uint8
	// RecvErr gives all sockets IP_RECVERR: a connection dies of an ICMP error
	// that the stack believes.
	RecvErr bool
	// SYNCookies lets listeners keep no state until the handshake's last segment
	// (net.ipv4.tcp_syncookies=2).
	SYNCookies bool
	// KeepLabel keeps the IPv6 flow label after a retransmission timeout. Linux
	// picks a new one.
	KeepLabel bool
	// KeepAlive is the idle time after which connections send a keepalive; 0: none.
	KeepAlive time.Duration
	// Think is how long clients wait after the handshake before their first byte.
	Think time.Duration
	// HalfClose is how long after its first byte a client of a Download ends its own
	// stream, to go on receiving; 0: not before the server ends its one.
	HalfClose time.Duration

	// DropInvalid gives the host a firewall of its own, which drops what conntrack
	// calls invalid, on its way out and in. A packet socket of Linux passes such a
	// firewall by; what a Sink sends does not, so that it is judged as well.
	DropInvalid bool

	// Of routers.

	// Quote is how many bytes of a packet an ICMP error quotes; 0: as many as the
	// RFCs allow. Old routers quote 28 of IPv4.
	Quote int
	// Extensions is an RFC 4884 structure put into ICMP errors.
	Extensions []byte
	// ICMPBurst is how many errors to one target may follow each other before
	// ICMPLimit's interval counts; 0: 6, as in Linux.
	ICMPBurst int
	// PerPacket balances every packet by itself, in turns.
	PerPacket bool
	// Forward is the host that new TCP flows to the node's own Addrs are handed on to:
	// destination NAT, as of a load balancer. A Workload names the node as its server.
	Forward string
	// SeqShift, when not 0, is added to the sequence numbers of those who open
	// TCP flows through the node, as firewalls do that randomise them.
	SeqShift uint32
	// QuotesUntranslated lets ICMP errors pass NAT and SeqShift with quotes as
	// they are.
	QuotesUntranslated bool
	// OldConntrack calls segments far below the window INVALID, as Linux before
	// 6.1 does, instead of ignoring them. With DropInvalid it is of hosts, too.
	OldConntrack bool
	// Mangle, when set, may change a packet that the node forwards. Checksums are
	// its own affair. It must not call the Net.
	Mangle func(packet []byte)
}

const (
	defaultPace   = 100e6
	defaultBuffer = 4096
	defaultTTL    = 64
	captureDelay  = time.Microsecond
)

func (o Options) withDefaults() Options {
	if o.Pace <= 0 {
		o.Pace = defaultPace
	}
	if o.Buffer <= 0 {
		o.Buffer = defaultBuffer
	}
	if o.OffloadSize <= 0 {
		o.OffloadSize = superPacket
	}
	if o.CaptureDelay <= 0 {
		o.CaptureDelay = captureDelay
	}
	return o
}
