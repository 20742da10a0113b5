package servicetraceroute

import (
	"log/slog"
	"net/netip"
	"time"

	"servicetraceroute/internal/capture"
	"servicetraceroute/internal/inject"
	"servicetraceroute/trace"
)

// Source delivers captured packets, Sink sends probes. A caller may bring its
// own of both: packets from an existing capture, probes out through its own
// sender.
type (
	Source       = capture.Source
	Sink         = inject.Sink
	Packet       = capture.Packet
	SourceStats  = capture.Stats
	HardwareAddr = capture.HardwareAddr
)

// Config configures a Tracer. The zero value traces with safe rates at all
// interfaces of the current network namespace.
type Config struct {
	// Source and Sink replace the packet sockets that New opens. They are closed
	// with the Tracer. Both or none, except with NoProbe, which needs no Sink.
	Source Source
	Sink   Sink
	// Interfaces limits capture to these; empty is all. Ignored with a Source.
	Interfaces []string
	// Logger receives what happens beside the records; nil is silent.
	Logger *slog.Logger
	// Rate bounds the probes per second of this Tracer; 0 is 1000.
	Rate int
	// HopRate is the ceiling per responder; 0 is 200.
	HopRate int
	// Exclude lists prefixes that are never probed.
	Exclude []netip.Prefix
	// Loopback allows probing flows to this host's own addresses.
	Loopback bool
	// NoProbe identifies flows and sends nothing.
	NoProbe bool
	// Label is put into every record.
	Label string
	// Defaults are the parameters of traces that have none of their own.
	Defaults Params
}

// Params say how one flow is traced. The zero value is the documented default
// of every field.
type Params struct {
	Algorithm     trace.Algorithm // 0: adaptive
	FirstTTL      int             // 0: 1
	MaxTTL        int             // 0: 32; at most 255
	Probes        int             // per hop; 0: 3
	Timeout       time.Duration   // for a reply; 0: 2 s
	ProbeInterval time.Duration   // between probes of one TTL, the paper's algorithms only; 0: 20 ms
	TTLInterval   time.Duration   // between TTLs, the paper's algorithms only; 0: 1 ms
	MaxSilent     int             // silent hops in a row; 0: 5; negative: no limit
	Borders       []netip.Prefix  // a trace stops at the first answer from one of them
	FlowTimeout   time.Duration   // ends the trace of a flow silent for so long; 0: never
}

// Selection says which flows are traced: what (Hosts, any of them) and, all of
// them, how that is narrowed. Repeats within one field are alternatives.
type Selection struct {
	// Hosts are addresses, prefixes and names. Names are resolved once, when the
	// selection is set.
	Hosts []string
	// Ports are destination ports as "443" or "8000-8999"; a flow that this host
	// accepted matches by its own port.
	Ports []string
	// Protos limits the transport protocols; empty is all that can be traced.
	Protos []trace.Proto
	// Interfaces limits to flows followed at these; empty is all.
	Interfaces []string
	// Directions limits who opened the flow; empty is out and in.
	Directions []trace.Direction
	// IPv4Only and IPv6Only limit the address family.
	IPv4Only, IPv6Only bool
	// Every is the least time between two traces of one flow; 0 is 10 minutes,
	// negative is once. Retrace traces a live flow again so often; 0 is off.
	Every, Retrace time.Duration
	// StopNewAfter ends the start of new traces; 0 is never.
	StopNewAfter time.Duration
	// Idle ends the watch when no selected flow showed a packet for so long; 0 is never.
	Idle time.Duration
}
