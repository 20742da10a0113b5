package selftest

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"servicetraceroute/trace"
)

// Record is what a self-test tried and saw. As JSON it is one object, described with
// the other records in docs/schema.
type Record struct {
	Schema  string    `json:"schema"` // trace.Schema
	Type    string    `json:"type"`   // "selftest"
	Time    time.Time `json:"time"`   // when it began, UTC, whole seconds
	System  System    `json:"system"`
	Network Network   `json:"network"`
	// Compared are the kernel's counters that must not be higher with tracing.
	Compared []string `json:"compared"`
	Pairs    []Pair   `json:"pairs"`
	Paths    Paths    `json:"paths"`
	// LeftBehind is what was there after its owner had ended and should not have been.
	LeftBehind []string `json:"left_behind"`
	NotTried   []string `json:"not_tried"`
	Verdict    Verdict  `json:"verdict"`
	Reasons    []string `json:"reasons"`
}

// recordType is what Record.Type holds.
const recordType = "selftest"

// System is what was tested.
type System struct {
	Version string `json:"version"` // of this program
	Go      string `json:"go"`
	OS      string `json:"os"`
	Kernel  string `json:"kernel"` // its release, as uname -r prints it
	Arch    string `json:"arch"`
	// UserNamespace says that there was no root: the TCP settings are then the kernel's
	// defaults and not the host's.
	UserNamespace bool     `json:"user_namespace"`
	Capabilities  []string `json:"capabilities"` // those of interest that the process has
	Backend       string   `json:"backend"`
	BackendReason string   `json:"backend_reason"`
	Congestion    string   `json:"congestion"` // the hosts' congestion control
	Offloads      []string `json:"offloads"`   // on at the client's interface
	// Sysctls are settings in force at both hosts, by name.
	Sysctls map[string]string `json:"sysctls"`
}

// Network is the path on which flows ran.
type Network struct {
	Routers  int     `json:"routers"`
	DelayMS  float64 `json:"delay_ms"` // one way
	BitRate  int64   `json:"bit_rate"` // bit/s each way
	Firewall bool    `json:"firewall"` // a stateful one, with connection tracking
}

// Pair is one kind of flow, traced and untraced, once or more often.
type Pair struct {
	Family  string `json:"family"` // "ipv4", "ipv6"
	Proto   string `json:"proto"`  // "tcp", "udp"
	Traffic string `json:"traffic"`
	Tries   []Try  `json:"tries"`
}

// Try is a traced flow and its untraced twin.
type Try struct {
	// Busy says that the machine did not run the test's own parts in time: hosts and
	// links stood still now and then, which TCP takes for loss.
	Busy     bool `json:"busy"`
	Traced   Flow `json:"traced"`
	Untraced Flow `json:"untraced"`
}

// Flow is what became of one flow.
type Flow struct {
	// Intact says that each end received exactly the bytes that the other had sent, and
	// the flow ended in order; of datagrams, that each had its answer and nothing else came.
	Intact  bool    `json:"intact"`
	Failure string  `json:"failure,omitempty"` // why it was not intact
	Bytes   int64   `json:"bytes"`             // of the larger direction
	BitRate int64   `json:"bit_rate"`          // bit/s
	Latency float64 `json:"latency_ms"`        // the median of its exchanges; 0: none
	// Counters are the compared counters that moved, of both hosts together.
	Counters map[string]int64 `json:"counters"`
	// Conntrack is the least time that the firewall still gave the flow, in seconds;
	// 0: it was not looked at in time, or there is no firewall.
	Conntrack int64      `json:"conntrack_s"`
	Datagrams *Datagrams `json:"datagrams,omitempty"`
	Probes    uint64     `json:"probes"`
	Traces    int        `json:"traces"`
	Refused   string     `json:"refused,omitempty"` // why it was not probed, as trace.Reason says it
}

// Datagrams count those of a UDP flow.
type Datagrams struct {
	Sent      int `json:"sent"`
	Answered  int `json:"answered"`
	Delivered int `json:"delivered"` // to sockets at the server
	Stray     int `json:"stray"`     // that came to the server and no socket took
	Wrong     int `json:"wrong"`     // at the client, that were no answer
	Errors    int `json:"errors"`    // that the client's socket told its application
}

// Paths sum up what traces showed, held against the network as it was made.
type Paths struct {
	Traces        int `json:"traces"`
	Complete      int `json:"complete"`
	Reached       int `json:"reached"`
	Hops          int `json:"hops"`           // answers of routers
	False         int `json:"false"`          // of those, not from the router of that place
	WrongDistance int `json:"wrong_distance"` // destinations shown at another place
}

// Verdict is what a self-test comes to. The zero value is invalid.
type Verdict uint8

// The verdicts.
const (
	// Harmless: twins fared alike, and all that was shown is true.
	Harmless Verdict = iota + 1
	// Harm: a traced flow fared worse than its twin, a shown path is false, or something
	// was left behind.
	Harm
	// NotTried: too little could be compared.
	NotTried
)

var verdictWords = [...]string{Harmless: "harmless", Harm: "harm", NotTried: "not tried"}

// String is the word of records.
func (v Verdict) String() string {
	if v == 0 || int(v) >= len(verdictWords) {
		return fmt.Sprintf("verdict(%d)", uint8(v))
	}
	return verdictWords[v]
}

// MarshalText writes the word.
func (v Verdict) MarshalText() ([]byte, error) {
	if v == 0 || int(v) >= len(verdictWords) {
		return nil, fmt.Errorf("selftest: unknown verdict %d", uint8(v))
	}
	return []byte(verdictWords[v]), nil
}

// UnmarshalText reads the word.
func (v *Verdict) UnmarshalText(text []byte) error {
	for i, word := range verdictWords {
		if i > 0 && word == string(text) {
			*v = Verdict(i)
			return nil
		}
	}
	return fmt.Errorf("selftest: unknown verdict %q", text)
}

// newRecord is an empty one, whose lists are lists and not null.
func newRecord(at time.Time) *Record {
	return &Record{
		Schema: trace.Schema, Type: recordType, Time: at.UTC().Truncate(time.Second),
		System:   System{Capabilities: []string{}, Offloads: []string{}, Sysctls: map[string]string{}},
		Compared: []string{}, Pairs: []Pair{}, LeftBehind: []string{}, NotTried: []string{}, Reasons: []string{},
	}
}

// WriteJSON writes the record as one line.
func (r *Record) WriteJSON(w io.Writer) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// Read reads a record. It is an error if it is one of another kind or version.
func Read(in io.Reader) (*Record, error) {
	var r Record
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return nil, fmt.Errorf("selftest: %w", err)
	}
	if r.Schema != trace.Schema || r.Type != recordType {
		return nil, fmt.Errorf("selftest: record is %q %q, not %q %q", r.Schema, r.Type, trace.Schema, recordType)
	}
	return &r, nil
}
