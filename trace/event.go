package trace

import (
	"net/netip"
	"time"
)

// Event is one record: *Trace, *Flow, *Finding, *Change, *Compare or
// *Stats. The set is closed.
type Event interface{ event() }

func (*Trace) event()   {}
func (*Flow) event()    {}
func (*Finding) event() {}
func (*Change) event()  {}
func (*Compare) event() {}
func (*Stats) event()   {}

// Finding is a conclusion about a path: the change lies between TTLFrom (last
// clean) and TTL.
type Finding struct {
	Time       time.Time
	Label      string
	Trace      string
	Flow       Tuple
	Kind       FindingKind
	TTLFrom    int
	TTL        int
	Value      string
	Evidence   []string
	Confidence float64 // 0..1
}

// PathRef names one complete path.
type PathRef struct {
	Trace  string `json:"trace"`
	PathID string `json:"path_id"`
}

// Change tells that two traces of one flow differ at some TTL whose
// non-empty address sets are disjoint.
type Change struct {
	Time  time.Time
	Label string
	Flow  Tuple
	Old   PathRef
	New   PathRef
	TTL   int
	From  []netip.Addr
	To    []netip.Addr
	Cause string // "route", "flow-label" or "unknown"
}

// Sibling is a new flow to the same destination, for comparison only.
type Sibling struct {
	Proto      string `json:"proto"` // "tcp", "udp" or "icmp"
	SourcePort uint16 `json:"sport"`
	Hops       []Hop  `json:"hops"`
	Reached    bool   `json:"reached"`
	Stop       Stop   `json:"stop"`
}

// Alternative lists what siblings saw at a TTL beside the flow's own hop.
type Alternative struct {
	TTL        int          `json:"ttl"`
	Addrs      []netip.Addr `json:"addrs"`
	Confidence float64      `json:"confidence"`
	InFlow     netip.Addr   `json:"in_flow"`
}

// Blocked tells after which TTL siblings of a protocol got no answer any more.
type Blocked struct {
	Proto    string `json:"proto"`
	AfterTTL int    `json:"after_ttl"`
}

// Compare holds a flow's path against those of its siblings.
type Compare struct {
	Time         time.Time
	Label        string
	Flow         Tuple
	Trace        string
	Siblings     []Sibling
	Alternatives []Alternative
	Blocked      []Blocked
	Divergent    bool
	Divergence   float64 // share of siblings with a disjoint answering TTL
}

// Stats are a tracer's counters since its start. Every drop is in here.
type Stats struct {
	Time     time.Time
	Label    string
	Uptime   time.Duration
	Backend  string
	Reason   string // why this back end
	Packets  PacketStats
	Flows    FlowStats
	Traces   TraceStats
	Probes   ProbeStats
	Replies  ReplyStats
	Services ServiceStats
	Impact   ImpactStats
	Owners   *OwnerStats  // nil: processes are not looked for, or cannot be
	Pcap     *PcapStats   // nil: no packets are kept
	Records  *RecordStats // nil: none was dropped
}

// PacketStats count captured packets.
type PacketStats struct {
	Seen      uint64 `json:"seen"`
	Dropped   uint64 `json:"dropped"`   // lost by the kernel or by a bounded buffer
	Malformed uint64 `json:"malformed"` // could not be decoded
}

// FlowStats count flows.
type FlowStats struct {
	Live    uint64 `json:"live"`
	Matched uint64 `json:"matched"`
	Evicted uint64 `json:"evicted"` // dropped because the table was full
	// Withheld counts packets of new flows that were not shown since too many flows began at
	// once; their SYNs were. Of the back end ebpf alone.
	Withheld uint64 `json:"withheld,omitempty"`
	// Brief counts flows of which, since very many began, only what tells whose they are was
	// shown at first. Of the back end ebpf alone.
	Brief uint64 `json:"brief,omitempty"`
}

// TraceStats count traces.
type TraceStats struct {
	Started uint64          `json:"started"`
	Done    uint64          `json:"done"`
	ByStop  map[Stop]uint64 `json:"by_stop"` // never nil in a record
	// Unfollowed are the times that the path of a flow which is traced again was not confirmed
	// between two traces, since those of too many others were.
	Unfollowed uint64 `json:"unfollowed,omitempty"`
}

// ProbeStats count probes.
type ProbeStats struct {
	Sent     uint64 `json:"sent"`
	Deferred uint64 `json:"deferred"`
	Refused  uint64 `json:"refused"`
	EPERM    uint64 `json:"eperm"`
	ENOBUFS  uint64 `json:"enobufs"`
	Failed   uint64 `json:"failed,omitempty"` // to be sent, for any other reason: an interface that is down
}

// ReplyStats count replies.
type ReplyStats struct {
	Matched uint64 `json:"matched"`
	// Unmatched are quotes of a traced flow that no probe explains. Those that the
	// path changed are among them until three agree on the change.
	Unmatched uint64 `json:"unmatched"`
	Late      uint64 `json:"late"`
	Duplicate uint64 `json:"duplicate"`
	// Withheld are those that were dropped before an application heard of them.
	Withheld uint64 `json:"withheld,omitempty"`
}

// ServiceStats count names taken from the wire.
type ServiceStats struct {
	DNS  uint64 `json:"dns"`
	SNI  uint64 `json:"sni"`
	QUIC uint64 `json:"quic"`
	// Dropped are flows whose first words were not read because too many were.
	Dropped uint64 `json:"dropped,omitempty"`
	// Cut are flows the reading of whose first words, and connections the reading of whose
	// DNS messages, was given up: what was captured of them had gaps, or was too long.
	Cut uint64 `json:"cut,omitempty"`
	// Limited are QUIC Initials that were not decrypted because too many came.
	Limited uint64 `json:"limited,omitempty"`
	// Forgotten are DNS questions, names and addresses that made room for others.
	Forgotten uint64 `json:"forgotten,omitempty"`
	// Malformed are DNS messages that are none, and QUIC Initials that are none or that do
	// not decrypt.
	Malformed uint64 `json:"malformed,omitempty"`
}

// PcapStats count the packets of the pcapng file.
type PcapStats struct {
	Written uint64 `json:"written"`
	Dropped uint64 `json:"dropped"` // the file was too slow, or failed, or too many replies fitted no probe
}

// RecordStats count the records that a Watch wrote.
type RecordStats struct {
	Dropped uint64 `json:"dropped"` // their reader was too slow
}

// OwnerStats count how the processes of flows were looked for.
type OwnerStats struct {
	Asked   uint64 `json:"asked"`   // questions to the kernel
	Found   uint64 `json:"found"`   // flows whose process was found
	Unknown uint64 `json:"unknown"` // sockets that were gone already, or that no process shows
	Dropped uint64 `json:"dropped"` // flows that were not looked at, for there were too many
}

// ImpactStats count what the circuit breaker did.
type ImpactStats struct {
	Aborts uint64 `json:"aborts"`
}
