package output

import (
	"net/netip"
	"time"

	"servicetraceroute/trace"
)

var (
	noon = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC)
	flow = trace.Tuple{
		FlowKey: trace.FlowKey{
			Proto: trace.TCP, Src: netip.MustParseAddrPort("10.0.0.1:40510"), Dst: netip.MustParseAddrPort("203.0.113.7:443"),
		},
		Direction: trace.Out, Interface: "eth0",
	}
	chosen = &trace.Service{Name: "203.0.113.7", By: trace.ByAddress, Value: "203.0.113.7"}
)

func reply(addr string, rtt time.Duration, kind trace.ReplyKind) trace.Reply {
	return trace.Reply{Addr: netip.MustParseAddr(addr), RTT: rtt, Kind: kind, ReplyTTL: 60}
}

// hostile is a name that would take over a terminal.
const hostile = "a\x1b[2Jb\u202ec\xff\nd"

// samples are records as a tracer makes them: what is usual, and every corner
// that the two formats have to say something about.
func samples() []trace.Event {
	return append(append(traces(), oddTraces()...), others()...)
}

func traces() []trace.Event {
	us := time.Microsecond
	return []trace.Event{
		&trace.Trace{
			ID: "0123456789abcdef", Start: noon, End: noon.Add(1234 * time.Millisecond), Algorithm: trace.Adaptive,
			Flow: flow, Service: chosen, Process: &trace.Process{PID: 4242, Name: hostile},
			Hops: []trace.Hop{
				{TTL: 1, Sent: 3, Replies: []trace.Reply{
					reply("192.0.2.1", 312*us, trace.TimeExceeded), reply("192.0.2.9", 400*us, trace.TimeExceeded),
					reply("192.0.2.1", 298*us, trace.TimeExceeded),
				}},
				{TTL: 2, Sent: 3, Replies: []trace.Reply{}},
				{TTL: 3, Sent: 3, Deferred: 2, Limited: true, Replies: []trace.Reply{{
					Addr: netip.MustParseAddr("198.51.100.1"), RTT: 2100 * us, Kind: trace.TimeExceeded, ReplyTTL: 62, Late: true,
					Name: hostile, ASN: 64500, MPLS: []trace.Label{{Label: 16001, S: true, TTL: 1}},
					Changes: []trace.FindingKind{trace.NATSrc, trace.MPLS},
				}}},
				{TTL: 6, Sent: 2, Replies: []trace.Reply{reply("203.0.113.7", 11800*us, trace.TCPAck)}},
			},
			Reached: true, Stop: trace.StopDestination,
			Destination: &trace.Destination{TTL: 6, RTT: 11800 * us, By: trace.DestinationByAck},
			Complete:    true, PathID: "0011223344556677", Observed: trace.Observed{RTT: 12100 * us, BytesIn: 9},
		},
		&trace.Trace{
			ID: "0123456789abcde0", Label: "lab 1", Start: noon, End: noon.Add(310 * time.Millisecond), Algorithm: trace.HopByHop,
			Flow: flow, Service: &trace.Service{Name: "video", By: trace.ByNameAtStart, Value: "www.example.com"},
			Hops: []trace.Hop{{TTL: 1, Sent: 1, Replies: []trace.Reply{reply("192.0.2.1", 312*us, trace.TimeExceeded)}}},
			Stop: trace.StopFence, Destination: &trace.Destination{RTT: 12100 * us, By: trace.DestinationByPassive},
			Mixed: true, Observed: trace.Observed{RTT: 12100 * us, Retransmits: 2},
			Impact: trace.Impact{Retransmits: 1, DupAcks: 2, Aborted: true},
		},
	}
}

func oddTraces() []trace.Event {
	v6 := trace.Tuple{
		FlowKey: trace.FlowKey{
			Proto: trace.UDP, Src: netip.MustParseAddrPort("[2001:db8::1]:5353"), Dst: netip.MustParseAddrPort("[2001:db8::7]:443"),
		},
		Direction: trace.In, NAT: &flow.FlowKey,
	}
	unreachables := trace.Hop{TTL: 4, Sent: 9}
	for i, kind := range []trace.ReplyKind{
		trace.NetUnreachable, trace.HostUnreachable, trace.PortUnreachable, trace.AdminProhibited, trace.Unreachable,
		trace.PacketTooBig, trace.TCPRst,
	} {
		unreachables.Replies = append(unreachables.Replies, reply("2001:db8::4", time.Duration(i)*time.Millisecond, kind))
	}
	sharedReply := reply("192.0.2.1", 312*time.Microsecond, trace.TimeExceeded)
	sharedReply.SharedFrom = "0123456789abcdef"
	unknown := trace.Observed{RTT: -1}
	return []trace.Event{
		&trace.Trace{
			ID: "0123456789abcde1", Start: noon, End: noon, Algorithm: trace.Concurrent, Flow: v6,
			Hops: []trace.Hop{unreachables}, Stop: trace.StopUnreachable, Observed: unknown,
		},
		&trace.Trace{
			ID: "0123456789abcde2", Start: noon, End: noon, Algorithm: trace.PacketByPacket, Flow: flow, Service: chosen,
			Stop: trace.StopRefused, Reason: trace.ReasonMD5, Observed: unknown,
		},
		&trace.Trace{
			ID: "0123456789abcde4", Start: noon, End: noon.Add(410 * time.Millisecond), Algorithm: trace.Adaptive, Flow: flow, Service: chosen,
			Hops: []trace.Hop{
				{TTL: 1, Replies: []trace.Reply{sharedReply}},
				{TTL: 2, Sent: 1, Replies: []trace.Reply{reply("192.0.2.5", 700*time.Microsecond, trace.TimeExceeded)}},
				{TTL: 3, Sent: 2, Replies: []trace.Reply{reply("203.0.113.7", 11800*time.Microsecond, trace.TCPAck)}},
			},
			Reached: true, Stop: trace.StopDestination, Destination: &trace.Destination{TTL: 3, RTT: 11800 * time.Microsecond, By: trace.DestinationByAck},
			Observed: trace.Observed{RTT: 12100 * time.Microsecond},
		},
		// Nothing but what a record must have.
		&trace.Trace{
			ID: "0123456789abcde3", Start: noon, End: noon, Algorithm: trace.Adaptive, Flow: flow, Stop: trace.StopCancelled,
			Observed: unknown,
		},
	}
}

func others() []trace.Event {
	addr := netip.MustParseAddr
	sibling := trace.Sibling{Proto: "udp", SourcePort: 33434, Hops: []trace.Hop{{TTL: 1, Sent: 1}}, Stop: trace.StopSilentHops}
	return []trace.Event{
		&trace.Flow{Tuple: flow, Time: noon, Service: chosen, State: trace.FlowMatched},
		&trace.Flow{Tuple: flow, Time: noon, State: trace.FlowIgnored, Reason: trace.ReasonAmbiguous},
		&trace.Flow{Tuple: flow, Time: noon, State: trace.FlowMatched, Service: &trace.Service{
			Name: "*.example.net", By: trace.BySNI, Value: "public.example.net", ECH: true,
		}},
		&trace.Flow{Tuple: flow, Time: noon, State: trace.FlowIgnored},
		&trace.Flow{Tuple: flow, Time: noon, Service: chosen, State: trace.FlowRefused, Reason: trace.ReasonLoopback},
		&trace.Finding{
			Time: noon, Trace: "0123456789abcdef", Flow: flow, Kind: trace.DSCPChanged, TTLFrom: 2, TTL: 3,
			Value: "46 to 0" + hostile, Evidence: []string{"tos 0xb8 became 0x00"}, Confidence: 0.9,
		},
		&trace.Finding{Time: noon, Trace: "0123456789abcdef", Flow: flow, Kind: trace.Loop, TTLFrom: 2, TTL: 3, Confidence: 1},
		&trace.Change{
			Time: noon, Flow: flow, TTL: 3, From: []netip.Addr{addr("192.0.2.1")}, To: []netip.Addr{addr("192.0.2.2"), addr("192.0.2.3")},
			Old: trace.PathRef{Trace: "0123456789abcdef", PathID: "0011223344556677"},
			New: trace.PathRef{Trace: "0123456789abcde0", PathID: "8899aabbccddeeff"}, Cause: "route",
		},
		&trace.Compare{
			Time: noon, Flow: flow, Trace: "0123456789abcdef", Siblings: []trace.Sibling{sibling, sibling},
			Alternatives: []trace.Alternative{{TTL: 2, Addrs: []netip.Addr{addr("192.0.2.8")}, Confidence: 0.95, InFlow: addr("192.0.2.9")}},
			Blocked:      []trace.Blocked{{Proto: "udp", AfterTTL: 4}}, Divergent: true, Divergence: 0.5,
		},
		&trace.Compare{Time: noon, Flow: flow, Trace: "0123456789abcdef"},
		&trace.Stats{Time: noon, Uptime: time.Minute, Backend: "ebpf", Reason: "auto: the kernel took its programs", Flows: trace.FlowStats{Live: 3, Withheld: 5, Brief: 6}},
		&trace.Stats{Time: noon, Backend: "source", Records: &trace.RecordStats{Dropped: 7}, Services: trace.ServiceStats{Cut: 1, Limited: 2, Forgotten: 3, Malformed: 4}, Traces: trace.TraceStats{ByStop: map[trace.Stop]uint64{trace.StopFence: 1}}},
	}
}
