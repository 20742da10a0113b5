package trace

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "write the golden files")

// samples has one record of every type, with every field set.
func samples() []Event {
	at := time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC)
	a := netip.MustParseAddr
	tuple := Tuple{
		FlowKey:   FlowKey{TCP, netip.MustParseAddrPort("10.0.0.1:40510"), netip.MustParseAddrPort("203.0.113.7:443")},
		Direction: Out, Interface: "eth0",
		NAT: &FlowKey{TCP, netip.MustParseAddrPort("192.0.2.9:1024"), netip.MustParseAddrPort("203.0.113.7:443")},
	}
	service := &Service{Name: "netflix", By: BySNI, Value: "www.netflix.com"}
	process := &Process{PID: 4242, Name: "curl", Cgroup: "/user.slice"}
	return []Event{
		&Trace{
			ID: "0123456789abcdef", Label: "l", Start: at, End: at.Add(time.Second), Algorithm: Adaptive, Flow: tuple,
			Service: service, Process: process, Hops: []Hop{
				{TTL: 1, Sent: 3, Replies: []Reply{{
					Addr: a("192.0.2.1"), RTT: 310 * time.Microsecond, Kind: TimeExceeded, ReplyTTL: 64, Name: "gw.example",
					ASN: 64500, MPLS: []Label{{Label: 16001, S: true, TTL: 1}}, Changes: []FindingKind{NATSrc}, Late: true,
				}}},
				{TTL: 2, Sent: 3, Deferred: 1, Limited: true, Replies: []Reply{}},
			},
			Reached: true, Stop: StopDestination, Destination: &Destination{6, 11800 * time.Microsecond, DestinationByAck},
			Complete: true, PathID: "0011223344556677", Observed: Observed{
				RTT: 12100 * time.Microsecond, BytesIn: 1, BytesOut: 2, RTTMin: 11 * time.Millisecond,
				In: &Health{1, 2, 3, 4, 5}, Out: &Health{6, 7, 8, 9, 10},
			}, Trigger: "rtt_factor > 3",
			Impact: Impact{Retransmits: 1, DupAcks: 2, RSTs: 3, Aborted: true},
		},
		&Flow{Tuple: tuple, Time: at, Label: "l", Service: service, Process: process, State: FlowRefused, Reason: ReasonMD5},
		&Finding{at, "l", "0123456789abcdef", tuple, Loop, 2, 3, "v", []string{"e"}, 0.5},
		&Change{at, "l", tuple, PathRef{"0123456789abcdef", "0011223344556677"}, PathRef{"123456789abcdef0", "1122334455667788"}, 3, []netip.Addr{a("::1")}, []netip.Addr{a("::2")}, "route"},
		&Compare{
			Time: at, Label: "l", Flow: tuple, Trace: "0123456789abcdef",
			Siblings:     []Sibling{{Proto: "udp", SourcePort: 1, Hops: []Hop{{TTL: 1, Replies: []Reply{}}}, Stop: StopMaxTTL}},
			Alternatives: []Alternative{{TTL: 2, Addrs: []netip.Addr{a("10.0.0.9")}, Confidence: 0.95, InFlow: a("10.0.0.8")}},
			Blocked:      []Blocked{{"udp", 4}}, Divergent: true, Divergence: 0.4,
		},
		&Stats{
			Time: at, Uptime: time.Minute, Backend: "afpacket", Reason: "r", Packets: PacketStats{1, 2, 3},
			Flows: FlowStats{4, 5, 6, 21, 23}, Traces: TraceStats{7, 8, map[Stop]uint64{StopDestination: 8}, 22},
			Records: &RecordStats{18},
			Probes:  ProbeStats{9, 10, 11, 12, 13, 19}, Replies: ReplyStats{14, 15, 16, 17, 20},
		},
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	for _, ev := range samples() {
		b, err := json.Marshal(ev)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Unmarshal(b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if !reflect.DeepEqual(back, ev) {
			t.Errorf("got  %+v\nwant %+v\n%s", back, ev, b)
		}
	}
}

// The golden file is what consumers parse: a change of it is a change of the
// interface.
func TestRecordsGolden(t *testing.T) {
	var got bytes.Buffer
	for _, ev := range append(samples(), empty()...) {
		if err := json.NewEncoder(&got).Encode(ev); err != nil {
			t.Fatal(err)
		}
	}
	const name = "testdata/records.ndjson"
	if *update {
		if err := os.WriteFile(name, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("records differ from %s (-update writes it):\n%s", name, got.Bytes())
	}
}

// empty has one record of every type with as little in it as may be.
func empty() []Event {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	tuple := Tuple{FlowKey: FlowKey{TCP, netip.MustParseAddrPort("[2001:db8::1]:1"), netip.MustParseAddrPort("[2001:db8::2]:2")}}
	const id = "0123456789abcdef"
	return []Event{
		&Trace{
			ID: id, Start: at, End: at, Algorithm: HopByHop, Flow: tuple, Hops: []Hop{{TTL: 1, Sent: 1}},
			Stop: StopUnknown, Destination: &Destination{RTT: time.Millisecond, By: DestinationByPassive}, Observed: Observed{RTT: -1},
		},
		&Trace{
			ID: id, Start: at, End: at, Algorithm: Concurrent, Flow: tuple, Stop: StopRefused, Reason: ReasonMPTCP,
			Observed: Observed{RTT: -1},
		},
		&Flow{Tuple: tuple, Time: at, State: FlowMatched},
		&Finding{Time: at, Trace: id, Flow: tuple, Kind: Loop, TTL: 1},
		&Change{
			Time: at, Flow: tuple, Old: PathRef{Trace: id}, New: PathRef{Trace: id}, TTL: 1,
			From: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, To: []netip.Addr{netip.MustParseAddr("2001:db8::3")}, Cause: "unknown",
		},
		&Compare{Time: at, Flow: tuple, Trace: id},
		&Compare{
			Time: at, Flow: tuple, Trace: id, Siblings: []Sibling{{Proto: "icmp", Stop: StopDeadline}}, Alternatives: []Alternative{{TTL: 1}},
		},
		&Stats{Time: at},
	}
}

// Names, labels and processes are bytes from outside: whatever they are, the
// record stays JSON.
func TestOutsideBytesStayJSON(t *testing.T) {
	tr := samples()[0].(*Trace)
	bad := "a\xffb\x00\x1b[31m\u202e\"</script>"
	tr.Label, tr.Service.Value, tr.Process.Name, tr.Hops[0].Replies[0].Name = bad, bad, bad, bad
	b, err := json.Marshal(tr)
	if err != nil || !json.Valid(b) || !utf8.Valid(b) || bytes.ContainsAny(b, "\x00\x1b\n") {
		t.Fatalf("%v: %q", err, b)
	}
	back, err := Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := back.(*Trace).Process.Name, strings.ToValidUTF8(bad, "\ufffd"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	for _, text := range []string{
		``, `{}`, `[]`, `null`, `{"schema":"service-traceroute/1","type":"route"}`, `{"schema":"service-traceroute/2","type":"stats"}`,
		`{"schema":"service-traceroute/1","type":"trace","stop":"tired"}`,
		`{"schema":"service-traceroute/1","type":"flow","flow":{"proto":"tcp","src":"10.0.0.300"}}`,
	} {
		if ev, err := Unmarshal([]byte(text)); err == nil {
			t.Errorf("%s: read as %+v", text, ev)
		}
	}
}

// FuzzUnmarshal holds what can be read to being written and read again alike.
func FuzzUnmarshal(f *testing.F) {
	for _, ev := range append(samples(), empty()...) {
		b, err := json.Marshal(ev)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ev, err := Unmarshal(b)
		if err != nil {
			return
		}
		once, err := json.Marshal(ev)
		if err != nil {
			return // an enumeration was missing: it reads as zero, which is never written
		}
		again, err := Unmarshal(once)
		if err != nil {
			t.Fatalf("%v\n%s", err, once)
		}
		twice, err := json.Marshal(again)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%v\n%s\n%s", err, once, twice)
		}
	})
}

func TestTraceRecordWords(t *testing.T) {
	b, _ := json.Marshal(samples()[0])
	for _, want := range []string{
		`"schema":"service-traceroute/1","type":"trace","id":"0123456789abcdef","label":"l","start":"2026-11-23T12:00:00.123456789Z"`,
		`"flow":{"proto":"tcp","src":"10.0.0.1","sport":40510,"dst":"203.0.113.7","dport":443,"direction":"out","interface":"eth0"`,
		`"replies":[{"addr":"192.0.2.1","rtt_ms":0.31,"kind":"time-exceeded","reply_ttl":64,`,
		`"replies":[]`, `"destination":{"ttl":6,"rtt_ms":11.8,"by":"ack"}`, `"changes":["nat-src"]`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("record lacks %s:\n%s", want, b)
		}
	}
	b, _ = json.Marshal(&Trace{Algorithm: Adaptive, Flow: Tuple{FlowKey: FlowKey{Proto: TCP}}, Stop: StopUnknown, Observed: Observed{RTT: -1}})
	for _, want := range []string{`"hops":[]`, `"destination":null`, `"rtt_ms":null`, `"path_id":""`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("empty trace lacks %s:\n%s", want, b)
		}
	}
	for name, ev := range map[string]Event{
		"path_id of an incomplete path": &Trace{Algorithm: Adaptive, Flow: Tuple{FlowKey: FlowKey{Proto: TCP}}, Stop: StopFence, PathID: "ab", Reason: ReasonMD5},
		"reason of a matched flow":      &Flow{Tuple: Tuple{FlowKey: FlowKey{Proto: TCP}}, State: FlowMatched, Reason: ReasonMD5},
	} {
		b, err := json.Marshal(ev)
		if err != nil || strings.Contains(string(b), `"md5"`) || strings.Contains(string(b), `"ab"`) {
			t.Errorf("%s was written: %s, %v", name, b, err)
		}
	}
	b, _ = json.Marshal(&Compare{Flow: Tuple{FlowKey: FlowKey{Proto: TCP}}, Siblings: []Sibling{{Stop: StopFence}}, Alternatives: []Alternative{{}}})
	if strings.Contains(string(b), "null") {
		t.Errorf("null in a list's place: %s", b)
	}
	if _, err := json.Marshal(&Trace{}); err == nil {
		t.Error("a trace without an algorithm was written")
	}
}

func TestPathID(t *testing.T) {
	hops := []Hop{
		{TTL: 1, Replies: []Reply{{Addr: netip.MustParseAddr("10.0.0.9")}, {Addr: netip.MustParseAddr("10.0.0.2")}}},
		{TTL: 3, Replies: []Reply{{Addr: netip.MustParseAddr("10.0.0.3")}}},
	}
	// printf '1=10.0.0.2,2=*,3=10.0.0.3' | sha256sum
	if got, want := PathID(hops, 3), "9b8d46a2beeaad42"; got != want {
		t.Errorf("PathID = %s, want %s", got, want)
	}
}
