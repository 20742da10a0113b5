package probe

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/wire"
)

const (
	votesNeeded   = 3
	doubtsPerSec  = 10
	maxCandidates = 256
)

// Shift is what a box on the path adds to a probe's numbers when it hides one
// side's initial sequence number and does not translate quotes back.
type Shift struct {
	Seq, Ack uint32
	ackKnown bool
	newID    bool // the IPv4 identification was replaced as well
}

// Reply is an ICMP error about a probe.
type Reply struct {
	At      time.Time
	From    netip.Addr
	TTL     uint8
	Kind    wire.ICMPKind
	MTU     uint32
	Quote   wire.Quote // without Transport
	MPLS    []wire.MPLSLabel
	HasInfo bool // RFC 5837 interface information
}

// Jury decides over quotes of one trace's flow that no probe explains exactly.
// It believes in a constant shift when three probes, whose offsets are random,
// agree on it, and in nothing while such quotes come faster than ten a second:
// then somebody is guessing. The zero value is ready.
type Jury struct {
	second   int64
	count    int
	pending  []candidate
	accepted *Shift
}

type candidate struct {
	shift Shift
	probe *Sent
	reply Reply
}

// Hear takes a doubtful quote and the trace's outstanding probes, and returns
// those of the replies heard that are now believed, paired with their probes.
func (j *Jury) Hear(r Reply, outstanding []*Sent) (believed []Pair) {
	if s := r.At.Unix(); s != j.second {
		j.second, j.count = s, 0
	}
	if j.count++; j.count > doubtsPerSec {
		j.pending, j.accepted = nil, nil
		return nil
	}
	for _, p := range outstanding {
		if p.Answered || !p.lengthFits(&r.Quote) {
			continue
		}
		shift := j.shiftOf(p, &r.Quote)
		if j.accepted != nil {
			if shift == *j.accepted {
				return []Pair{{p, r}}
			}
			continue
		}
		if len(j.pending) < maxCandidates {
			j.pending = append(j.pending, candidate{shift, p, r})
		}
	}
	return j.verdict()
}

// Pair is a reply and the probe it answers.
type Pair struct {
	Sent  *Sent
	Reply Reply
}

func (j *Jury) shiftOf(p *Sent, q *wire.Quote) Shift {
	s := Shift{Seq: q.Seq - p.Seq, newID: q.Version == 4 && q.ID != p.ID && q.ID != swap16(p.ID)}
	if q.HasTCPHeader {
		s.Ack, s.ackKnown = q.TCPAck-p.Ack, true
	}
	return s
}

// verdict looks for a shift on which enough different probes agree.
func (j *Jury) verdict() (believed []Pair) {
	for _, c := range j.pending {
		probes := map[*Sent]bool{}
		for _, other := range j.pending {
			if other.shift == c.shift {
				probes[other.probe] = true
			}
		}
		if len(probes) < votesNeeded {
			continue
		}
		shift := c.shift
		j.accepted = &shift
		for _, other := range j.pending {
			if other.shift == shift && !other.probe.Answered {
				believed = append(believed, Pair{other.probe, other.reply})
			}
		}
		j.pending = nil
		return believed
	}
	return nil
}
