package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"
)

// Schema is the name and version of the records' JSON form.
const Schema = "service-traceroute/1"

// envelope opens every record.
type envelope struct {
	Schema string     `json:"schema"`
	Type   string     `json:"type"`
	Time   *time.Time `json:"time,omitempty"`
}

func wrap(kind string, at time.Time) envelope {
	e := envelope{Schema: Schema, Type: kind}
	if !at.IsZero() {
		at = at.UTC()
		e.Time = &at
	}
	return e
}

// open checks that a record is of the expected kind.
func (e envelope) open(kind string) (time.Time, error) {
	if e.Schema != Schema || e.Type != kind {
		return time.Time{}, fmt.Errorf("trace: record is %q %q, not %q %q", e.Schema, e.Type, Schema, kind)
	}
	if e.Time == nil {
		return time.Time{}, nil
	}
	return *e.Time, nil
}

// ms is a duration as milliseconds with three decimals; nil is "not known".
func ms(d time.Duration) *float64 {
	if d < 0 {
		return nil
	}
	v := math.Round(float64(d)/float64(time.Microsecond)) / 1000
	return &v
}

func fromMS(v *float64) time.Duration {
	if v == nil {
		return -1
	}
	return time.Duration(math.Round(*v * float64(time.Millisecond)))
}

type tupleJSON struct {
	Proto     Proto      `json:"proto"`
	Src       netip.Addr `json:"src"`
	SrcPort   uint16     `json:"sport"`
	Dst       netip.Addr `json:"dst"`
	DstPort   uint16     `json:"dport"`
	Direction *Direction `json:"direction,omitempty"`
	Interface string     `json:"interface,omitempty"`
	NetNS     string     `json:"netns,omitempty"`
	NAT       *tupleJSON `json:"nat,omitempty"`
}

func (k FlowKey) json() tupleJSON {
	return tupleJSON{Proto: k.Proto, Src: k.Src.Addr(), SrcPort: k.Src.Port(), Dst: k.Dst.Addr(), DstPort: k.Dst.Port()}
}

func (j tupleJSON) key() FlowKey {
	return FlowKey{j.Proto, netip.AddrPortFrom(j.Src, j.SrcPort), netip.AddrPortFrom(j.Dst, j.DstPort)}
}

// MarshalJSON writes the flow object of a record.
func (t Tuple) MarshalJSON() ([]byte, error) {
	j := t.FlowKey.json()
	if t.Direction != 0 {
		j.Direction = &t.Direction
	}
	j.Interface, j.NetNS = t.Interface, t.NetNS
	if t.NAT != nil {
		nat := t.NAT.json()
		j.NAT = &nat
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads the flow object of a record.
func (t *Tuple) UnmarshalJSON(b []byte) error {
	var j tupleJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*t = Tuple{FlowKey: j.key(), Interface: j.Interface, NetNS: j.NetNS}
	if j.Direction != nil {
		t.Direction = *j.Direction
	}
	if j.NAT != nil {
		nat := j.NAT.key()
		t.NAT = &nat
	}
	return nil
}

type flowJSON struct {
	envelope
	Label   string    `json:"label"`
	Flow    Tuple     `json:"flow"`
	Service *Service  `json:"service"`
	Process *Process  `json:"process"`
	State   FlowState `json:"state"`
	Reason  *Reason   `json:"reason,omitempty"`
}

// MarshalJSON writes a flow record.
func (f *Flow) MarshalJSON() ([]byte, error) {
	return json.Marshal(flowJSON{wrap("flow", f.Time), f.Label, f.Tuple, f.Service, f.Process, f.State, reason(f.Reason, f.State != FlowMatched)})
}

// UnmarshalJSON reads a flow record.
func (f *Flow) UnmarshalJSON(b []byte) error {
	var j flowJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	at, err := j.open("flow")
	*f = Flow{Tuple: j.Flow, Time: at, Label: j.Label, Service: j.Service, Process: j.Process, State: j.State}
	if j.Reason != nil {
		f.Reason = *j.Reason
	}
	return err
}

// reason is written only beside a word that says that something was not done.
func reason(r Reason, undone bool) *Reason {
	if r == 0 || !undone {
		return nil
	}
	return &r
}

type replyJSON struct {
	Addr       netip.Addr    `json:"addr"`
	RTT        *float64      `json:"rtt_ms"`
	Kind       ReplyKind     `json:"kind"`
	ReplyTTL   int           `json:"reply_ttl"`
	Name       string        `json:"name,omitempty"`
	ASN        uint32        `json:"asn,omitempty"`
	MPLS       []Label       `json:"mpls,omitempty"`
	Changes    []FindingKind `json:"changes,omitempty"`
	Late       bool          `json:"late,omitempty"`
	SharedFrom string        `json:"shared_from,omitempty"`
}

// MarshalJSON writes a reply of a hop.
func (r Reply) MarshalJSON() ([]byte, error) {
	return json.Marshal(replyJSON{
		r.Addr, ms(r.RTT), r.Kind, r.ReplyTTL, r.Name, r.ASN, r.MPLS, r.Changes, r.Late, r.SharedFrom,
	})
}

// UnmarshalJSON reads a reply of a hop.
func (r *Reply) UnmarshalJSON(b []byte) error {
	var j replyJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*r = Reply{j.Addr, fromMS(j.RTT), j.Kind, j.ReplyTTL, j.Name, j.ASN, j.MPLS, j.Changes, j.Late, j.SharedFrom, nil}
	return nil
}

// MarshalJSON writes a hop; its replies are never null.
func (h Hop) MarshalJSON() ([]byte, error) {
	type plain Hop
	h.Replies = list(h.Replies)
	return json.Marshal(plain(h))
}

type destinationJSON struct {
	TTL int           `json:"ttl,omitempty"`
	RTT *float64      `json:"rtt_ms"`
	By  DestinationBy `json:"by"`
}

// MarshalJSON writes a trace's destination.
func (d Destination) MarshalJSON() ([]byte, error) {
	return json.Marshal(destinationJSON{d.TTL, ms(d.RTT), d.By})
}

// UnmarshalJSON reads a trace's destination.
func (d *Destination) UnmarshalJSON(b []byte) error {
	var j destinationJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*d = Destination{j.TTL, fromMS(j.RTT), j.By}
	return nil
}

type observedJSON struct {
	RTT         *float64 `json:"rtt_ms"`
	Retransmits int      `json:"retransmits"`
	BytesIn     uint64   `json:"bytes_in"`
	BytesOut    uint64   `json:"bytes_out"`
	RTTMin      *float64 `json:"rtt_min_ms,omitempty"`
	In          *Health  `json:"in,omitempty"`
	Out         *Health  `json:"out,omitempty"`
}

// MarshalJSON writes what was observed; rtt_ms is null when it is not known.
func (o Observed) MarshalJSON() ([]byte, error) {
	j := observedJSON{ms(o.RTT), o.Retransmits, o.BytesIn, o.BytesOut, nil, o.In, o.Out}
	if o.RTTMin > 0 {
		j.RTTMin = ms(o.RTTMin)
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what was observed.
func (o *Observed) UnmarshalJSON(b []byte) error {
	var j observedJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*o = Observed{fromMS(j.RTT), j.Retransmits, j.BytesIn, j.BytesOut, 0, j.In, j.Out}
	if j.RTTMin != nil {
		o.RTTMin = fromMS(j.RTTMin)
	}
	return nil
}

type traceJSON struct {
	envelope
	ID          string       `json:"id"`
	Label       string       `json:"label"`
	Start       time.Time    `json:"start"`
	End         time.Time    `json:"end"`
	Algorithm   Algorithm    `json:"algorithm"`
	Flow        Tuple        `json:"flow"`
	Service     *Service     `json:"service"`
	Process     *Process     `json:"process"`
	Hops        []Hop        `json:"hops"`
	Reached     bool         `json:"reached"`
	Stop        Stop         `json:"stop"`
	Reason      *Reason      `json:"reason,omitempty"`
	Destination *Destination `json:"destination"`
	Complete    bool         `json:"complete"`
	Mixed       bool         `json:"mixed"`
	PathID      string       `json:"path_id"`
	Observed    Observed     `json:"observed"`
	Impact      Impact       `json:"impact"`
	Trigger     string       `json:"trigger,omitempty"`
}

// MarshalJSON writes a trace record; its hops are never null, path_id only names
// a complete path.
func (t *Trace) MarshalJSON() ([]byte, error) {
	id := t.PathID
	if !t.Complete {
		id = "" // an incomplete path has no name
	}
	return json.Marshal(traceJSON{
		wrap("trace", time.Time{}), t.ID, t.Label, t.Start.UTC(), t.End.UTC(), t.Algorithm, t.Flow, t.Service, t.Process,
		list(t.Hops), t.Reached, t.Stop, reason(t.Reason, t.Stop == StopRefused), t.Destination, t.Complete, t.Mixed, id,
		t.Observed, t.Impact, t.Trigger,
	})
}

// UnmarshalJSON reads a trace record.
func (t *Trace) UnmarshalJSON(b []byte) error {
	var j traceJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	_, err := j.open("trace")
	*t = Trace{
		ID: j.ID, Label: j.Label, Start: j.Start, End: j.End, Algorithm: j.Algorithm, Flow: j.Flow, Service: j.Service,
		Process: j.Process, Hops: j.Hops, Reached: j.Reached, Stop: j.Stop, Destination: j.Destination,
		Complete: j.Complete, Mixed: j.Mixed, PathID: j.PathID, Observed: j.Observed, Impact: j.Impact, Trigger: j.Trigger,
	}
	if j.Reason != nil {
		t.Reason = *j.Reason
	}
	return err
}

// Unmarshal reads one record of any type.
func Unmarshal(b []byte) (Event, error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, err
	}
	kinds := map[string]Event{
		"trace": &Trace{}, "flow": &Flow{}, "finding": &Finding{}, "change": &Change{}, "compare": &Compare{}, "stats": &Stats{},
	}
	ev := kinds[e.Type]
	if ev == nil {
		return nil, fmt.Errorf("trace: unknown record type %q", e.Type)
	}
	if err := json.Unmarshal(b, ev); err != nil {
		return nil, errors.Join(fmt.Errorf("trace: %s record", e.Type), err)
	}
	return ev, nil
}
