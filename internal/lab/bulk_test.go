//go:build linux

package lab_test

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/link"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
)

// upload sends bytes from the client to the server.
func upload(t *testing.T, l *lab.Lab, bytes int64) {
	t.Helper()
	if _, err := peer.ServeTCP(t.Context(), l.Node("server"), peer.TCPConfig{Port: 5001}); err != nil {
		t.Fatal(err)
	}
	w := scenario.Workload{Traffic: scenario.Upload, Bytes: bytes}
	flows, err := peer.Run(t.Context(), l.Node("client"), peer.RunConfig{
		Workload: w, Server: netip.AddrPortFrom(l.Node("server").Addr(false), 5001),
	})
	if err != nil || len(flows) != 1 || !flows[0].Intact {
		t.Fatalf("%+v, %v", flows, err)
	}
}

// TestImpairedBulk checks that what reaches the process of an impaired link are
// frames as a wire would carry them.
func TestImpairedBulk(t *testing.T) {
	n := line(1)
	n.Links[0].Delay = time.Millisecond
	l := labtest.Start(t, n)
	upload(t, l, 2<<20)
	stats, err := link.ReadStats(t.Context(), l.Link("client-r1"), "a0", "b0")
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range []link.Counts{stats.AB, stats.BA} {
		if way.Forwarded == 0 || way.Oversize > 0 || way.Unfinished > 0 || way.Failed > 0 {
			t.Errorf("%+v", way)
		}
	}
	if l.Link("r1-server") != nil {
		t.Error("a plain link has a process")
	}
}

func TestNoOffload(t *testing.T) {
	for _, off := range []bool{false, true} {
		l := labtest.StartWith(t, line(1), lab.Options{NoOffload: off})
		tap := -1
		err := l.Node("r1").Do(func() (err error) {
			const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network byte order, packet(7)
			tap, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(tap)
		upload(t, l, 1<<20)
		longest := 0
		for {
			n, _, err := unix.Recvfrom(tap, nil, unix.MSG_TRUNC)
			if err != nil {
				break
			}
			longest = max(longest, n)
		}
		if longest == 0 || (longest > 1514) == off {
			t.Errorf("offloads off: %v, longest frame %d", off, longest)
		}
	}
}
