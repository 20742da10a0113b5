package output

import (
	"encoding/json"
	"net"
	"slices"
	"time"

	"servicetraceroute/trace"
)

// Params are the parameters of a run that its records do not repeat, for the
// formats that want them. The zero value writes zeros.
type Params struct {
	FirstTTL, MaxTTL int
	Probes           int           // per hop
	Timeout          time.Duration // of a probe
	ProbeInterval    time.Duration // between probes of one TTL; not in force with adaptive
	TTLInterval      time.Duration // between TTLs; likewise
	MaxSilent        int           // silent hops in a row; 0: no limit
	FlowTimeout      time.Duration // 0: none
	// PayloadOnly: a trace began only when its flow carried payload.
	PayloadOnly bool
}

// reference writes the JSON of the PAM 2019 paper's tool, one object a line, as its
// analysis scripts read it. Only traces are in it. One that was refused is not: the
// format has no word for that, and the scripts would take it for a path of no hops.
type reference struct {
	enc  *json.Encoder
	opts Options
}

type referenceJSON struct {
	Info referenceInfo
	Data referenceData
}

type referenceInfo struct{ Version, Conf, Type string }

// referenceData is ServiceTracerouteReport of the tool, version 0.3d.
type referenceData struct {
	TransportProtocol string // tcp, udp
	TargetIP          string
	TargetPort        uint16
	LocalIP           string
	LocalPort         uint16
	Service           string
	IPResolution      string    // the name by which the flow was told; empty when it was none
	Hops              []string  // by TTL from 1, without the destination; empty for a silent one
	RttsAvg           []float64 // ms; 0 for a silent hop
	RttsVar           []float64 // ms², of the population (mean of squares less square of mean), as that tool computes it

	MaxTtl         int
	BorderDistance int // how far the trace came: len(Hops)
	Iterations     int // probes per hop

	MaxConsecutiveMissingHops        int
	ReachedMaxConsecutiveMissingHops bool

	ProbingAlgorithm     string
	StartWithEmptyPacket bool

	InterProbeTime     int64 // µs
	InterIterationTime int64 // µs

	Timeout            int64 // ms
	FlowTimeout        int64 // ms
	ReachedFlowTimeout bool
	FlowEnded          bool

	ReachedBorderRouter bool

	TsStart int64 // Unix ms
	TsEnd   int64

	HopIPs [][]string
	Rtts   [][]float64 // ms, beside HopIPs
}

// referenceAlgorithms are that tool's words, and one more.
var referenceAlgorithms = map[trace.Algorithm]string{
	trace.PacketByPacket: "packetbypacket", trace.HopByHop: "hopbyhop", trace.Concurrent: "concurrent", trace.Adaptive: "adaptive",
}

// Write implements Writer.
func (r *reference) Write(ev trace.Event) error {
	tr, ok := ev.(*trace.Trace)
	if !ok || tr.Stop == trace.StopRefused {
		return nil
	}
	p := r.opts.params(tr)
	d := referenceData{
		TransportProtocol: tr.Flow.Proto.String(),
		TargetIP:          tr.Flow.Dst.Addr().String(), TargetPort: tr.Flow.Dst.Port(),
		LocalIP: tr.Flow.Src.Addr().String(), LocalPort: tr.Flow.Src.Port(),
		MaxTtl: p.MaxTTL, BorderDistance: distance(tr), Iterations: p.Probes,
		MaxConsecutiveMissingHops: p.MaxSilent, ReachedMaxConsecutiveMissingHops: tr.Stop == trace.StopSilentHops,
		ProbingAlgorithm: referenceAlgorithms[tr.Algorithm], StartWithEmptyPacket: !p.PayloadOnly,
		InterProbeTime: p.ProbeInterval.Microseconds(), InterIterationTime: p.TTLInterval.Microseconds(),
		Timeout: p.Timeout.Milliseconds(), FlowTimeout: p.FlowTimeout.Milliseconds(),
		ReachedFlowTimeout: tr.Stop == trace.StopFlowIdle, FlowEnded: tr.Stop == trace.StopFlowClosed,
		ReachedBorderRouter: tr.Stop == trace.StopBorder,
		TsStart:             tr.Start.UnixMilli(), TsEnd: tr.End.UnixMilli(),
	}
	if tr.Service != nil {
		d.Service, d.IPResolution = tr.Service.Name, resolution(tr.Service)
	}
	d.hops(tr)
	return r.enc.Encode(referenceJSON{referenceInfo{r.opts.Version, tr.Label, "ServiceTraceroute"}, d})
}

// hops fills what is there for each TTL below the destination.
func (d *referenceData) hops(tr *trace.Trace) {
	n := d.BorderDistance
	d.Hops, d.RttsAvg, d.RttsVar = make([]string, n), make([]float64, n), make([]float64, n)
	d.HopIPs, d.Rtts = make([][]string, n), make([][]float64, n)
	for i := range n {
		d.HopIPs[i], d.Rtts[i] = []string{}, []float64{}
	}
	for _, h := range tr.Hops {
		i := h.TTL - 1
		if i < 0 || i >= n {
			continue
		}
		most := 0
		times := map[string]int{}
		for _, reply := range h.Replies {
			if final(tr, h, reply) || fromOthers(reply) || reply.RTT < 0 {
				continue
			}
			addr := reply.Addr.String()
			d.HopIPs[i], d.Rtts[i] = append(d.HopIPs[i], addr), append(d.Rtts[i], milliseconds(reply.RTT))
			if times[addr]++; times[addr] > most { // of several the one that answered most, and first
				d.Hops[i], most = addr, times[addr]
			}
		}
		d.RttsAvg[i], d.RttsVar[i] = moments(d.Rtts[i])
	}
}

// distance is the highest TTL that was probed, or the last before the destination.
func distance(tr *trace.Trace) int {
	last := 0
	for _, h := range tr.Hops {
		if h.Sent > 0 || slices.ContainsFunc(h.Replies, own) {
			last = max(last, h.TTL)
		}
	}
	if tr.Reached && tr.Destination != nil && tr.Destination.TTL > 0 {
		last = min(last, tr.Destination.TTL-1)
	}
	return last
}

// own reports whether a reply answered a probe of this trace.
func own(r trace.Reply) bool { return !fromOthers(r) }

// final reports whether a reply is the destination's own.
func final(tr *trace.Trace, h trace.Hop, r trace.Reply) bool {
	if r.Kind == trace.TCPAck || r.Kind == trace.TCPRst {
		return true
	}
	return r.Kind != trace.TimeExceeded && r.Addr == tr.Flow.Dst.Addr()
}

// resolution is the name by which a flow was told, if a name it was.
func resolution(s *trace.Service) string {
	switch s.By {
	case trace.ByDNS, trace.BySNI, trace.ByQUICSNI, trace.ByHTTPHost, trace.ByNameAtStart:
		return s.Value
	case trace.ByDial:
		if host, _, err := net.SplitHostPort(s.Value); err == nil {
			return host
		}
		return s.Value
	}
	return ""
}

// moments are the mean and the variance of the population; 0 for none.
func moments(values []float64) (mean, variance float64) {
	if len(values) == 0 {
		return 0, 0
	}
	for _, v := range values {
		mean += v
	}
	mean /= float64(len(values))
	for _, v := range values { // squares of what is left: no cancellation
		variance += (v - mean) * (v - mean)
	}
	return mean, variance / float64(len(values))
}

// milliseconds with the microsecond as last digit, as in records.
func milliseconds(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond).Microseconds()) / 1000
}
