package selftest

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"servicetraceroute/trace"
)

var update = flag.Bool("update", false, "write docs/stacks.md")

func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile("../../docs/schema/service-traceroute-1.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func validate(t *testing.T, s *jsonschema.Schema, record string) error {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(record))
	if err != nil {
		t.Fatal(err)
	}
	return s.Validate(doc)
}

// whole is a record with something in every field.
func whole() *Record {
	r := record(download, fine(), with(func(t *Try) { t.Traced.Counters["Tcp.RetransSegs"] = 1; t.Busy = true }))
	r.Pairs = append(r.Pairs, Pair{Family: "ipv6", Proto: "udp", Traffic: datagrams, Tries: []Try{sent(func(a, b *Datagrams) { a.Errors = 1 })}})
	r.Pairs[1].Tries[0].Traced.Failure = "8 of 9 datagrams answered, 0 others"
	r.Pairs[1].Tries[0].Traced.Refused = "recverr"
	r.System = System{
		Version: "devel", Go: "go1.26", OS: "linux", Kernel: "6.18.0", Arch: "amd64", UserNamespace: true, Capabilities: []string{"net_raw"},
		Backend: "afpacket", BackendReason: "no eBPF: operation not permitted", Congestion: "cubic", Offloads: []string{"tso"},
		Sysctls: map[string]string{"net.ipv4.tcp_sack": "1"},
	}
	r.Network = Network{Routers: 4, DelayMS: 20, BitRate: 20_000_000, Firewall: true}
	r.Compared = []string{"Tcp.RetransSegs"}
	r.LeftBehind, r.NotTried = []string{"packet sockets"}, []string{"loss"}
	r.Judge()
	return r
}

// What is written is what the schema says, and reads back.
func TestRecord(t *testing.T) {
	s := schema(t)
	empty := newRecord(time.Now())
	empty.Judge()
	for name, r := range map[string]*Record{"whole": whole(), "empty": empty} {
		var b bytes.Buffer
		if err := r.WriteJSON(&b); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(b.String(), "\n"); n != 1 || !strings.HasSuffix(b.String(), "\n") {
			t.Errorf("%s: %d lines", name, n)
		}
		if err := validate(t, s, b.String()); err != nil {
			t.Errorf("%s: %v\n%s", name, err, b.String())
		}
		again, err := Read(&b)
		if err != nil {
			t.Fatal(err)
		}
		one, _ := json.Marshal(r)
		two, _ := json.Marshal(again)
		if !bytes.Equal(one, two) {
			t.Errorf("%s: read back\n%s\n%s", name, one, two)
		}
	}
	for _, bad := range []string{`{"schema":"service-traceroute/2","type":"selftest"}`, `{"schema":"service-traceroute/1","type":"trace"}`, `{`} {
		if _, err := Read(strings.NewReader(bad)); err == nil {
			t.Errorf("%s is read", bad)
		}
	}
}

// A schema that accepts everything would pass the test above.
func TestRecordSchemaRejects(t *testing.T) {
	s := schema(t)
	b, err := json.Marshal(whole())
	if err != nil {
		t.Fatal(err)
	}
	for old, broken := range map[string]string{
		`"service-traceroute/1"`:        `"service-traceroute/2"`,
		`"verdict":"harm"`:              `"verdict":"good"`,
		`"type":"selftest"`:             `"type":"trace"`,
		`"family":"ipv6"`:               `"family":"ipx"`,
		`"traffic":"datagrams"`:         `"traffic":"chat"`,
		`"intact":true`:                 `"intact":1`,
		`"left_behind":`:                `"hostname":"h","left_behind":`,
		`"kernel":`:                     `"nodename":"h","kernel":`,
		`"counters":{}`:                 `"counters":null`,
		`"reasons":`:                    `"because":`,
		`"time":"1970-01-01T00:00:00Z"`: `"time":"yesterday"`,
	} {
		text := strings.Replace(string(b), old, broken, 1)
		if text == string(b) {
			t.Fatalf("no %s in %s", old, b)
		}
		if validate(t, s, text) == nil {
			t.Errorf("%s instead of %s is accepted", broken, old)
		}
	}
}

func TestVerdictWords(t *testing.T) {
	for _, v := range []Verdict{Harmless, Harm, NotTried} {
		text, err := v.MarshalText()
		var again Verdict
		if err != nil || again.UnmarshalText(text) != nil || again != v {
			t.Errorf("%v: %s, %v, %v", v, text, err, again)
		}
	}
	for _, bad := range []Verdict{0, 4} {
		if _, err := bad.MarshalText(); err == nil {
			t.Errorf("%v is written", bad)
		}
	}
	if new(Verdict).UnmarshalText([]byte("")) == nil {
		t.Error("nothing is a verdict")
	}
}

// What is private is left out of texts that the system wrote.
func TestPublic(t *testing.T) {
	for in, want := range map[string]string{
		"read tcp 10.200.0.1:45678->10.200.0.18:443: connection reset by peer": "read tcp ADDRESS->ADDRESS: connection reset by peer",
		"dial tcp [fd00::1]:443: no route to host":                             "dial tcp ADDRESS: no route to host",
		"address fe80::1%eth0 in 192.0.2.0/24 and 2001:db8::/32":               "address ADDRESS in ADDRESS and ADDRESS",
		"hardware 02:00:5e:10:00:01 gone":                                      "hardware ADDRESS gone",
		"open /home/alice/x.o: no such file":                                   "open PATH: no such file",
		"file:///home/alice: no such file":                                     "file:PATH: no such file",
		`read "/proc/1/ns"`:                                                    `read "PATH"`,
		"node alice: on Wonderland.":                                           "node NAME: on NAME.",
		"malice is no name":                                                    "malice is no name",
		"no eBPF: capture: eBPF: needs Linux 6.6: operation not permitted":     "no eBPF: capture: eBPF: needs Linux 6.6: operation not permitted",
	} {
		if got := public(in, "alice", "wonderland", ""); got != want {
			t.Errorf("public(%q) = %q, want %q", in, got, want)
		}
	}
	if got := public(strings.Repeat("ü", 400)); len(got) > 300 {
		t.Errorf("%d bytes", len(got))
	}
	if got := public(strings.Repeat("x", 297)+" alice", "alice"); strings.Contains(got, "al") {
		t.Errorf("half a name is left: %q", got[290:])
	}
	if got := nameless("6.18.4-alice-alice-alice alice", "alice"); strings.Contains(got, "alice") {
		t.Errorf("%q", got)
	}
	if got := nameless("6.18.4-alicebox-alice", "alice", ""); got != "6.18.4-alicebox-NAME" {
		t.Errorf("%q", got)
	}
}

// private looks for what a record may not hold: addresses, paths, and these names.
func private(t *testing.T, record []byte, names ...string) {
	t.Helper()
	var all map[string]any
	if err := json.Unmarshal(record, &all); err != nil {
		t.Fatal(err)
	}
	delete(all, "time") // which looks like an address
	var look func(any)
	look = func(v any) {
		switch v := v.(type) {
		case string:
			if clean := public(v, names...); clean != v {
				t.Errorf("private: %q", v)
			}
		case []any:
			for _, v := range v {
				look(v)
			}
		case map[string]any:
			for name, v := range v {
				look(name)
				look(v)
			}
		}
	}
	look(all)
}

// TestPaths: hops and distances are held against the network.
func TestPaths(t *testing.T) {
	addr := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, last}) }
	nodes := map[netip.Addr]string{addr(1): "r1", addr(2): "r2", addr(9): "server"}
	hop := func(ttl int, from byte, kind trace.ReplyKind) trace.Hop {
		return trace.Hop{TTL: ttl, Sent: 1, Replies: []trace.Reply{{Addr: addr(from), Kind: kind}}}
	}
	end := func(ttl int) *trace.Destination { return &trace.Destination{TTL: ttl, By: trace.DestinationByAck} }
	for name, c := range map[string]struct {
		tr   trace.Trace
		want Paths
	}{
		"true": {trace.Trace{
			Complete: true, Reached: true, Destination: end(3),
			Hops: []trace.Hop{hop(1, 1, trace.TimeExceeded), hop(2, 2, trace.TimeExceeded), hop(3, 9, trace.TCPAck)},
		}, Paths{Traces: 1, Complete: 1, Reached: 1, Hops: 2}},
		"another router":  {trace.Trace{Hops: []trace.Hop{hop(1, 2, trace.TimeExceeded)}}, Paths{Traces: 1, Hops: 1, False: 1}},
		"nobody's":        {trace.Trace{Hops: []trace.Hop{hop(1, 7, trace.TimeExceeded)}}, Paths{Traces: 1, Hops: 1, False: 1}},
		"behind the path": {trace.Trace{Hops: []trace.Hop{hop(3, 9, trace.TimeExceeded)}}, Paths{Traces: 1, Hops: 1, False: 1}},
		"silence":         {trace.Trace{Hops: []trace.Hop{{TTL: 1, Sent: 3}}}, Paths{Traces: 1}},
		"too near":        {trace.Trace{Reached: true, Destination: end(2)}, Paths{Traces: 1, Reached: 1, WrongDistance: 1}},
	} {
		var got Paths
		if got.add(&c.tr, []string{"r1", "r2"}, nodes); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// The text names all that the record says against tracing.
func TestReport(t *testing.T) {
	var b bytes.Buffer
	if err := whole().Write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Linux 6.18.0 (amd64)", "back end afpacket (no eBPF: operation not permitted)", "4 routers (one is a stateful firewall), 20 Mbit/s",
		"IPv4 download", "IPv6 datagrams", "HARM", "left behind: packet sockets\n", "not tried: loss\n", "verdict: HARM\n", "errors at the application's socket: 1\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("lacks %q:\n%s", want, b.String())
		}
	}
}

// TestStacks holds docs/stacks.md against the records beside it, which are harmless ones
// or tell why not.
func TestStacks(t *testing.T) {
	const page, begin = "../../docs/stacks.md", "<!-- from docs/stacks/*.json by go test ./internal/selftest -run TestStacks -update -->\n\n"
	files, err := filepath.Glob("../../docs/stacks/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d records: %v", len(files), err)
	}
	var records []*Record
	var names []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(t, schema(t), string(b)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		r, err := Read(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		private(t, b)
		records, names = append(records, r), append(names, filepath.Base(file))
	}
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, found := strings.Cut(string(b), begin)
	_, tail, ended := strings.Cut(rest, "\n\n")
	if !found || !ended {
		t.Fatalf("%s has no place for the table", page)
	}
	want := head + begin + Table(records, names) + "\n" + tail
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(b) != want {
		t.Errorf("%s is not made from its records: -update", page)
	}
}
