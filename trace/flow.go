package trace

import (
	"net/netip"
	"time"
)

// FlowKey identifies a flow: protocol, the end from which probes go (Src) and
// the other end (Dst). It is comparable; the zero value is invalid.
type FlowKey struct {
	Proto Proto
	Src   netip.AddrPort
	Dst   netip.AddrPort
}

// IsValid reports whether k names a flow of one address family.
func (k FlowKey) IsValid() bool {
	return k.Proto != 0 && k.Src.IsValid() && k.Dst.IsValid() && k.Src.Addr().Is4() == k.Dst.Addr().Is4()
}

// String returns "tcp 192.0.2.1:40510 > 203.0.113.7:443".
func (k FlowKey) String() string {
	return k.Proto.String() + " " + k.Src.String() + " > " + k.Dst.String()
}

// Tuple is where a flow runs: its key and what is known about its way.
type Tuple struct {
	FlowKey
	Direction Direction
	Interface string   // the interface at which it is followed; empty when unknown
	NetNS     string   // the network namespace, as it was asked for; empty is the tracer's own
	NAT       *FlowKey // the key on the wire, only when it differs from FlowKey
}

// Wire returns the key that the flow's packets have where they leave this host: NAT
// where addresses or ports are translated before, else the key itself.
func (t Tuple) Wire() FlowKey {
	if t.NAT != nil {
		return *t.NAT
	}
	return t.FlowKey
}

// Service says why a flow was selected.
type Service struct {
	Name  string `json:"name"`  // the rule's name, or the selector as the user wrote it
	By    By     `json:"by"`    // what matched
	Value string `json:"value"` // the value that matched; bytes from outside, escape before showing
	// ECH: the client's hello has an encrypted one inside (RFC 9849), and Value is what the
	// outer one asks for. The client may want another name; or there is only noise inside:
	// clients make sure that nobody can tell.
	ECH bool `json:"ech,omitempty"`
}

// Process is the owner of a flow's local socket; nil in records where unknown. It
// has PID 0 and no Name when only its control group is known: the socket was gone
// before its process was found, or may not be looked at.
type Process struct {
	PID    int    `json:"pid"`
	Name   string `json:"name"`             // bytes from outside, escape before showing
	Cgroup string `json:"cgroup,omitempty"` // path below the cgroup2 root
}

// Flow tells that a flow was looked at, and what became of it. As an argument
// only its Tuple is read.
type Flow struct {
	Tuple
	Time    time.Time
	Label   string
	Service *Service // nil when none matched
	Process *Process // nil when unknown
	State   FlowState
	Reason  Reason // with FlowRefused
}
