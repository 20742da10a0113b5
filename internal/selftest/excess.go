package selftest

import (
	"maps"
	"slices"
	"strings"
)

// TailLoss begins the names of counters that a busy machine moves by itself: a probe
// for a lost tail goes out when an answer is a few milliseconds late (RFC 8985
// section 7), traced or not.
const TailLoss = "tail-loss: "

const tailLossProbes = TailLoss + "TcpExt.TCPLossProbes"

// byTailLoss are counters that every needless tail-loss probe moves by one.
var byTailLoss = []string{"Tcp.RetransSegs", "TcpExt.TCPDSACKRecv"}

// whenClosed are counters that the answer to a probe moves when it comes after its
// socket has closed. Nobody pays for that.
var whenClosed = []string{"Icmp.InErrors", "Icmp6.InErrors"}

// Excess names the harm counters that are higher with tracing than without, in the
// order of their names. Those that begin with [TailLoss] are not harm: what these
// probes moved is taken off first, on both sides.
func Excess(traced, untraced map[string]int64) []string {
	var higher []string
	for _, name := range slices.Sorted(maps.Keys(traced)) {
		if strings.HasPrefix(name, TailLoss) || slices.Contains(whenClosed, name) {
			continue
		}
		with, without := traced[name], untraced[name]
		if slices.Contains(byTailLoss, name) {
			with, without = with-traced[tailLossProbes], without-untraced[tailLossProbes]
		}
		if with > max(without, 0) {
			higher = append(higher, name)
		}
	}
	return higher
}
