package capture

import (
	"time"

	"servicetraceroute/trace"
)

// Follower is a Source that may show of a flow only what begins or ends it, and what tells whose
// it is, unless it is told to follow it. The methods may be called from any goroutine.
type Follower interface {
	// FirstShown reports whether a flow's first packets are shown anyway. If not, one that is
	// to be seen from its SYN on, or may be, has to be followed then.
	FirstShown() bool
	// Follow shows all packets of a flow from now on; both says that either end may be the
	// near one. It returns since when all of them are: perhaps they were anyway.
	Follow(k trace.FlowKey, both bool) (since time.Time)
	// Unfollow ends that. Ignore says that nobody wants a flow: its source may show no more of
	// it than its end, also while it begins. Both report whether packets may be hidden that
	// Follow will not tell of.
	Unfollow(k trace.FlowKey, both bool) (hidden bool)
	Ignore(k trace.FlowKey, both bool) (hidden bool)
}
