package servicetraceroute

import (
	"io"
	"log/slog"
	"net/netip"
	"time"

	"servicetraceroute/internal/engine"
	"servicetraceroute/internal/probe"
	"servicetraceroute/trace"
)

// Budget bounds the probes per second of the Tracers that share it.
type Budget = engine.Budget

// NewBudget returns a budget of so many probes per second; 0 and less is 1000.
func NewBudget(rate int) *Budget {
	if rate <= 0 {
		rate = defaultRate
	}
	return engine.NewBudget(rate)
}

// Config configures a Tracer. The zero value traces with safe rates at all
// interfaces of the current network namespace.
type Config struct {
	// Source and Sink replace the packet sockets that New opens. They are closed
	// with the Tracer. Both or none, except with NoProbe, which needs no Sink.
	Source Source
	Sink   Sink
	// Backend is how packets are seen. Ignored with a Source.
	Backend Backend
	// Interfaces limits capture to these, by name; empty is all, also those that
	// appear later. Ignored with a Source.
	Interfaces []string
	// NetNS is the network namespace whose flows are traced: a name of ip-netns(8) or
	// the path of a namespace's file, such as /proc/PID/ns/net; empty is the caller's
	// own. New enters it on a thread that ends with that, to open the sockets; later
	// nothing enters it any more. It takes CAP_SYS_ADMIN, and a Tracer keeps its
	// namespace alive. Records hold it as it is written here. It excludes Source.
	NetNS string
	// Logger receives what happens beside the records; nil is silent.
	Logger *slog.Logger
	// Rate bounds the probes per second of this Tracer; 0 is 1000. What it holds back
	// is sent later.
	Rate int
	// Budget, where there is one, takes the place of Rate, for all Tracers that have
	// the same one.
	Budget *Budget
	// HopRate is the ceiling of probes per second and responder (a router, or the hop
	// at one TTL until it answered); 0 is 200. It begins at 1 after a burst of 6 and
	// rises while all are answered, since routers limit their ICMP errors.
	HopRate int
	// Exclude lists prefixes to which nothing is probed: a selected flow there is
	// refused, and reported so.
	Exclude []netip.Prefix
	// Loopback allows probing flows to this host's own addresses, which are refused
	// without.
	Loopback bool
	// NoProbe identifies flows and sends nothing: a Watch yields no traces, Trace and
	// TraceConn return an error that matches errors.ErrUnsupported.
	NoProbe bool
	// NoDNS leaves out what DNS answers on the wire say: names come from the first words
	// of the flows' own clients alone, and from the start.
	NoDNS bool
	// Label is put into every record as it is.
	Label string
	// RingBytes is the memory that the packet socket shares with the kernel; 0 is
	// 16 MiB, with PcapPayload 32 MiB. At least 512 KiB are taken.
	RingBytes int
	// Processes finds out which processes flows belong to as soon as they begin, for the
	// Selections that depend on it; without it records name a process when it is found in
	// time. It opens two more sockets (none of which needs another capability). To look
	// into other users' processes takes CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH as long as
	// the Tracer runs; without them their flows have no owner. It excludes Source.
	Processes bool
	// Pcap receives, as a pcapng file, the headers of the traced flows, our probes
	// and the replies, each probe and each reply with a comment that names trace,
	// TTL and verdict; nil: nothing is kept. PcapPayload adds what the flows carry.
	//
	// A goroutine of the Tracer writes to it until Close, which ends the file but
	// does not close the writer; that is the caller's, after Close. Packets are
	// written in time order, up to 10 s after they were captured, and flushed each
	// 50 ms. A writer that is too slow loses packets, never traces; Stats counts
	// them. At the first error of writing the evidence ends and tracing goes on: the
	// error is logged once, and Close returns it. Close waits for a Write in
	// progress; if the writer has a SetWriteDeadline, half a second.
	Pcap        io.Writer
	PcapPayload bool
	// Defaults are the parameters of traces that have none of their own.
	Defaults Params

	seed [32]byte // of all that is left to chance, for tests that must come out the same; zero: drawn
	few  int      // see capture.Config.Few, for tests with fewer packets; zero: fewFrom
}

// Params say how one flow is traced. The zero value is the documented default
// of every field.
type Params struct {
	Algorithm     trace.Algorithm // 0: adaptive
	FirstTTL      int             // 0: 1; a path that begins later is never Complete
	MaxTTL        int             // 0: 32; FirstTTL to 255
	Probes        int             // per hop; 0: 3; at most 20
	Timeout       time.Duration   // for a reply; 0: 2 s
	ProbeInterval time.Duration   // between probes of one TTL, the paper's algorithms only; 0: 20 ms
	TTLInterval   time.Duration   // between TTLs, the paper's algorithms only; 0: 1 ms
	MaxSilent     int             // silent hops in a row; 0: 5; negative: no limit
	Borders       []netip.Prefix  // a trace stops at the first answer from one of them
	FlowTimeout   time.Duration   // ends the trace of a flow silent for so long; 0: never, of UDP a minute
	UDPProbe      UDPProbe        // which UDP flows are probed; 0: UDPAuto
	// AfterClose lets the trace of a TCP flow that ended by FINs go on for up to a minute,
	// as long as Linux keeps a closed connection in TIME-WAIT, at TTLs below the known
	// distance alone: up to two hops before the destination as the peer's TTL tells that (to the
	// last before it, where this trace or another of the last ten minutes proved how far it is,
	// and of both the nearer one), and to the second beyond the last that answered. Nothing looks
	// for the destination any more. A reset and a SYN with the same addresses and ports end it at
	// once, lost packets as well. Such a trace stops as trace.StopDestination if that was proven
	// and nothing is left to ask below it; as StopBorder, StopUnreachable, StopSilentHops and
	// StopMaxTTL as ever; in all other cases as StopFlowClosed, which is never Complete.
	AfterClose bool
	// Share leaves out near hops of TCP flows that flows like them have in common, and shows
	// what another trace measured there: such a Reply has SharedFrom, its Hop.Sent is 0, and the
	// Trace is never Complete. Where it is true in Config.Defaults it is true of all traces.
	Share bool
}

// Per is what one trace stands for. The zero value is PerFlow.
type Per = engine.Per

// What one trace may stand for: each flow, all flows to one address, or those to one
// address and port.
const (
	PerFlow        = engine.PerFlow
	PerDestination = engine.PerDestination
	PerPort        = engine.PerPort
)

// UDPProbe says which UDP flows are probed. Others that are selected are reported as
// refused. The zero value is UDPAuto.
type UDPProbe = probe.UDPProbe

// The policies. UDPAuto probes QUIC, which drops what it cannot decrypt, and streams;
// UDPAlways also protocols of question and answer, such as DNS. Whatever the policy, no
// probe goes where the destination might see it as far as its distance is known, and none
// goes into a flow whose application would hear of it by ICMP errors (IP_RECVERR), see New.
const (
	UDPAuto   = probe.UDPAuto
	UDPOff    = probe.UDPOff
	UDPAlways = probe.UDPAlways
)

// Policy says when and how the flows of one service are traced. Its fields take the place
// of those of the same names in a Selection, all of them: what is zero is the documented
// default, of Params as in Config.Defaults.
type Policy struct {
	Params         Params
	Every, Retrace time.Duration
	Per            Per
	OnPayload      bool
	When           string
	CoolDown       time.Duration
}

// Selection says which flows are traced: what (Hosts, Services and Match, any of them)
// and, all of them, how that is narrowed. Only Processes, PIDs, Cgroups and Run select
// without any of these. Repeats within one field are alternatives.
type Selection struct {
	// Hosts are addresses ("203.0.113.7"), prefixes ("2001:db8::/32"), names
	// ("example.com", which means all below it too), wildcards ("*.example.com", all
	// below) and regular expressions ("/^cdn[0-9]+\./", RE2, without case). The most
	// specific that contains the destination's address, or matches its name, gives the
	// service its name.
	//
	// A flow's name is what its client says first (TLS server name, HTTP Host); without
	// that, what DNS answers seen on the wire say of its address, if they agree. One whose
	// address has other names too is reported as ignored, for trace.ReasonAmbiguous. Names
	// are also resolved once, when the selection is set, with the context given then; one
	// that does not resolve is no error.
	Hosts []string
	// Services are what is traced beside Hosts, see CataloguedService.
	Services []Service
	// Match are expressions over a flow, such as `dport in 8000..8999 && process == "curl"`,
	// for what neither Hosts nor Services select; docs/match.md lists fields, operators and
	// functions. The first that is true gives the service its name, the expression as
	// written. One that uses a flow's names waits for the client's first words as Hosts do,
	// one that uses its process needs Config.Processes, others decide at once. An expression
	// that is true of some names of an address and false of others makes the flow ignored,
	// for trace.ReasonAmbiguous.
	Match []string
	// Ports are destination ports as "443" or "8000-8999"; a flow that this host
	// accepted matches by its own port.
	Ports []string
	// Protos limits the transport protocols; empty is all that can be traced.
	Protos []trace.Proto
	// Interfaces limits to flows followed at these; empty is all.
	Interfaces []string
	// Directions limits who opened the flow; empty is out and in. Transit adds the flows
	// that this host only forwards: Hosts may then name their clients too, records hold
	// what a client calls its flow, and Flow.NAT the tuple on the wire where that differs.
	// They are probed by the interface at which they leave, up to two hops before their
	// destination. That takes CAP_NET_ADMIN as long as the Tracer runs, to keep the errors
	// about probes from the clients and to tell whose translated flows are; without it they
	// are refused for trace.ReasonCapability. A flow belongs here to no process.
	Directions []trace.Direction
	// IPv4Only and IPv6Only limit the address family.
	IPv4Only, IPv6Only bool
	// Processes, PIDs and Cgroups limit to flows of these processes: by the kernel's
	// name (15 bytes) or the executable's base name, by number, by control group
	// (path below the cgroup2 root, or directory) with all groups below it. Without
	// Hosts they select by themselves. They need Config.Processes. A flow whose
	// socket is gone before it was asked about has no process and is not selected.
	Processes []string
	PIDs      []int
	Cgroups   []string
	// Run limits to flows of one command; without Hosts it selects by itself. It
	// needs Config.Processes.
	Run *Run
	// Every is the least time between two traces of one flow, also when it ends and
	// begins again with the same ports; 0 is 10 minutes, negative is once. Retrace traces a live flow
	// again so long after its last trace; 0 is off.
	Every, Retrace time.Duration
	// Per says for what Every counts: for PerDestination and PerPort only one flow at a time
	// is traced of those that share it. The zero value is PerFlow.
	Per Per
	// When, if it is not empty, is an expression over a TCP flow's health, such as
	// "retransmits >= 5 || rtt_factor > 3"; docs/when.md lists its fields. A flow is traced
	// when it becomes true, instead of at its beginning, and again when it is true no sooner
	// than CoolDown after the trace before; 0 is a minute. Flows over UDP are not traced then.
	When     string
	CoolDown time.Duration
	// OnPayload lets no trace begin before its flow carries payload.
	OnPayload bool
	// StopNewAfter ends the start of new traces, and the watch when those in progress
	// are done; 0 is never.
	StopNewAfter time.Duration
	// Params are how these flows are traced; what is zero is as in Config.Defaults.
	Params Params
	// Policies are, by the name of a service as it stands in records, how its flows are
	// traced, whatever Params, Every, Retrace, Per, When, CoolDown and OnPayload say.
	Policies map[string]Policy
	// Idle ends the watch when no selected flow showed a packet for so long; 0 is never.
	Idle time.Duration
	// Ready, if there is one, is called once by Watch, from the goroutine that loops
	// over it, as soon as names are resolved and the selection is in force: of flows that
	// begin after that, nothing is missed. SetSelection does not look at it.
	Ready func()
}
