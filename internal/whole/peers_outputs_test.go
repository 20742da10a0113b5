//go:build linux && peers

package whole

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"servicetraceroute/internal/lab/peer"
)

// fetch is a download over IPv4 or IPv6 that takes so long, and returns the client's end.
func (f *field) fetch(t *testing.T, ipv6 bool, d time.Duration) netip.AddrPort {
	t.Helper()
	url := fmt.Sprintf("http://%v/slow/40000?for=%v", netip.AddrPortFrom(f.Node("server").Addr(ipv6), 80), d)
	got, err := peer.Get(t.Context(), f.Node("client"), peer.GetConfig{URL: url})
	if err != nil || len(got) != 1 || !got[0].Intact {
		t.Errorf("download: %+v, %v", got, err)
		return netip.AddrPort{}
	}
	return got[0].Local
}

// kinds are the keys of a JSON object with the types of their values, and those of the
// objects within under both keys. Of a list's objects it is what all of them have together.
func kinds(v any) map[string]string {
	all := map[string]string{}
	var walk func(at string, v any)
	walk = func(at string, v any) {
		switch v := v.(type) {
		case map[string]any:
			all[at] = "object"
			for key, inner := range v {
				walk(at+"."+key, inner)
			}
		case []any:
			all[at] = "array"
			for _, inner := range v {
				walk(at+"[]", inner)
			}
		case string:
			all[at] = "string"
		case json.Number:
			all[at] = "integer"
			if strings.Contains(v.String(), ".") {
				all[at] = "number"
			}
		default:
			all[at] = fmt.Sprintf("%T", v)
		}
	}
	walk("", v)
	return all
}

// traceOf is the one trace among the lines of sc_warts2json, or of ours.
func traceOf(t *testing.T, lines string) map[string]any {
	t.Helper()
	var found map[string]any
	for line := range strings.Lines(lines) {
		dec := json.NewDecoder(strings.NewReader(line))
		dec.UseNumber()
		var v map[string]any
		if err := dec.Decode(&v); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if v["type"] == "trace" {
			if found != nil {
				t.Fatalf("two traces:\n%s", lines)
			}
			found = v
		}
	}
	if found == nil {
		t.Fatalf("no trace:\n%s", lines)
	}
	return found
}

// byTTL are a trace's hops, the first answer of each TTL.
func byTTL(t *testing.T, tr map[string]any) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	hops, ok := tr["hops"].([]any)
	if !ok {
		t.Fatalf("no hops: %v", tr)
	}
	for _, h := range hops {
		hop, _ := h.(map[string]any)
		ttl := fmt.Sprint(hop["probe_ttl"])
		if all[ttl] == nil {
			all[ttl] = hop
		}
	}
	return all
}

// TestPeersScamper lets Debian's scamper trace the way that an application's flow has,
// and holds what sc_warts2json prints of it against --output scamper: the same keys of the
// same types, of the trace and of each hop, and the same routers, of which one is silent.
func TestPeersScamper(t *testing.T) {
	f := newPcapField(t)
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6=%v", ipv6), func(t *testing.T) {
			to := f.Node("server").Addr(ipv6).String()
			r := f.run(t, func() { f.fetch(t, ipv6, 4*time.Second) },
				f.bin, "trace", "--host", to, "--duration", "5s", "--output", "scamper")
			if r.status != 0 {
				t.Fatalf("status %d: %s", r.status, r.stderr)
			}
			warts := filepath.Join(t.TempDir(), "warts")
			argv := []string{"scamper", "-O", "warts", "-o", warts, "-I", "trace -P tcp-ack -d 80 -q 2 -w 2 " + to}
			out, stderr, status, err := f.Node("client").Exec(t.Context(), argv, nil, nil)
			if err != nil || status != 0 {
				t.Fatalf("scamper: status %d, %v: %s%s", status, err, out, stderr)
			}
			printed, err := exec.Command("sc_warts2json", warts).Output()
			if err != nil {
				t.Fatalf("sc_warts2json: %v", err)
			}
			f.sameShape(t, traceOf(t, string(printed)), traceOf(t, r.stdout))
		})
	}
}

func (f *field) sameShape(t *testing.T, scamper, ours map[string]any) {
	t.Helper()
	same := func(what string, want, got any) {
		t.Helper()
		w, g := kinds(want), kinds(got)
		for key, kind := range w {
			if g[key] != kind {
				t.Errorf("%s: %q is %q, scamper's is %q", what, key, g[key], kind)
			}
		}
		for key := range g {
			if w[key] == "" {
				t.Errorf("%s: scamper has no %q", what, key)
			}
		}
	}
	same("trace", scamper, ours)
	for _, key := range []string{"type", "version", "method", "src", "dst", "dport", "stop_reason", "hop_count", "firsthop"} {
		if fmt.Sprint(scamper[key]) != fmt.Sprint(ours[key]) {
			t.Errorf("%s is %v, scamper's is %v", key, ours[key], scamper[key])
		}
	}
	theirs, own := byTTL(t, scamper), byTTL(t, ours)
	if len(theirs) != 3 || theirs["2"] != nil { // two routers and the server, not the silent one
		t.Errorf("scamper saw %v", theirs)
	}
	for ttl := range own {
		if theirs[ttl] == nil {
			t.Errorf("scamper saw nothing at TTL %s", ttl)
		}
	}
	for ttl, hop := range theirs {
		if own[ttl] == nil {
			t.Errorf("TTL %s is missing", ttl)
			continue
		}
		same("TTL "+ttl, hop, own[ttl])
		for _, key := range []string{"addr", "icmp_type", "icmp_code", "icmp_q_ttl", "reply_ttl"} {
			if fmt.Sprint(hop[key]) != fmt.Sprint(own[ttl][key]) {
				t.Errorf("TTL %s: %s is %v, scamper's is %v", ttl, key, own[ttl][key], hop[key])
			}
		}
	}
	if t.Failed() {
		t.Logf("scamper's %v\nours      %v", scamper, ours)
	}
}

// TestPeersReference gives --output reference to a reader in another language, which
// knows nothing but the documented shape, and holds what it read against the lab.
func TestPeersReference(t *testing.T) {
	f := newPcapField(t)
	script, err := filepath.Abs(filepath.Join("testdata", "read_reference.py"))
	if err != nil {
		t.Fatal(err)
	}
	read := func(t *testing.T, text string) string {
		t.Helper()
		var out, errs bytes.Buffer
		cmd := exec.Command("python3", script)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), &out, &errs
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %s\n%s", err, errs.String(), text)
		}
		return out.String()
	}
	for _, test := range []struct {
		name, algorithm, word string
		ipv6                  bool
		life                  time.Duration
		ended                 string
	}{
		{"adaptive", "adaptive", "adaptive", false, 5 * time.Second, ""},
		{"hop by hop, IPv6", "hop-by-hop", "hopbyhop", true, 5 * time.Second, ""},
		{"packet by packet, the flow ends first", "packet-by-packet", "packetbypacket", false, 300 * time.Millisecond, "FlowEnded"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var local netip.AddrPort
			file := filepath.Join(t.TempDir(), "records")
			to := f.Node("server").Addr(test.ipv6)
			begin := time.Now()
			r := f.run(t, func() { local = f.fetch(t, test.ipv6, test.life) }, f.bin, "trace", "--host", to.String(), "--algorithm", test.algorithm,
				"--timeout", "1s", "--duration", (test.life + time.Second).String(), "--label", "conf7", "--output", "reference", "-o", file)
			if r.status != 0 {
				t.Fatalf("status %d: %s", r.status, r.stderr)
			}
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.TrimSpace(read(t, string(raw)))
			t.Log(got)
			m := regexp.MustCompile(`^tcp (\S+) (\d+) (\S+) 80 conf=conf7 service=(\S+) name= algorithm=(\S+) distance=(\d) hops=(\S+) answers=(\S+) start=(\d+) end=(\d+) ended=(\S*)$`).FindStringSubmatch(got)
			if m == nil {
				t.Fatalf("%q", got)
			}
			start, _ := strconv.ParseInt(m[9], 10, 64)
			end, _ := strconv.ParseInt(m[10], 10, 64)
			if m[1] != local.Addr().String() || m[2] != strconv.Itoa(int(local.Port())) || m[3] != to.String() || m[4] != to.String() ||
				m[5] != test.word || m[11] != test.ended {
				t.Errorf("%q, the flow was from %v", got, local)
			}
			if start < begin.UnixMilli() || end > time.Now().UnixMilli() {
				t.Errorf("from %d to %d ms, the test began at %d", start, end, begin.UnixMilli())
			}
			routers := f.routers(test.ipv6)
			hops := strings.Split(m[7], ",")
			switch {
			case test.ended == "" && !slices.Equal(hops, routers):
				t.Errorf("hops %q, the lab has %q", hops, routers)
			case test.ended != "" && (len(hops) > len(routers) || !slices.Equal(hops, routers[:len(hops)])):
				t.Errorf("hops %q, the lab begins %q", hops, routers)
			}
		})
	}
}

// routers are the addresses at which the routers on the way answer; "*" is a silent one.
func (f *field) routers(ipv6 bool) (all []string) {
	n := f.Layout().Network
	for i, node := range n.Nodes[1 : len(n.Nodes)-1] {
		answer := "*"
		for _, link := range f.Layout().Links {
			if link.A.Node == n.Nodes[i].Name && link.B.Node == node.Name && !node.Silent {
				if answer = link.B.Addr4.Addr().String(); ipv6 {
					answer = link.B.Addr6.Addr().String()
				}
			}
		}
		all = append(all, answer)
	}
	return all
}
