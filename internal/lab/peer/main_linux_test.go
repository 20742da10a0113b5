package peer_test

import (
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"servicetraceroute/internal/lab"
)

// TestMain lets these tests have namespaces where only users' own are allowed. In
// such a one the loopback interface is down at first.
func TestMain(m *testing.M) {
	lab.Main()
	if lab.Enter() == nil {
		if lo, err := netlink.LinkByName("lo"); err == nil {
			_ = netlink.LinkSetUp(lo) // the tests that need it tell
		}
	}
	os.Exit(m.Run())
}
