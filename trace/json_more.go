package trace

import (
	"encoding/json"
	"net/netip"
	"time"
)

type findingJSON struct {
	envelope
	Label      string      `json:"label"`
	Trace      string      `json:"trace"`
	Flow       Tuple       `json:"flow"`
	Kind       FindingKind `json:"kind"`
	TTLFrom    int         `json:"ttl_from"`
	TTL        int         `json:"ttl"`
	Value      string      `json:"value"`
	Evidence   []string    `json:"evidence"`
	Confidence float64     `json:"confidence"`
}

// MarshalJSON writes a finding record.
func (f *Finding) MarshalJSON() ([]byte, error) {
	return json.Marshal(findingJSON{
		wrap("finding", f.Time), f.Label, f.Trace, f.Flow, f.Kind, f.TTLFrom, f.TTL, f.Value, list(f.Evidence), f.Confidence,
	})
}

// UnmarshalJSON reads a finding record.
func (f *Finding) UnmarshalJSON(b []byte) error {
	var j findingJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	at, err := j.open("finding")
	*f = Finding{at, j.Label, j.Trace, j.Flow, j.Kind, j.TTLFrom, j.TTL, j.Value, j.Evidence, j.Confidence}
	return err
}

type changeJSON struct {
	envelope
	Label string       `json:"label"`
	Flow  Tuple        `json:"flow"`
	Old   PathRef      `json:"old"`
	New   PathRef      `json:"new"`
	TTL   int          `json:"ttl"`
	From  []netip.Addr `json:"from"`
	To    []netip.Addr `json:"to"`
	Cause string       `json:"cause"`
}

// MarshalJSON writes a change record.
func (c *Change) MarshalJSON() ([]byte, error) {
	return json.Marshal(changeJSON{
		wrap("change", c.Time), c.Label, c.Flow, c.Old, c.New, c.TTL, list(c.From), list(c.To), c.Cause,
	})
}

// UnmarshalJSON reads a change record.
func (c *Change) UnmarshalJSON(b []byte) error {
	var j changeJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	at, err := j.open("change")
	*c = Change{at, j.Label, j.Flow, j.Old, j.New, j.TTL, j.From, j.To, j.Cause}
	return err
}

// MarshalJSON writes a sibling of a compare record; its hops are never null.
func (s Sibling) MarshalJSON() ([]byte, error) {
	type plain Sibling
	s.Hops = list(s.Hops)
	return json.Marshal(plain(s))
}

// MarshalJSON writes an alternative of a compare record; its addresses are never
// null.
func (a Alternative) MarshalJSON() ([]byte, error) {
	type plain Alternative
	a.Addrs = list(a.Addrs)
	return json.Marshal(plain(a))
}

type compareJSON struct {
	envelope
	Label        string        `json:"label"`
	Flow         Tuple         `json:"flow"`
	Trace        string        `json:"trace"`
	Siblings     []Sibling     `json:"siblings"`
	Alternatives []Alternative `json:"alternatives"`
	Blocked      []Blocked     `json:"blocked"`
	Divergent    bool          `json:"divergent"`
	Divergence   float64       `json:"divergence"`
}

// MarshalJSON writes a compare record.
func (c *Compare) MarshalJSON() ([]byte, error) {
	return json.Marshal(compareJSON{
		wrap("compare", c.Time), c.Label, c.Flow, c.Trace, list(c.Siblings), list(c.Alternatives), list(c.Blocked),
		c.Divergent, c.Divergence,
	})
}

// UnmarshalJSON reads a compare record.
func (c *Compare) UnmarshalJSON(b []byte) error {
	var j compareJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	at, err := j.open("compare")
	*c = Compare{at, j.Label, j.Flow, j.Trace, j.Siblings, j.Alternatives, j.Blocked, j.Divergent, j.Divergence}
	return err
}

type statsJSON struct {
	envelope
	Label    string       `json:"label"`
	Uptime   *float64     `json:"uptime_ms"`
	Backend  string       `json:"backend"`
	Reason   string       `json:"reason"`
	Packets  PacketStats  `json:"packets"`
	Flows    FlowStats    `json:"flows"`
	Traces   TraceStats   `json:"traces"`
	Probes   ProbeStats   `json:"probes"`
	Replies  ReplyStats   `json:"replies"`
	Services ServiceStats `json:"services"`
	Impact   ImpactStats  `json:"impact"`
	Owners   *OwnerStats  `json:"owners,omitempty"`
	Pcap     *PcapStats   `json:"pcap,omitempty"`
	Records  *RecordStats `json:"records,omitempty"`
}

// MarshalJSON writes a stats record.
func (s *Stats) MarshalJSON() ([]byte, error) {
	j := statsJSON{
		wrap("stats", s.Time), s.Label, ms(max(s.Uptime, 0)), s.Backend, s.Reason, s.Packets, s.Flows, s.Traces, s.Probes,
		s.Replies, s.Services, s.Impact, s.Owners, s.Pcap, s.Records,
	}
	if j.Traces.ByStop == nil {
		j.Traces.ByStop = map[Stop]uint64{}
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads a stats record.
func (s *Stats) UnmarshalJSON(b []byte) error {
	var j statsJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	at, err := j.open("stats")
	*s = Stats{
		at, j.Label, max(fromMS(j.Uptime), time.Duration(0)), j.Backend, j.Reason, j.Packets, j.Flows, j.Traces, j.Probes,
		j.Replies, j.Services, j.Impact, j.Owners, j.Pcap, j.Records,
	}
	return err
}

// list is s, or an empty list: records hold no null where a list belongs.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
