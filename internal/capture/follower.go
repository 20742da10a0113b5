package capture

import (
	"time"

	"servicetraceroute/trace"
)

// Follower is a Source that shows of a flow only its first packets, and those that begin or
// end it, unless it is told to follow it. Both methods may be called from any goroutine.
type Follower interface {
	// Follow shows all packets of a flow from now on; both says that either end may be the
	// near one. It returns since when all of them are: perhaps it was showing the first ones.
	// What Ignore hid meanwhile does not count.
	Follow(k trace.FlowKey, both bool) (since time.Time)
	// Unfollow ends that.
	Unfollow(k trace.FlowKey, both bool)
	// Ignore shows of a flow no more than its end, also while it begins. It costs next to
	// nothing, and may be forgotten.
	Ignore(k trace.FlowKey, both bool)
}
