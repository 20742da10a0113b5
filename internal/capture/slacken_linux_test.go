package capture

import (
	"slices"
	"testing"
	"time"
)

// The reader looks less often while more packets come than that would matter for, least often
// while flows are brief ones; at once again when a flow is followed, or the ring fills.
func TestSlacken(t *testing.T) {
	const often, late, last = lookEvery, lookLate, lookLast
	for name, test := range map[string]struct {
		packets, brief uint64 // between two looks
		freed          uint64 // bytes
		following      int64
		want           []time.Duration
	}{
		"few":             {packets: busyRate, want: []time.Duration{often, often}},
		"many":            {packets: busyRate * 20, want: []time.Duration{2 * often, late, late}},
		"brief":           {packets: 1, brief: 1, want: []time.Duration{2 * often, late, last, last}},
		"brief, followed": {packets: 1, brief: 1, following: 1, want: []time.Duration{often, often}},
		"brief, full":     {packets: 1, brief: 1, freed: 1<<20/fullLate + 1, want: []time.Duration{often, often}},
	} {
		tap := &Tap{pause: lookEvery, size: 1 << 20, lost: &tapLost{}}
		tap.following.Store(test.following)
		var got []time.Duration
		for range test.want {
			tap.handedOut += test.packets
			tap.lost.brief += test.brief
			tap.freed = test.freed
			tap.slacken()
			got = append(got, tap.pause)
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
		if tap.slacken(); tap.freed == 0 && test.following == 0 && tap.pause != often {
			t.Errorf("%s: when nothing comes any more: %v", name, tap.pause)
		}
	}
}
