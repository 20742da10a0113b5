package output

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"servicetraceroute/trace"
)

// kinds are the keys of a JSON object with their values' types, those of objects
// within with a dot. The types in a list are those of all its objects together.
func kinds(t *testing.T, line []byte) map[string]string {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	var doc map[string]any
	if err := dec.Decode(&doc); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	all := map[string]string{}
	collect(all, "", doc)
	return all
}

func collect(all map[string]string, prefix string, v any) {
	kind := "?"
	switch v := v.(type) {
	case map[string]any:
		kind = "object"
		for key, inner := range v {
			collect(all, prefix+"."+key, inner)
		}
	case []any:
		kind = "array"
		for _, inner := range v {
			collect(all, prefix+"[]", inner)
		}
	case string:
		kind = "string"
	case json.Number:
		kind = "integer"
		if strings.Contains(v.String(), ".") {
			kind = "number"
		}
	}
	all[prefix] = kind
}

// exchange is what the engine tells of an answer.
func exchange(v4 bool) *trace.Exchange {
	x := &trace.Exchange{
		Sent: noon.Add(time.Millisecond), Attempt: 2, ProbeLen: 52, ReplyLen: 80, ReplyTOS: 0xc0, ReplyID: 777,
		ICMPType: 11, QuoteTTL: 1, QuoteLen: 52,
	}
	if !v4 {
		x.ProbeLen, x.ReplyLen, x.ReplyID, x.ICMPType, x.QuoteLen = 72, 120, 0, 3, 72
	}
	return x
}

// measured is a trace with one hop that answered.
func measured(v4 bool) *trace.Trace {
	tr := &trace.Trace{Start: noon, End: noon, Algorithm: trace.Adaptive, Flow: flow, Stop: trace.StopDestination}
	addr := "192.0.2.1"
	if !v4 {
		addr = "2001:db8::1"
		tr.Flow = short().Flow
	}
	r := reply(addr, 12*time.Millisecond, trace.TimeExceeded)
	r.Exchange = exchange(v4)
	tr.Hops = []trace.Hop{{TTL: 1, Sent: 2, Replies: []trace.Reply{r}}}
	return tr
}

// What sc_warts2json of Debian's scamper 20211212-1.1 printed for traces over
// loopback (testdata/sc_warts2json.ndjson; addresses replaced) has the very keys and
// types of ours: an answer over IPv4, one over IPv6, and none.
func TestScamperKeys(t *testing.T) {
	b, err := os.ReadFile("testdata/sc_warts2json.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	silent := measured(true)
	silent.Hops = []trace.Hop{{TTL: 1, Sent: 1}}
	ours := []*trace.Trace{measured(true), measured(false), silent}
	i := 0
	for line := range strings.Lines(string(b)) {
		got, want := kinds(t, []byte(write(t, "scamper", Options{Params: parameters}, ours[i]))), kinds(t, []byte(line))
		for key, kind := range want {
			if got[key] != kind {
				t.Errorf("line %d: %s is %q, scamper's is %q", i+1, key, got[key], kind)
			}
		}
		for key := range got {
			if want[key] == "" {
				t.Errorf("line %d: scamper has no %s", i+1, key)
			}
		}
		i++
	}
	if i != len(ours) {
		t.Errorf("%d samples", i)
	}
}

func TestScamperValues(t *testing.T) {
	tr := measured(true)
	tr.Hops[0].Replies[0].MPLS = []trace.Label{{Label: 16001, TC: 2, S: true, TTL: 1}}
	rst := reply("203.0.113.7", 20*time.Millisecond, trace.TCPRst)
	tr.Hops = append(tr.Hops, trace.Hop{TTL: 2, Sent: 3}, trace.Hop{TTL: 3, Sent: 1, Replies: []trace.Reply{rst}})
	got := write(t, "scamper", Options{Params: parameters}, tr)
	want := `{"type":"trace","version":"0.1","userid":0,"method":"tcp-ack","src":"10.0.0.1","dst":"203.0.113.7","sport":40510,"dport":443,` +
		`"stop_reason":"COMPLETED","stop_data":0,"start":{"sec":1795435200,"usec":123456,"ftime":"2026-11-23 12:00:00"},` +
		`"hop_count":3,"attempts":3,"hoplimit":32,"firsthop":1,"wait":2,"wait_probe":2,"tos":0,"probe_size":52,"probe_count":6,"hops":[` +
		`{"addr":"192.0.2.1","probe_ttl":1,"probe_id":2,"probe_size":52,"tx":{"sec":1795435200,"usec":124456},"rtt":12.000,"reply_ttl":60,` +
		`"reply_tos":192,"reply_ipid":777,"reply_size":80,"icmp_type":11,"icmp_code":0,"icmp_q_ttl":1,"icmp_q_ipl":52,"icmp_q_tos":0,` +
		`"icmpext":[{"ie_cn":1,"ie_ct":1,"ie_dl":4,"mpls_labels":[{"mpls_ttl":1,"mpls_s":1,"mpls_exp":2,"mpls_label":16001}]}]},` +
		`{"addr":"203.0.113.7","probe_ttl":3,"probe_id":1,"probe_size":0,"rtt":20.000,"reply_ttl":60,"reply_tos":0,"tcp_flags":4}]}` + "\n"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Every reason to stop is a word of scamper's (scamper_trace_stop_tostr).
func TestScamperStops(t *testing.T) {
	words := []string{"NONE", "COMPLETED", "UNREACH", "ICMP", "LOOP", "GAPLIMIT", "ERROR", "HOPLIMIT", "GSS", "HALTED"}
	for stop := trace.StopDestination; stop < trace.StopRefused; stop++ {
		tr := measured(true)
		tr.Stop = stop
		var out struct {
			Reason string `json:"stop_reason"`
		}
		if err := json.Unmarshal([]byte(write(t, "scamper", Options{}, tr)), &out); err != nil || !slices.Contains(words, out.Reason) {
			t.Errorf("stop %v is %q, %v", stop, out.Reason, err)
		}
	}
}

// With UNREACH stop_data is the code; a record that was read has no packets, and its
// type and code are what the kind stands for.
func TestScamperUnreachable(t *testing.T) {
	for _, c := range []struct {
		kind trace.ReplyKind
		addr string
		want string
	}{
		{trace.NetUnreachable, "192.0.2.2", `"icmp_type":3,"icmp_code":0}`},
		{trace.AdminProhibited, "192.0.2.2", `"icmp_type":3,"icmp_code":13}`},
		{trace.PortUnreachable, "2001:db8::2", `"icmp_type":1,"icmp_code":4}`},
		{trace.TimeExceeded, "2001:db8::2", `"icmp_type":3,"icmp_code":0}`},
		{trace.Unreachable, "192.0.2.2", `"reply_tos":0}`}, // which one is not known
	} {
		tr := measured(true)
		tr.Stop = trace.StopUnreachable
		tr.Hops[0].Replies = []trace.Reply{{Addr: netip.MustParseAddr(c.addr), Kind: c.kind, RTT: 1}}
		if got := write(t, "scamper", Options{}, tr); !strings.Contains(got, c.want) {
			t.Errorf("%v from %s: no %s in %s", c.kind, c.addr, c.want, got)
		}
	}
	tr := measured(true)
	tr.Stop = trace.StopUnreachable
	tr.Hops[0].Replies[0].Kind, tr.Hops[0].Replies[0].Exchange.ICMPCode = trace.HostUnreachable, 1
	if got := write(t, "scamper", Options{}, tr); !strings.Contains(got, `"stop_reason":"UNREACH","stop_data":1`) {
		t.Errorf("%s", got)
	}
	tr.Flow.Proto = trace.UDP
	if got := write(t, "scamper", Options{}, tr); !strings.Contains(got, `"method":"udp-paris"`) {
		t.Errorf("%s", got)
	}
}

// Other records are no traces, and one that was refused was never probed.
func TestOnlyTraces(t *testing.T) {
	for _, format := range []string{"reference", "scamper"} {
		for _, ev := range append(others(), &trace.Trace{Flow: flow, Stop: trace.StopRefused, Reason: trace.ReasonMD5}) {
			if got := write(t, format, Options{}, ev); got != "" {
				t.Errorf("%s writes %s", format, got)
			}
		}
	}
}
