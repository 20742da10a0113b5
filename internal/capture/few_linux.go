package capture

import (
	"time"

	"servicetraceroute/trace"
)

const (
	// fewFor is how long a ring shows but few flows until it looks around for fewLook: for
	// flows that it shows nothing of, and whether it is still worth it.
	fewFor  = 2 * time.Second
	fewLook = 50 * time.Millisecond
	// fewAnew is how long it shows all after something else is wanted of it, fewOver after
	// more flows were to be followed than the filter tells, or too many at once.
	fewAnew = time.Second
	fewOver = 5 * time.Second
	// A change of the filter takes some 0.1 ms. For each flow that is to be followed there is
	// one, so many at once, and so many a second.
	fewChanges     = 100
	fewChangesEach = time.Second / 200
)

// shown is of which flows a ring shows all packets.
type shown struct {
	flows   map[trace.FlowKey]struct{} // that are followed, those of maxFollowed that came first
	more    int                        // the others
	ignored bool                       // there is a flow that nobody wants
	few     bool                       // whole are shown those alone
	udp     bool                       // also of those over UDP
	since   time.Time                  // that is so, or all are shown
	hold    time.Time                  // until then all are
	around  *time.Timer                // next look
	changed time.Time                  // fewChangesEach for each change, at least fewChanges of them ago

	counted, countedUDP uint64 // packets, at
	countedAt           time.Time
}

// maxFollowed bounds the memory that flows take; the filter tells fewer.
const maxFollowed = 4 * maxFew

// only is what the filter is made of: nil shows all.
func (s *shown) only() *few {
	if !s.few {
		return nil
	}
	return fewOf(s.flows, s.udp)
}

// tells reports whether the filter can tell all that are followed.
func (s *shown) tells() bool { return s.more == 0 && len(s.flows) <= maxFew }

// widened notes that all flows are shown from now on, for some time at least.
func (s *shown) widened(hold time.Duration) {
	now := time.Now()
	if s.few {
		s.few, s.since = false, now
	}
	if s.around != nil {
		s.around.Stop()
	}
	if until := now.Add(hold); until.After(s.hold) {
		s.hold = until
	}
	s.countedAt = time.Time{}
}

// mayChange takes one of the changes of the filter that are allowed.
func (s *shown) mayChange(now time.Time) bool {
	if earliest := now.Add(-fewChanges * fewChangesEach); s.changed.Before(earliest) {
		s.changed = earliest
	}
	if s.changed = s.changed.Add(fewChangesEach); s.changed.After(now) {
		s.changed = now
		return false
	}
	return true
}

// showFew has but few flows shown while so many packets come that it is worth it; of those over
// UDP, while as many of them do. It is called by the goroutine that reads.
func (r *Ring) showFew() {
	r.filterMu.Lock()
	defer r.filterMu.Unlock()
	s, now := &r.shown, time.Now()
	since := now.Sub(s.countedAt)
	if s.few || since < fewLook {
		return
	}
	came, udp := r.handedOut-s.counted, r.udp-s.countedUDP
	known := !s.countedAt.IsZero() && since < fewFor // else it slept, or did not count yet
	s.counted, s.countedUDP, s.countedAt = r.handedOut, r.udp, now
	if !known || !s.ignored || r.cfg.Payload || now.Before(s.hold) || !s.tells() {
		return
	}
	least := uint64(float64(r.cfg.Few) * since.Seconds())
	if s.udp = udp >= least; !s.udp && came-udp < least {
		return
	}
	if r.attach(program(r.filter, r.indexes, fewOf(s.flows, s.udp))) != nil {
		return
	}
	s.few, s.since = true, time.Now()
	s.around = time.AfterFunc(fewFor, func() {
		r.filterMu.Lock()
		defer r.filterMu.Unlock()
		if r.shown.few {
			r.showAll(0)
		}
	})
}

// showAll has all flows shown, for some time at least.
func (r *Ring) showAll(hold time.Duration) {
	if r.attach(program(r.filter, r.indexes, nil)) == nil {
		r.shown.widened(hold)
	}
}

// FirstShown implements Follower.
func (*Ring) FirstShown() bool { return false }

// Follow implements Follower.
func (r *Ring) Follow(k trace.FlowKey, _ bool) (since time.Time) {
	r.filterMu.Lock()
	defer r.filterMu.Unlock()
	s := &r.shown
	if k = eitherWay(k); len(s.flows) < maxFollowed {
		s.flows[k] = struct{}{}
	} else if _, known := s.flows[k]; !known {
		s.more++
	}
	if !s.few {
		return s.since
	}
	if !s.tells() || !s.mayChange(time.Now()) || r.attach(program(r.filter, r.indexes, s.only())) != nil {
		r.showAll(fewOver)
	}
	return time.Now()
}

// Unfollow implements Follower. The filter goes on to show the flow until it changes.
func (r *Ring) Unfollow(k trace.FlowKey, _ bool) (hidden bool) {
	r.filterMu.Lock()
	defer r.filterMu.Unlock()
	s := &r.shown
	if k = eitherWay(k); !s.follows(k) {
		s.more = max(s.more-1, 0)
	}
	delete(s.flows, k)
	return false
}

func (s *shown) follows(k trace.FlowKey) bool {
	_, yes := s.flows[k]
	return yes
}

// Ignore implements Follower: a ring shows all flows or few.
func (r *Ring) Ignore(trace.FlowKey, bool) (hidden bool) {
	r.filterMu.Lock()
	defer r.filterMu.Unlock()
	r.shown.ignored = true
	return false
}

// eitherWay is the same for both ways of a flow.
func eitherWay(k trace.FlowKey) trace.FlowKey {
	if k.Dst.Compare(k.Src) < 0 {
		k.Src, k.Dst = k.Dst, k.Src
	}
	return k
}
