package trace

import "net/netip"

// Quoted is what an ICMP error's quote holds otherwise than the probe was sent.
type Quoted struct {
	Src, Dst netip.AddrPort // as quoted, changed or not
	SeqShift uint32         // what was added to the sequence number, modulo 2³²; 0: nothing
	// Stale: the quoted TCP checksum is not that of the quoted segment, though both were quoted
	// whole. Something was rewritten on the way and put back in the quote alone.
	Stale bool
}

// Interface is what a router says of one of its interfaces (RFC 5837). What it did not say is zero.
type Interface struct {
	Role  InterfaceRole
	Index uint32 // ifIndex
	Addr  netip.Addr
	Name  string // the router's own words, to be escaped where they are shown
	MTU   uint32 // bytes
}

// InterfaceRole is the part that an interface had for the packet that the error is about
// (RFC 5837 section 4.1). The zero value is that of the interface by which it came in.
type InterfaceRole uint8

// The roles, as numbered on the wire.
const (
	InterfaceIn    InterfaceRole = iota // by which the packet came in
	InterfaceSubIP                      // the sub-IP component of that one
	InterfaceOut                        // by which it would have left
	InterfaceNext                       // the next hop's
)

var interfaceRoleWords = []string{"in", "in, below IP", "out", "next hop"}

// String is "in", "out" or the like.
func (r InterfaceRole) String() string { return interfaceRoleWords[r&3] }
