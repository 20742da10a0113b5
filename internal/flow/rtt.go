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
	at              stamp // when the segment left that is timed; zero: none is
	end             uint32
	samples         uint32
}

func (r *rttEstimate) sent(at stamp, end uint32) {
	if r.at == 0 {
		r.at, r.end = at, end
	}
}

func (r *rttEstimate) forget() { r.at = 0 }

func (r *rttEstimate) acked(at stamp, ack uint32) {
	if r.at == 0 || wire.SeqLess(ack, r.end) {
		return
	}
	sample := at.since(r.at)
	r.at = 0
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
