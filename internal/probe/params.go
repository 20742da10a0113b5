package probe

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"servicetraceroute/trace"
)

// Params say how a flow is traced. Every field must be set, see Defaults.
type Params struct {
	Algorithm     trace.Algorithm
	FirstTTL      int
	MaxTTL        int
	Probes        int // per hop
	Timeout       time.Duration
	ProbeInterval time.Duration // between probes of one TTL
	TTLInterval   time.Duration // between TTLs
	MaxSilent     int           // silent hops in a row, 0: no limit
	Borders       []netip.Prefix
	FlowTimeout   time.Duration // 0: none, of UDP a minute
	UDPProbe      UDPProbe
	AfterClose    bool // a TCP flow's trace goes on behind its FINs, short of the peer
	Share         bool // near hops that others saw are not probed
}

// UDPProbe says which UDP flows are probed. The zero value is UDPAuto.
type UDPProbe uint8

// The policies.
const (
	UDPAuto   UDPProbe = iota // QUIC and streams
	UDPOff                    // none
	UDPAlways                 // also protocols of question and answer
)

var udpProbes = [...]string{UDPAuto: "auto", UDPOff: "off", UDPAlways: "always"}

// String returns "auto", "off" or "always".
func (u UDPProbe) String() string {
	if int(u) < len(udpProbes) {
		return udpProbes[u]
	}
	return "UDPProbe(" + strconv.Itoa(int(u)) + ")"
}

// MarshalText returns what String does.
func (u UDPProbe) MarshalText() ([]byte, error) {
	if int(u) >= len(udpProbes) {
		return nil, fmt.Errorf("probe: no policy %d", u)
	}
	return []byte(udpProbes[u]), nil
}

// UnmarshalText reads what MarshalText writes.
func (u *UDPProbe) UnmarshalText(text []byte) error {
	for v, word := range udpProbes {
		if word == string(text) {
			*u = UDPProbe(v)
			return nil
		}
	}
	return fmt.Errorf("probe: unknown policy %q", text)
}

// Defaults are the documented ones.
func Defaults() Params {
	return Params{
		Algorithm: trace.Adaptive, FirstTTL: 1, MaxTTL: 32, Probes: 3, Timeout: 2 * time.Second,
		ProbeInterval: 20 * time.Millisecond, TTLInterval: time.Millisecond, MaxSilent: 5,
	}
}

// Distance returns how far the sender of a packet is on a symmetric path: the
// hops that its TTL lost since one of the usual initial values, and one.
func Distance(inboundTTL uint8) int { return distanceFrom(inboundTTL, 64, 128, 255) }

// LeastDistance is what Distance would be if the initial value was the least of those
// that some stacks have or are told to have.
func LeastDistance(inboundTTL uint8) int {
	return distanceFrom(inboundTTL, 30, 32, 60, 64, 100, 128, 200, 254, 255)
}

// distanceFrom takes the initial values in rising order; the last is the greatest there is.
func distanceFrom(inboundTTL uint8, initial ...int) int {
	for _, ttl := range initial {
		if int(inboundTTL) <= ttl {
			return ttl - int(inboundTTL) + 1
		}
	}
	return 1
}
