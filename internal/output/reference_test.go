package output

import (
	"bytes"
	"encoding/json"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"servicetraceroute/trace"
)

// parameters are those of a run with the paper's defaults.
var parameters = Params{
	FirstTTL: 1, MaxTTL: 32, Probes: 3, Timeout: 2 * time.Second, ProbeInterval: 20 * time.Millisecond,
	TTLInterval: time.Millisecond, MaxSilent: 5, FlowTimeout: 90 * time.Second,
}

// reader is what an analysis script expects: every key, of that type. It shares
// nothing with the writer.
type reader struct {
	Info map[string]string
	Data map[string]json.RawMessage
}

// shape are the keys of Data by the Go type that holds their values.
var shape = map[string]func() any{}

func init() {
	for kind, keys := range map[string]string{
		"string": "TransportProtocol TargetIP LocalIP Service IPResolution ProbingAlgorithm",
		"int": "TargetPort LocalPort MaxTtl BorderDistance Iterations MaxConsecutiveMissingHops InterProbeTime " +
			"InterIterationTime Timeout FlowTimeout TsStart TsEnd",
		"bool":    "ReachedMaxConsecutiveMissingHops StartWithEmptyPacket ReachedFlowTimeout FlowEnded ReachedBorderRouter",
		"strings": "Hops", "floats": "RttsAvg RttsVar", "stringss": "HopIPs", "floatss": "Rtts",
	} {
		for _, key := range strings.Fields(keys) {
			shape[key] = func() any {
				switch kind {
				case "string":
					return new(string)
				case "int":
					return new(int64)
				case "bool":
					return new(bool)
				case "strings":
					return new([]string)
				case "floats":
					return new([]float64)
				case "stringss":
					return new([][]string)
				}
				return new([][]float64)
			}
		}
	}
}

// read reads one line back and checks its shape.
func read(t *testing.T, line string) (reader, map[string]any) {
	t.Helper()
	var r reader
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if strings.Contains(line, "null") {
		t.Errorf("null in %s", line)
	}
	if len(r.Info) != 3 || r.Info["Type"] != "ServiceTraceroute" {
		t.Errorf("Info is %v", r.Info)
	}
	values := map[string]any{}
	for key, raw := range r.Data {
		if shape[key] == nil {
			t.Errorf("unknown key %s", key)
			continue
		}
		v := shape[key]()
		if err := json.Unmarshal(raw, v); err != nil {
			t.Errorf("%s: %v", key, err)
		}
		values[key] = v
	}
	if len(values) != len(shape) {
		t.Errorf("%d keys, not %d: %s", len(values), len(shape), line)
	}
	n := int(*values["BorderDistance"].(*int64))
	ips, rtts := *values["HopIPs"].(*[][]string), *values["Rtts"].(*[][]float64)
	for key, have := range map[string]int{
		"Hops": len(*values["Hops"].(*[]string)), "RttsAvg": len(*values["RttsAvg"].(*[]float64)),
		"RttsVar": len(*values["RttsVar"].(*[]float64)), "HopIPs": len(ips), "Rtts": len(rtts),
	} {
		if have != n {
			t.Errorf("%d %s for a distance of %d", have, key, n)
		}
	}
	for i := range min(len(ips), len(rtts)) {
		if len(ips[i]) != len(rtts[i]) {
			t.Errorf("hop %d: %d addresses, %d times", i+1, len(ips[i]), len(rtts[i]))
		}
	}
	return r, values
}

func write(t *testing.T, format string, opts Options, ev trace.Event) string {
	t.Helper()
	var b bytes.Buffer
	w, err := New(format, &b, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(ev); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestReferenceShape(t *testing.T) {
	n := 0
	for line := range strings.Lines(render(t, "reference", Options{Version: "v1", Params: parameters})) {
		read(t, line)
		n++
	}
	if want := len(traces()) + len(oddTraces()) - 1; n != want { // without the refused one
		t.Errorf("%d lines for %d traces", n, want)
	}
}

// The values of one trace, units and all.
func TestReferenceValues(t *testing.T) {
	ms := time.Millisecond
	tr := &trace.Trace{
		Label: "home", Start: noon, End: noon.Add(1500 * ms), Algorithm: trace.PacketByPacket, Flow: flow,
		Service: &trace.Service{Name: "video", By: trace.BySNI, Value: "v.example.com"},
		Hops: []trace.Hop{
			{TTL: 1, Sent: 3, Replies: []trace.Reply{
				reply("192.0.2.9", 1*ms, trace.TimeExceeded), reply("192.0.2.1", 2*ms, trace.TimeExceeded), reply("192.0.2.1", 6*ms, trace.TimeExceeded),
			}},
			{TTL: 2, Sent: 3},
			{TTL: 3, Sent: 1, Replies: []trace.Reply{reply("203.0.113.7", 9*ms, trace.TCPAck)}},
		},
		Reached: true, Stop: trace.StopDestination, Destination: &trace.Destination{TTL: 3, RTT: 9 * ms, By: trace.DestinationByAck},
	}
	r, v := read(t, write(t, "reference", Options{Version: "1.2.3", Params: parameters}, tr))
	if r.Info["Version"] != "1.2.3" || r.Info["Conf"] != "home" {
		t.Errorf("Info is %v", r.Info)
	}
	for key, want := range map[string]string{
		"TransportProtocol": `"tcp"`, "TargetIP": `"203.0.113.7"`, "TargetPort": `443`, "LocalIP": `"10.0.0.1"`, "LocalPort": `40510`,
		"Service": `"video"`, "IPResolution": `"v.example.com"`, "Hops": `["192.0.2.1",""]`, "HopIPs": `[["192.0.2.9","192.0.2.1","192.0.2.1"],[]]`,
		"Rtts": `[[1,2,6],[]]`, "RttsAvg": `[3,0]`, "MaxTtl": `32`, "BorderDistance": `2`, "Iterations": `3`,
		"MaxConsecutiveMissingHops": `5`, "ReachedMaxConsecutiveMissingHops": `false`, "ProbingAlgorithm": `"packetbypacket"`,
		"StartWithEmptyPacket": `true`, "InterProbeTime": `20000`, "InterIterationTime": `1000`, "Timeout": `2000`, "FlowTimeout": `90000`,
		"ReachedFlowTimeout": `false`, "FlowEnded": `false`, "ReachedBorderRouter": `false`,
		"TsStart": `1795435200123`, "TsEnd": `1795435201623`,
	} {
		if got := string(r.Data[key]); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	// (1-3)² + (2-3)² + (6-3)², by 3.
	if got := *v["RttsVar"].(*[]float64); len(got) != 2 || math.Abs(got[0]-14.0/3) > 1e-12 || got[1] != 0 {
		t.Errorf("RttsVar is %v", got)
	}
}

// Why a trace ended is one flag, or none.
func TestReferenceStops(t *testing.T) {
	flags := map[trace.Stop]string{
		trace.StopSilentHops: "ReachedMaxConsecutiveMissingHops", trace.StopFlowIdle: "ReachedFlowTimeout",
		trace.StopFlowClosed: "FlowEnded", trace.StopBorder: "ReachedBorderRouter",
	}
	for stop := trace.StopDestination; stop < trace.StopRefused; stop++ {
		tr := short()
		tr.Stop = stop
		r, _ := read(t, write(t, "reference", Options{}, tr))
		for _, flag := range flags {
			if got := string(r.Data[flag]) == "true"; got != (flags[stop] == flag) {
				t.Errorf("stop %v: %s is %v", stop, flag, got)
			}
		}
		if got := string(r.Data["Hops"]); got != `["192.0.2.1",""]` {
			t.Errorf("stop %v: hops %s", stop, got)
		}
	}
}

// The destination is no hop, whatever its answer was.
func TestReferenceWithoutDestination(t *testing.T) {
	for _, kind := range []trace.ReplyKind{trace.TCPAck, trace.TCPRst, trace.PortUnreachable} {
		tr := &trace.Trace{
			Algorithm: trace.HopByHop, Flow: flow, Stop: trace.StopUnknown,
			Hops: []trace.Hop{{TTL: 1, Sent: 1, Replies: []trace.Reply{reply(flow.Dst.Addr().String(), 1, kind)}}},
		}
		r, _ := read(t, write(t, "reference", Options{}, tr))
		if got := string(r.Data["Hops"]); got != `[""]` {
			t.Errorf("%v: hops %s", kind, got)
		}
	}
	// A router that says the destination cannot be reached is one.
	tr := &trace.Trace{
		Algorithm: trace.HopByHop, Flow: flow, Stop: trace.StopUnreachable,
		Hops: []trace.Hop{{TTL: 2, Sent: 1, Replies: []trace.Reply{reply("192.0.2.2", 1, trace.HostUnreachable)}}},
	}
	r, _ := read(t, write(t, "reference", Options{}, tr))
	if got := string(r.Data["Hops"]); got != `["","192.0.2.2"]` {
		t.Errorf("hops %s: those below the first TTL are silent", got)
	}
}

func TestReferenceAlgorithms(t *testing.T) {
	var got []string
	for a := trace.PacketByPacket; a <= trace.Adaptive; a++ {
		got = append(got, referenceAlgorithms[a])
	}
	if want := []string{"packetbypacket", "hopbyhop", "concurrent", "adaptive"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// A service with parameters of its own is reported with these.
func TestParamsOfService(t *testing.T) {
	opts := Options{Params: parameters, ServiceParams: map[string]Params{"203.0.113.7": {MaxTTL: 8}}}
	tr := &trace.Trace{Algorithm: trace.Adaptive, Flow: flow, Service: chosen, Stop: trace.StopMaxTTL}
	if r, _ := read(t, write(t, "reference", opts, tr)); string(r.Data["MaxTtl"]) != "8" {
		t.Errorf("MaxTtl is %s", r.Data["MaxTtl"])
	}
	tr.Service = nil
	if r, _ := read(t, write(t, "reference", opts, tr)); string(r.Data["MaxTtl"]) != "32" {
		t.Errorf("MaxTtl is %s", r.Data["MaxTtl"])
	}
}

// A label and a name with quotes, newlines and control characters stay in their line.
func TestReferenceIsOneLine(t *testing.T) {
	tr := short()
	tr.Label, tr.Service = hostile, &trace.Service{Name: hostile, By: trace.ByDNS, Value: hostile}
	tr.Flow.Dst = netip.AddrPortFrom(netip.MustParseAddr("fe80::1%eth0"), 1)
	if line := write(t, "reference", Options{}, tr); strings.Count(line, "\n") != 1 || strings.ContainsRune(line, '\x1b') {
		t.Errorf("%q", line)
	}
}
