package servicetraceroute

import (
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
)

// Source delivers captured packets to a Tracer, in place of the packet sockets that
// New opens: packets of an existing capture, of a tunnel, of a test. It has to show
// the flows in both directions, the ICMP and ICMPv6 errors that come back, and, if it
// can, the probes as they leave; from these the times of replies are measured.
//
// A Source that also has a method LocalAddrs() ([]netip.Addr, error) tells which
// addresses are its host's own, and is asked again at most once a second. Without it
// each packet's Direction decides which end of a flow is near.
//
// One that has a method Deaf() bool and returns true there says that the applications of
// its UDP flows hear of no ICMP error about a probe; they are probed then. Of others a
// Tracer with a Source cannot know it, and refuses their UDP flows (trace.ReasonRecvErr).
//
// ReadBatch and Stats are called from one goroutine of the Tracer; SetReadDeadline
// and Close are called from any.
type Source interface {
	// ReadBatch waits for packets and returns them in the order of capture. The
	// batch and all it refers to must stay valid until the next call. It returns an
	// error that matches os.ErrDeadlineExceeded when the deadline passes first
	// and net.ErrClosed after Close. Any other error ends the Tracer with it.
	ReadBatch() ([]Packet, error)
	// SetReadDeadline bounds current and future waits; a deadline in the past
	// wakes a waiting ReadBatch. The zero time is no deadline.
	SetReadDeadline(t time.Time) error
	// InterfaceName returns the name of a Packet's interface for records, or "".
	InterfaceName(index int) string
	// Stats returns what the Source counted. After a rise of Dropped the Tracer
	// holds probes back until it has seen both sides of their flow again.
	Stats() SourceStats
	// Close makes ReadBatch return. It is called once.
	Close() error
}

// Sink sends the probes of a Tracer, in place of its packet socket. It is used from
// one goroutine.
//
// A probe of a UDP flow may be damaged on purpose, so that no host takes it in: over IPv4
// bytes follow the datagram in its packet, over IPv6 it has no checksum. A Sink that cannot
// send such packets to an address has a method Intact(dst netip.Addr) bool and returns true
// for it: whole ones go there up to the fence, and what keeps them from the peer's
// application is the fence alone.
type Sink interface {
	// Send puts one whole IP packet, checksums included, on the link of the given
	// interface, addressed to nextHop: both are as the Source showed them on the
	// flow's own packets. The packet may be reused when Send returns. It must not be
	// changed, not even its TTL, and should not wait. Errors that match
	// syscall.EPERM (a local firewall) and syscall.ENOBUFS (a full queue) are counted
	// as such; none of them ends the Tracer.
	Send(packet []byte, ifindex int, nextHop HardwareAddr) error
	// Close is called once, after the Source's, also when both are one value.
	Close() error
}

// Packet is one captured packet:
//
//	Time         time.Time       // when it passed; of the wall clock, or with the reading of the monotonic one
//	Interface    int             // a number of the Source's own, positive
//	Direction    PacketDirection // Incoming, Outgoing or Foreign
//	NextHop      HardwareAddr    // of an outgoing packet: to whom on the link it went
//	NextHopKnown bool            // without it no probe can follow; true with Len 0 where links have no addresses
//	Data         []byte          // from the IP header on; may be cut short after the TCP header, ICMP errors should be whole
//	Len          int             // the length on the wire from the IP header on
type Packet = capture.Packet

// PacketDirection tells on which way a Packet was seen. The zero value is invalid.
type PacketDirection = capture.Direction

// The ways of a packet past a Source.
const (
	Incoming = capture.Incoming // addressed to this host
	Outgoing = capture.Outgoing // leaving through the interface
	Foreign  = capture.Foreign  // seen on the link, addressed to another host: ignored
)

// SourceStats count since a Source was opened:
//
//	Seen    uint64 // packets handed out or dropped
//	Dropped uint64 // packets lost before ReadBatch could hand them out
type SourceStats = capture.Stats

// HardwareAddr is a link-layer address, as a comparable value:
//
//	Len  uint8   // 0: the link has no addresses; at most 8
//	Addr [8]byte // the first Len of them
type HardwareAddr = capture.HardwareAddr

// What is inside is what callers see.
var (
	_ Source = capture.Source(nil)
	_ Sink   = inject.Sink(nil)
)
