// Package capture brings packets in: from the interfaces of one network
// namespace through a packet socket with an mmap ring, or from a caller's own
// source. It decodes nothing beyond the link layer, except to count
// datagrams.
package capture

import "time"

// Direction tells on which way a packet was seen. The zero value is invalid.
type Direction uint8

// The ways of a packet past a tap.
const (
	Incoming Direction = iota + 1 // addressed to this host
	Outgoing                      // leaving through the interface
	Foreign                       // seen on the link, addressed to another host
)

// HardwareAddr is a link-layer address of at most 8 bytes, as a comparable
// value. Len 0 means that the link has no addresses.
type HardwareAddr struct {
	Len  uint8
	Addr [8]byte
}

// Packet is one captured packet.
type Packet struct {
	// Time is the kernel's timestamp. A Ring puts it on the monotonic line of
	// time.Now (see Clock); another source may, else the Tracer does.
	Time      time.Time
	Interface int // index of the interface, in the source's network namespace
	Direction Direction
	// NextHop is the link-layer destination of an outgoing packet: whom a probe
	// that must go the same way has to be handed to. Known says whether it was
	// seen at all; a link without addresses is Known with Len 0.
	NextHop      HardwareAddr
	NextHopKnown bool
	// Tagged: the frame bears a VLAN tag (IEEE 802.1Q). A probe that was sent at this
	// interface would lack it and go another way.
	Tagged bool
	// Brief: the first that a Tap shows of a flow while very many begin. Its handshake was not
	// shown; of the rest only first words will be, and not its end, until it is followed or
	// ignored.
	Brief bool
	// Data starts at the IP header. It is owned by the source and valid until its
	// next ReadBatch. It may be cut short: Len is the length on the wire from the
	// IP header on (a segmentation-offload packet can be longer than its link).
	Data []byte
	Len  int
}

// Stats count since the source was opened.
type Stats struct {
	Seen    uint64 // packets handed out or dropped
	Dropped uint64 // packets lost before ReadBatch could hand them out
}

// Source delivers captured packets. ReadBatch and Stats are called from one
// goroutine; SetReadDeadline and Close may be called from any.
type Source interface {
	// ReadBatch waits for packets and returns them in the order of capture. The
	// batch and all it refers to stay valid until the next call. It returns an
	// error that matches os.ErrDeadlineExceeded when the deadline passes first
	// and net.ErrClosed after Close.
	ReadBatch() ([]Packet, error)
	// SetReadDeadline bounds current and future waits; a deadline in the past
	// wakes a waiting ReadBatch.
	SetReadDeadline(t time.Time) error
	// InterfaceName returns the name of an interface, or "" when it is gone.
	InterfaceName(index int) string
	Stats() Stats
	Close() error
}
