package probe

import (
	"net/netip"
	"time"

	"servicetraceroute/internal/wire"
)

const (
	votesNeeded   = 3
	votesUnsure   = 6 // where nothing but the offset speaks for a shift
	doubtsPerSec  = 10
	maxCandidates = 256
	// memory is how long a vote counts. The longer, the more guesses could add up. For one
	// that is confirmed an outsider has to guess more than numbers: it waits for others for as
	// long as a trace takes of which answers get lost, since the destination is looked for slowly.
	memory          = 2 * time.Second
	memoryConfirmed = 30 * time.Second
)

// Shift is what a box on the path adds to a probe's numbers when it hides one
// side's initial sequence number and does not translate quotes back.
type Shift struct {
	Seq, Ack uint32
	ackKnown bool
	newID    bool // the IPv4 identification was replaced as well
	// sure: beside the offset, something that differs from probe to probe or that
	// an outsider cannot know tells that the quote is about that very probe.
	sure bool
}

// votes is how many probes have to agree.
func (s Shift) votes() int {
	if s.sure {
		return votesNeeded
	}
	return votesUnsure
}

// Reply is an ICMP error about a probe.
type Reply struct {
	At    time.Time
	From  netip.Addr
	TTL   uint8
	Kind  wire.ICMPKind
	MTU   uint32
	Quote wire.Quote // without Transport
	MPLS  []wire.MPLSLabel
	Info  []wire.InterfaceInfo
	Stale bool // the quoted checksum is not that of the quoted segment
	Short bool // the quote is too short to tell
	// Of the error itself, for records.
	TOS        uint8
	ID         uint16 // IPv4
	Len        int
	Type, Code uint8
	Serial     uint64 // in the evidence; 0: none is kept
}

// Jury decides over quotes of one trace's flow that no probe explains exactly.
// It believes in a constant shift when three probes, whose offsets are random,
// agree on it, and in nothing while such quotes come faster than ten a second, nor
// in the second after: then somebody is guessing. The zero value is ready.
type Jury struct {
	second   int64
	count    int
	deaf     bool // too many came in the second before
	pending  []candidate
	accepted *Shift
}

type candidate struct {
	shift     Shift
	confirmed bool // by what differs from probe to probe, beside the number
	probe     *Sent
	reply     Reply
}

// memory is how long the vote counts.
func (c *candidate) memory() time.Duration {
	if c.confirmed {
		return memoryConfirmed
	}
	return memory
}

// Hear takes a doubtful quote and the trace's outstanding probes, and returns
// those of the replies heard that are now believed, paired with their probes.
func (j *Jury) Hear(r Reply, outstanding []*Sent) (believed []Pair) {
	if s := r.At.Unix(); s != j.second {
		j.deaf = s == j.second+1 && j.count > doubtsPerSec
		j.second, j.count = s, 0
	}
	if j.count++; j.count > doubtsPerSec || j.deaf {
		j.pending, j.accepted = nil, nil
		return nil
	}
	j.forget(r.At)
	for _, p := range outstanding {
		if p.Answered || !p.lengthFits(&r.Quote) {
			continue
		}
		shift := shiftOf(p, &r.Quote)
		if j.accepted != nil {
			if shift == *j.accepted {
				return []Pair{{p, r}}
			}
			continue
		}
		if len(j.pending) < maxCandidates {
			p.Hold()
			p.doubted = p.doubted || shift.sure
			j.pending = append(j.pending, candidate{shift, p.confirmedBy(&r.Quote), p, r})
		}
	}
	return j.verdict()
}

// Decided reports whether a shift is believed in: further quotes that bear it are.
func (j *Jury) Decided() bool { return j.accepted != nil }

// Guessing reports whether quotes come so fast that somebody is guessing: what was
// just heard will never be believed.
func (j *Jury) Guessing() bool { return j.count > doubtsPerSec }

// forget drops votes that are old or whose probe was answered meanwhile.
func (j *Jury) forget(now time.Time) {
	kept := j.pending[:0]
	for _, c := range j.pending {
		if !c.probe.Answered && now.Sub(c.reply.At) < c.memory() {
			kept = append(kept, c)
		}
	}
	clear(j.pending[len(kept):])
	j.pending = kept
}

// Pair is a reply and the probe it answers.
type Pair struct {
	Sent  *Sent
	Reply Reply
}

func shiftOf(p *Sent, q *wire.Quote) Shift {
	s := Shift{Seq: q.Seq - p.Seq, newID: q.Version == 4 && !p.idFits(q)}
	if q.HasTCPHeader {
		s.Ack, s.ackKnown = q.TCPAck-p.Ack, true
	}
	s.sure = s.Seq == 0 || p.confirmedBy(q)
	return s
}

// confirmedBy reports whether what differs from probe to probe, beside the number, and what an
// outsider cannot know tells that the quote is about that very probe.
func (s *Sent) confirmedBy(q *wire.Quote) bool {
	return q.Version == 4 && s.idFits(q) || s.timestampFits(q)
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
		if len(probes) < c.shift.votes() {
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
