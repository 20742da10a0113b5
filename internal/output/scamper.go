package output

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"servicetraceroute/trace"
)

// scamper writes traces as sc_warts2json prints them: keys, their types and when
// they are there are those of Debian's scamper 20211212. Only traces are in it,
// without those that were refused (nothing was probed) and without the cycle-start
// and cycle-stop lines of a measurement list.
//
// What a record does not tell is left out where scamper leaves out keys itself:
// records that were read from a file have no tx, and of replies only address, RTT,
// TTL and kind. tos and probe_size are those of the first probe answered, 0 when none
// was.
type scamper struct {
	enc  *json.Encoder
	opts Options
}

type scamperTrace struct {
	Type       string       `json:"type"`
	Version    string       `json:"version"`
	UserID     uint32       `json:"userid"`
	Method     string       `json:"method"`
	Src        string       `json:"src"`
	Dst        string       `json:"dst"`
	SrcPort    uint16       `json:"sport"`
	DstPort    uint16       `json:"dport"`
	StopReason string       `json:"stop_reason"`
	StopData   int          `json:"stop_data"` // with UNREACH the code
	Start      scamperStart `json:"start"`
	HopCount   int          `json:"hop_count"`
	Attempts   int          `json:"attempts"`
	HopLimit   int          `json:"hoplimit"`
	FirstHop   int          `json:"firsthop"`
	Wait       int64        `json:"wait"`       // s
	WaitProbe  int64        `json:"wait_probe"` // 1/100 s
	TOS        uint8        `json:"tos"`
	ProbeSize  int          `json:"probe_size"`
	ProbeCount int          `json:"probe_count"`
	Hops       []scamperHop `json:"hops,omitempty"`
}

type scamperStart struct {
	Sec   int64  `json:"sec"`
	Usec  int    `json:"usec"`
	FTime string `json:"ftime"` // UTC here; scamper's is of the time zone of who prints it
}

type scamperTime struct {
	Sec  int64 `json:"sec"`
	Usec int   `json:"usec"`
}

// scamperHop is one answer; a silent hop is not there.
type scamperHop struct {
	Addr      string       `json:"addr"`
	Name      string       `json:"name,omitempty"`
	ProbeTTL  int          `json:"probe_ttl"`
	ProbeID   int          `json:"probe_id"` // the attempt, from 1
	ProbeSize int          `json:"probe_size"`
	TX        *scamperTime `json:"tx,omitempty"`
	RTT       json.Number  `json:"rtt"` // ms, always with three decimals
	ReplyTTL  int          `json:"reply_ttl"`
	ReplyTOS  uint8        `json:"reply_tos"`
	ReplyID   *uint16      `json:"reply_ipid,omitempty"`
	ReplySize *int         `json:"reply_size,omitempty"`
	ICMPType  *uint8       `json:"icmp_type,omitempty"`
	ICMPCode  *uint8       `json:"icmp_code,omitempty"`
	QuoteTTL  *uint8       `json:"icmp_q_ttl,omitempty"`
	QuoteLen  *int         `json:"icmp_q_ipl,omitempty"`
	QuoteTOS  *uint8       `json:"icmp_q_tos,omitempty"` // IPv4 only
	NextMTU   *uint32      `json:"icmp_nhmtu:,omitempty"`
	TCPFlags  *uint8       `json:"tcp_flags,omitempty"`
	ICMPExt   []scamperExt `json:"icmpext,omitempty"`
}

// scamperExt is an RFC 4884 object; of the stack of RFC 4950 alone records tell.
type scamperExt struct {
	Class  int            `json:"ie_cn"`
	Type   int            `json:"ie_ct"`
	Len    int            `json:"ie_dl"`
	Labels []scamperLabel `json:"mpls_labels"`
}

type scamperLabel struct {
	TTL   uint8  `json:"mpls_ttl"`
	S     int    `json:"mpls_s"`
	Exp   uint8  `json:"mpls_exp"`
	Label uint32 `json:"mpls_label"`
}

// scamperStops are scamper's words. GSS is its global stop set, which is what a
// border is; HALTED is a trace that somebody ended; NONE tells no reason.
var scamperStops = map[trace.Stop]string{
	trace.StopDestination: "COMPLETED", trace.StopUnreachable: "UNREACH", trace.StopBorder: "GSS",
	trace.StopMaxTTL: "HOPLIMIT", trace.StopSilentHops: "GAPLIMIT",
	trace.StopDeadline: "HALTED", trace.StopCancelled: "HALTED", trace.StopFlowClosed: "HALTED", trace.StopFlowIdle: "HALTED",
}

// Write implements Writer.
func (s *scamper) Write(ev trace.Event) error {
	tr, ok := ev.(*trace.Trace)
	if !ok || tr.Stop == trace.StopRefused {
		return nil
	}
	p, start := s.opts.params(tr), tr.Start.UTC()
	out := scamperTrace{
		Type: "trace", Version: "0.1", Method: "tcp-ack",
		Src: tr.Flow.Src.Addr().String(), Dst: tr.Flow.Dst.Addr().String(),
		SrcPort: tr.Flow.Src.Port(), DstPort: tr.Flow.Dst.Port(), StopReason: scamperStops[tr.Stop],
		Start:    scamperStart{start.Unix(), start.Nanosecond() / 1000, start.Format(time.DateTime)},
		Attempts: p.Probes, HopLimit: p.MaxTTL, FirstHop: p.FirstTTL,
		Wait: int64((p.Timeout + time.Second - 1) / time.Second), WaitProbe: p.ProbeInterval.Milliseconds() / 10,
	}
	if tr.Flow.Proto == trace.UDP {
		out.Method = "udp-paris"
	}
	if out.StopReason == "" {
		out.StopReason = "NONE"
	}
	for _, h := range tr.Hops {
		out.ProbeCount += h.Sent
		if h.Sent > 0 || slices.ContainsFunc(h.Replies, own) {
			out.HopCount = max(out.HopCount, h.TTL)
		}
		for i, r := range h.Replies {
			if fromOthers(r) {
				continue
			}
			hop := scamperReply(h.TTL, i+1, r)
			if x := r.Exchange; x != nil && out.ProbeSize == 0 {
				out.ProbeSize, out.TOS = x.ProbeLen, x.ProbeTOS
			}
			if tr.Stop == trace.StopUnreachable && hop.ICMPCode != nil && r.Kind != trace.TimeExceeded {
				out.StopData = int(*hop.ICMPCode)
			}
			out.Hops = append(out.Hops, hop)
		}
	}
	return s.enc.Encode(out)
}

// scamperReply is one answer; number counts those of its TTL.
func scamperReply(ttl, number int, r trace.Reply) scamperHop {
	hop := scamperHop{
		Addr: r.Addr.String(), Name: r.Name, ProbeTTL: ttl, ProbeID: number,
		RTT: json.Number(fmt.Sprintf("%.3f", milliseconds(max(r.RTT, 0)))), ReplyTTL: r.ReplyTTL,
	}
	x := r.Exchange
	switch {
	case r.Kind == trace.TCPAck:
		hop.TCPFlags = new(uint8(0x10))
	case r.Kind == trace.TCPRst:
		hop.TCPFlags = new(uint8(0x04))
	case x != nil:
		hop.ICMPType, hop.ICMPCode, hop.QuoteTTL, hop.QuoteLen = &x.ICMPType, &x.ICMPCode, &x.QuoteTTL, &x.QuoteLen
		if r.Addr.Is4() {
			hop.QuoteTOS = &x.QuoteTOS
		}
		if r.Kind == trace.PacketTooBig {
			hop.NextMTU = &x.MTU
		}
	default:
		if typ, code, ok := icmpOf(r.Kind, r.Addr.Is4()); ok {
			hop.ICMPType, hop.ICMPCode = &typ, &code
		}
	}
	if x != nil {
		hop.ProbeID, hop.ProbeSize, hop.TX = x.Attempt, x.ProbeLen, &scamperTime{x.Sent.Unix(), x.Sent.Nanosecond() / 1000}
		hop.ReplyTOS, hop.ReplyID, hop.ReplySize = x.ReplyTOS, &x.ReplyID, &x.ReplyLen
		if x.TCPFlags != 0 {
			hop.TCPFlags = &x.TCPFlags
		}
	}
	if len(r.MPLS) > 0 {
		ext := scamperExt{Class: 1, Type: 1, Len: 4 * len(r.MPLS)}
		for _, l := range r.MPLS {
			s := 0
			if l.S {
				s = 1
			}
			ext.Labels = append(ext.Labels, scamperLabel{l.TTL, s, l.TC, l.Label})
		}
		hop.ICMPExt = []scamperExt{ext}
	}
	return hop
}

// Types and codes that a kind stands for, where it stands for one (RFC 792, RFC 4443).
var (
	icmp4 = map[trace.ReplyKind][2]uint8{
		trace.TimeExceeded: {11, 0}, trace.NetUnreachable: {3, 0}, trace.HostUnreachable: {3, 1}, trace.PortUnreachable: {3, 3},
		trace.AdminProhibited: {3, 13}, trace.PacketTooBig: {3, 4},
	}
	icmp6 = map[trace.ReplyKind][2]uint8{
		trace.TimeExceeded: {3, 0}, trace.NetUnreachable: {1, 0}, trace.HostUnreachable: {1, 3}, trace.PortUnreachable: {1, 4},
		trace.AdminProhibited: {1, 1}, trace.PacketTooBig: {2, 0},
	}
)

func icmpOf(kind trace.ReplyKind, v4 bool) (typ, code uint8, ok bool) {
	words := icmp6
	if v4 {
		words = icmp4
	}
	v, ok := words[kind]
	return v[0], v[1], ok
}
