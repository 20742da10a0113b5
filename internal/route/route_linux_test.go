package route

import (
	"net/netip"
	"testing"

	"servicetraceroute/trace"
)

// What ends on this host leaves at its loopback interface.
func TestInterface(t *testing.T) {
	for _, a := range []string{"127.0.0.1", "::1"} {
		at := netip.AddrPortFrom(netip.MustParseAddr(a), 9)
		index, name, err := Interface(trace.FlowKey{Proto: trace.TCP, Src: at, Dst: at})
		if err != nil || index <= 0 || name != "lo" {
			t.Errorf("%s: %d %q, %v", a, index, name, err)
		}
	}
}
