package flow

import (
	"time"

	"servicetraceroute/internal/wire"
)

// rttEstimate times one segment at a time from its leaving to its
// acknowledgement, and never one that was retransmitted (Karn's algorithm,
// RFC 6298 section 3). The estimate includes the peer's delayed
// acknowledgements, so least is the better bound of the path's own.
type rttEstimate struct {
	smoothed, least time.Duration
	samples         int
	at              time.Time
	end             uint32
	running         bool
}

func (r *rttEstimate) sent(at time.Time, end uint32) {
	if !r.running {
		r.at, r.end, r.running = at, end, true
	}
}

func (r *rttEstimate) forget() { r.running = false }

func (r *rttEstimate) acked(at time.Time, ack uint32) {
	if !r.running || wire.SeqLess(ack, r.end) {
		return
	}
	r.running = false
	sample := at.Sub(r.at)
	if sample < 0 {
		return // the clock was stepped
	}
	if r.samples == 0 {
		r.smoothed, r.least = sample, sample
	} else {
		r.smoothed += (sample - r.smoothed) / 8
		r.least = min(r.least, sample)
	}
	r.samples++
}
