package privacy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"servicetraceroute/trace"
)

// records are the golden ones of package trace: of every type a full one and an
// empty one.
func records(t testing.TB) (all []trace.Event) {
	t.Helper()
	b, err := os.ReadFile("../../trace/testdata/records.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		ev, err := trace.Unmarshal([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ev)
	}
	return all
}

// told are the strings of a record as its JSON has them.
func told(v any, all *[]string) {
	switch v := v.(type) {
	case string:
		*all = append(*all, v)
	case []any:
		for _, inner := range v {
			told(inner, all)
		}
	case map[string]any:
		for _, inner := range v {
			told(inner, all)
		}
	}
}

var (
	somebody = regexp.MustCompile(`(?:\d+\.){3}\d+|[0-9a-f]*::[0-9a-f]*|[0-9a-f]+:[0-9a-f:]+`)
	pathID   = regexp.MustCompile(`"path_id":"([0-9a-f]{16})"`)
)

// No address, name or path of a record is in its masked copy, and the record itself
// is as it was.
func TestNothingIsLeft(t *testing.T) {
	m := mask(1)
	for _, ev := range append(records(t), full()...) {
		before, err := json.Marshal(ev)
		if err != nil {
			t.Fatal(err)
		}
		masked, err := json.Marshal(m.Event(ev))
		if err != nil {
			t.Fatalf("%T: %v", ev, err)
		}
		if after, _ := json.Marshal(ev); !bytes.Equal(before, after) {
			t.Errorf("%T was changed:\n%s\n%s", ev, before, after)
		}
		var doc any
		if err := json.Unmarshal(before, &doc); err != nil {
			t.Fatal(err)
		}
		var words []string
		told(doc, &words)
		for _, word := range words {
			for _, addr := range somebody.FindAllString(word, -1) {
				a, err := netip.ParseAddr(addr)
				if err != nil || a.IsLoopback() {
					continue
				}
				if strings.Contains(string(masked), `"`+addr+`"`) || strings.Contains(string(masked), " "+addr) {
					t.Errorf("%T: %s is left in\n%s", ev, addr, masked)
				}
			}
		}
		for _, id := range pathID.FindAllStringSubmatch(string(before), -1) {
			if strings.Contains(string(masked), id[1]) {
				t.Errorf("%T: the path_id %s is left", ev, id[1])
			}
		}
		for _, word := range secrets {
			if strings.Contains(string(masked), word) {
				t.Errorf("%T: %q is left in\n%s", ev, word, masked)
			}
		}
		if _, err := trace.Unmarshal(masked); err != nil {
			t.Errorf("%T: %v", ev, err)
		}
	}
}

// secrets are words that full records hold.
var secrets = []string{
	"secret", "203.0.113.7", "10.0.0.1", "192.0.2.", "2001:db8:", "64500", "gw.example", "enx0011",
}

// full are records with something to hide in every field.
func full() []trace.Event {
	key := func(src, dst string) trace.FlowKey {
		return trace.FlowKey{Proto: trace.TCP, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
	}
	nat := key("192.0.2.77:7", "203.0.113.7:443")
	flow := trace.Tuple{
		FlowKey: key("10.0.0.1:40510", "203.0.113.7:443"), Direction: trace.Out, Interface: "enx001122334455", NetNS: "secret-container", NAT: &nat,
	}
	service := &trace.Service{Name: "www.secret.example", By: trace.BySNI, Value: "www.secret.example"}
	process := &trace.Process{PID: 7, Name: "secret-tool", Cgroup: "/user.slice/secret"}
	hops := []trace.Hop{
		{TTL: 1, Sent: 1, Replies: []trace.Reply{{
			Addr: netip.MustParseAddr("192.0.2.1"), Kind: trace.TimeExceeded, Name: "gw.example", ASN: 64500, Exchange: &trace.Exchange{ReplyID: 9},
		}}},
		{TTL: 2, Sent: 1, Replies: []trace.Reply{{Addr: netip.MustParseAddr("203.0.113.7"), Kind: trace.TCPAck}}},
	}
	id := trace.PathID(hops, 1)
	addr := netip.MustParseAddr
	return []trace.Event{
		&trace.Trace{
			ID: "0123456789abcdef", Algorithm: trace.Adaptive, Flow: flow, Service: service, Process: process, Hops: hops, Reached: true,
			Stop: trace.StopDestination, Destination: &trace.Destination{TTL: 2, By: trace.DestinationByAck}, Complete: true, PathID: id,
		},
		&trace.Flow{Tuple: flow, Service: service, Process: process, State: trace.FlowMatched},
		&trace.Finding{
			Trace: "0123456789abcdef", Flow: flow, Kind: trace.NATSrc, TTL: 2, Value: "10.0.0.1:40510 became 192.0.2.77:7",
			Evidence: []string{"quoted by www.secret.example (192.0.2.1)", "and by 2001:db8::1."}, Confidence: 1,
		},
		&trace.Finding{
			Trace: "0123456789abcdef", Flow: flow, Kind: trace.InterfaceInfo, TTL: 2, Value: "secret", Evidence: []string{"ge-0/0/1 to secret"},
		},
		&trace.Change{
			Flow: flow, Old: trace.PathRef{Trace: "0123456789abcdef", PathID: id}, New: trace.PathRef{Trace: "0123456789abcde0", PathID: "8899aabbccddeeff"},
			TTL: 1, From: []netip.Addr{addr("192.0.2.1")}, To: []netip.Addr{addr("192.0.2.2")}, Cause: "route",
		},
		&trace.Compare{
			Flow: flow, Trace: "0123456789abcdef", Siblings: []trace.Sibling{{Proto: "udp", Hops: hops, Stop: trace.StopDestination}},
			Alternatives: []trace.Alternative{{TTL: 1, Addrs: []netip.Addr{addr("192.0.2.8")}, InFlow: addr("192.0.2.1")}},
		},
		&trace.Stats{Backend: "afpacket", Reason: "192.0.2.1 said so"},
	}
}

// Every text, address and pointer of every record type has been thought of: a new
// field makes this test fail until it is either masked above or named here.
func TestEveryFieldIsDecided(t *testing.T) {
	kept := "ID Label Start End Algorithm Reached Stop Reason Destination Complete Mixed Observed Impact TTL Sent Deferred Limited RTT Kind ReplyTTL " +
		"MPLS Changes Late SharedFrom Exchange Proto Direction By PID Time State Trace TTLFrom Confidence Cause SourcePort AfterTTL Divergent " +
		"Divergence Blocked ECH Uptime Backend Packets Flows Traces Probes Replies.Stats Services ImpactStats Owners Pcap Records " +
		"Trigger Retransmits DupAcks OutOfOrder ZeroWindows Goodput"
	masked := "Flow Service Process Hops Replies PathID Addr Name ASN Src Dst Interface NetNS NAT FlowKey Tuple Value Cgroup Evidence Old New From To " +
		"Siblings Alternatives Addrs InFlow"
	known := map[string]bool{}
	for _, name := range strings.Fields(kept + " " + masked) {
		known[name] = true
	}
	seen := map[reflect.Type]bool{}
	var look func(reflect.Type)
	look = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ.PkgPath() != reflect.TypeFor[trace.Trace]().PkgPath() || seen[typ] || strings.HasSuffix(typ.Name(), "Stats") && typ != reflect.TypeFor[trace.Stats]() || typ == reflect.TypeFor[trace.Exchange]() {
			return
		}
		seen[typ] = true
		for i := range typ.NumField() {
			f := typ.Field(i)
			if !known[f.Name] && typ.Name() != "Label" && typ.Name() != "Destination" && typ.Name() != "Observed" && typ.Name() != "Impact" {
				t.Errorf("%v.%s: is it masked?", typ, f.Name)
			}
			look(f.Type)
		}
	}
	for _, ev := range []trace.Event{&trace.Trace{}, &trace.Flow{}, &trace.Finding{}, &trace.Change{}, &trace.Compare{}, &trace.Stats{}} {
		look(reflect.TypeOf(ev))
	}
}

// What a reader needs stays.
func TestWhatStays(t *testing.T) {
	tr := full()[0].(*trace.Trace)
	got := mask(1).Event(tr).(*trace.Trace)
	if got.ID != tr.ID || got.Flow.Src.Port() != tr.Flow.Src.Port() || got.Stop != tr.Stop || *got.Destination != *tr.Destination {
		t.Errorf("%+v", got)
	}
	if got.Hops[1].Replies[0].Addr != got.Flow.Dst.Addr() {
		t.Errorf("the destination is %v in hops and %v in the flow", got.Hops[1].Replies[0].Addr, got.Flow.Dst.Addr())
	}
	if want := trace.PathID(got.Hops, 1); got.PathID != want {
		t.Errorf("path_id %s is not that of the hops shown, %s", got.PathID, want)
	}
	if got.Process.PID != 7 || !strings.HasPrefix(got.Process.Name, "name-") {
		t.Errorf("%+v", got.Process)
	}
}

// A change names the paths as their traces do, where these went before.
func TestChangeNamesPaths(t *testing.T) {
	m := mask(1)
	all := full()
	tr := m.Event(all[0]).(*trace.Trace)
	c := m.Event(all[4]).(*trace.Change)
	if c.Old.PathID != tr.PathID || c.New.PathID != "" {
		t.Errorf("old %q, the trace said %q; new %q", c.Old.PathID, tr.PathID, c.New.PathID)
	}
	for i := range 2 * maxPaths {
		m.remember(fmt.Sprint(i), "p")
	}
	if len(m.paths) > maxPaths || len(m.order) > maxPaths {
		t.Errorf("%d paths are kept", len(m.paths))
	}
}

// A service keeps a name that was given to it, and nothing that is an address, a
// host's name or a command.
func TestServices(t *testing.T) {
	m := mask(1)
	name, addr := m.Name, func(s string) string { return m.Addr(netip.MustParseAddr(s)).String() }
	for _, c := range []struct {
		in   trace.Service
		want trace.Service
	}{
		{trace.Service{Name: "netflix", By: trace.ByDNS, Value: "www.netflix.com"}, trace.Service{Name: "netflix", By: trace.ByDNS, Value: name("www.netflix.com")}},
		{trace.Service{Name: "*.netflix.com", By: trace.BySNI, Value: "a.netflix.com"}, trace.Service{Name: name("*.netflix.com"), By: trace.BySNI, Value: name("a.netflix.com")}},
		{trace.Service{Name: "nas", By: trace.ByNameAtStart, Value: "nas"}, trace.Service{Name: name("nas"), By: trace.ByNameAtStart, Value: name("nas")}},
		{trace.Service{Name: "203.0.113.7", By: trace.ByAddress, Value: "203.0.113.7"}, trace.Service{Name: addr("203.0.113.7"), By: trace.ByAddress, Value: addr("203.0.113.7")}},
		{trace.Service{Name: "web", By: trace.ByPort, Value: "443"}, trace.Service{Name: "web", By: trace.ByPort, Value: "443"}},
		{trace.Service{Name: "443", By: trace.ByPort, Value: "443"}, trace.Service{Name: "443", By: trace.ByPort, Value: "443"}},
		{trace.Service{Name: "curl", By: trace.ByRun, Value: "/home/me/curl"}, trace.Service{Name: name("curl"), By: trace.ByRun, Value: name("/home/me/curl")}},
		{trace.Service{Name: "firefox", By: trace.ByProcess, Value: "firefox"}, trace.Service{Name: name("firefox"), By: trace.ByProcess, Value: name("firefox")}},
		{
			trace.Service{Name: "www.example.com:443", By: trace.ByDial, Value: "www.example.com:443"},
			trace.Service{Name: name("www.example.com") + ":443", By: trace.ByDial, Value: name("www.example.com") + ":443"},
		},
		{trace.Service{Name: "[2001:db8::7]:25", By: trace.ByDial, Value: "2001:db8::7"}, trace.Service{Name: "[" + addr("2001:db8::7") + "]:25", By: trace.ByDial, Value: addr("2001:db8::7")}},
		{trace.Service{}, trace.Service{}},
	} {
		if got := m.service(&c.in); *got != c.want {
			t.Errorf("%+v became %+v, want %+v", c.in, *got, c.want)
		}
	}
	// A prefix holds the masked addresses of its own.
	got := m.service(&trace.Service{Name: "203.0.113.0/24", By: trace.ByPrefix, Value: "203.0.113.0/24"})
	if p, err := netip.ParsePrefix(got.Value); err != nil || p.Bits() != 24 || !p.Contains(m.Addr(netip.MustParseAddr("203.0.113.7"))) {
		t.Errorf("%+v", got)
	}
}

func TestText(t *testing.T) {
	m := mask(1)
	four, six := m.Addr(netip.MustParseAddr("192.0.2.1")).String(), m.Addr(netip.MustParseAddr("2001:db8::1")).String()
	for in, want := range map[string]string{
		"from 192.0.2.1:443->2001:db8::1: refused": "from " + four + ":443->" + six + ": refused",
		"[2001:db8::1]:443.":                       "[" + six + "]:443.",
		"192.0.2.1.":                               four + ".",
		"refused:192.0.2.1":                        "refused:" + four,
		"peer:2001:db8::1,":                        "peer:" + six + ",",
		"at ::, then":                              "at ::, then",
		"192.0.2.1/32":                             four + "/32",
		"tos 0xb8 became 0x00 at 12:30:00, 1.5 ms": "tos 0xb8 became 0x00 at 12:30:00, 1.5 ms",
		"lookup www.example.com: no such host":     "lookup " + m.Name("www.example.com") + ": no such host",
		"":                                         "",
	} {
		if got := m.Text(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	if m.Name("WWW.example.com") != m.Name("www.example.com") {
		t.Error("names have no case")
	}
}

func TestLog(t *testing.T) {
	var b bytes.Buffer
	line := "level=WARN msg=x err=\"10.0.0.1 refused\"\n"
	if n, err := mask(1).Log(&b).Write([]byte(line)); n != len(line) || err != nil || strings.Contains(b.String(), "10.0.0.1") {
		t.Errorf("%d %v %s", n, err, b.String())
	}
}

type list []trace.Event

func (l *list) Write(ev trace.Event) error { *l = append(*l, ev); return nil }

func TestFilter(t *testing.T) {
	var got list
	f := mask(1).Filter(&got)
	ev := full()[0]
	if err := f.Write(ev); err != nil || len(got) != 1 || got[0] == ev {
		t.Errorf("%v %v", err, got)
	}
}

// FuzzText: whatever the text, no panic, and no address of it is left that stands
// alone.
func FuzzText(f *testing.F) {
	f.Add("from 192.0.2.1:443 to [2001:db8::1]:25, www.example.com.")
	m := mask(1)
	f.Fuzz(func(t *testing.T, text string) {
		out := m.Text(text)
		for _, word := range strings.Fields(text) {
			a, err := netip.ParseAddr(word)
			if err != nil || a.IsLoopback() || a.IsUnspecified() || a.Zone() != "" || m.Addr(a) == a {
				continue
			}
			for _, left := range strings.Fields(out) {
				if b, err := netip.ParseAddr(left); err == nil && b == a {
					t.Fatalf("%q is left of %q: %q", word, text, out)
				}
			}
		}
	})
}
