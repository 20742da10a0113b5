//go:build linux

package whole

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"servicetraceroute/internal/output"
	"servicetraceroute/trace"
)

// envVisit makes this program a client of a TLS server: its address, the name that is
// asked for, escaped as in a URL's query, and how long the connection lives.
const envVisit = "SERVICE_TRACEROUTE_TEST_VISIT"

func visit() {
	words := strings.Fields(os.Getenv(envVisit))
	if len(words) != 3 {
		return
	}
	name, err := url.QueryUnescape(words[1])
	life, _ := time.ParseDuration(words[2])
	var c *tls.Conn
	if err == nil {
		// The certificate is the lab's own.
		c, err = tls.Dial("tcp", words[0], &tls.Config{ServerName: name, InsecureSkipVerify: true})
	}
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	time.Sleep(life)
	c.Close()
	os.Exit(0)
}

// visits runs the command over such a client of the web server and returns what it
// wrote to its file.
func (f *field) visits(t *testing.T, ipv6 bool, client, name, format string, flags ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "records")
	argv := append(append([]string{f.bin, "run", "--output", format, "-o", file}, flags...), "--", client)
	to := netip.AddrPortFrom(f.Node("server").Addr(ipv6), 443)
	env := fmt.Sprintf("%s=%v %s %s", envVisit, to, url.QueryEscape(name), lively)
	stdout, stderr, status, err := f.Node("client").Exec(t.Context(), argv, []string{env}, nil)
	if err != nil || status != 0 {
		t.Fatalf("%s: status %d, %v, %s%s", format, status, err, stdout, stderr)
	}
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%s: mode %v, %v", format, info.Mode(), err)
	}
	all := readFile(file)
	if all == "" {
		t.Errorf("%s: no records: %s", format, stderr)
	}
	if strings.Contains(strings.Join(flags, " "), "--privacy") {
		all += string(stderr) // what is logged is masked as well
	}
	return all
}

// TestRecordsOfPeople shares one network among its parts.
func TestRecordsOfPeople(t *testing.T) {
	t.Parallel()
	f := newField(t)
	t.Run("privacy", f.privacy)
	t.Run("privacy and packets", f.privacyAndPackets)
	t.Run("hostile bytes", f.hostileBytes)
}

// address is what reads like one.
var address = regexp.MustCompile(`\b(\d+\.\d+\.\d+\.\d+|[0-9a-f]{1,4}(::?[0-9a-f]{1,4}){2,7})\b`)

// With --privacy no output names anybody: neither end, no router, no name, no process.
// There is a path all the same.
func (f *field) privacy(t *testing.T) {
	of := map[netip.Addr]string{}
	for _, link := range f.Layout().Links {
		for _, end := range []netip.Prefix{link.A.Addr4, link.A.Addr6, link.B.Addr4, link.B.Addr6} {
			of[end.Addr()] = link.Name
		}
	}
	for i, format := range output.Formats {
		for _, flags := range [][]string{nil, {"--host", "*.whom-i-visit.example"}} {
			all := f.visits(t, (len(flags)+i)%2 == 0, self(t), "www.whom-i-visit.example", format, append(flags, "--privacy", "-v")...)
			for _, secret := range []string{"whom-i-visit", filepath.Base(self(t))} {
				if strings.Contains(all, secret) {
					t.Errorf("%s %q: %q is in\n%s", format, flags, secret, all)
				}
			}
			shown := map[netip.Addr]bool{}
			for _, text := range address.FindAllString(all, -1) {
				addr, err := netip.ParseAddr(text)
				if err != nil {
					continue // a time of day, or the like
				}
				shown[addr] = true
				if link := of[addr]; link != "" || !addr.IsPrivate() {
					t.Errorf("%s %q: %v (of link %q) is in\n%s", format, flags, addr, link, all)
				}
			}
			if len(shown) < 3 {
				t.Errorf("%s %q: no path in\n%s", format, flags, all)
			}
		}
	}
}

// Packets cannot be masked, so that both are not to be had, and no file is left.
func (f *field) privacyAndPackets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "packets")
	r := f.run(t, nil, f.bin, "trace", "--host", f.server.String(), "--privacy", "--pcap", file)
	if r.status != 2 || !strings.HasPrefix(r.stderr, "error: --privacy and --pcap exclude each other") || r.stdout != "" {
		t.Errorf("status %d, stdout %q, stderr %q", r.status, r.stdout, r.stderr)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the file: %v", err)
	}
}

// hostile is a name with what takes over a terminal, ends a line, a string or a field:
// escapes of seven and of eight bits, and what is no text at all. A process keeps 15
// bytes of it.
const hostile = "\x1b[2J\"\n,\u0085\u009b\x7f\xff"

// What comes from outside is escaped in every output, and is read as what it was.
func (f *field) hostileBytes(t *testing.T) {
	client := filepath.Join(t.TempDir(), hostile)
	if err := os.Symlink(self(t), client); err != nil {
		t.Fatal(err)
	}
	for _, format := range output.Formats {
		packets := filepath.Join(t.TempDir(), "packets")
		all := f.visits(t, false, client, hostile, format, "--pcap", packets, "-v")
		for line := range strings.Lines(all) {
			if line = strings.TrimSuffix(line, "\n"); output.Escape(line) != line {
				t.Errorf("%s: %q", format, line)
			}
		}
		switch format {
		case "text":
			if want := output.Escape(hostile); !strings.Contains(all, "chosen by run "+want+" (") || !strings.Contains(all, ", process "+want+" (") {
				t.Errorf("%s: no %s in\n%s", format, want, all)
			}
		case "json":
			f.readsHostile(t, all)
		}
		if info, err := os.Stat(packets); err != nil || info.Mode() != 0o600 {
			t.Errorf("the packets: mode %v, %v", info.Mode(), err)
		}
		readPackets(t, strings.NewReader(readFile(packets)))
	}
}

// readsHostile wants records to give the process its name.
func (f *field) readsHostile(t *testing.T, records string) {
	t.Helper()
	traces := 0
	for line := range bytes.Lines([]byte(records)) {
		ev, err := trace.Unmarshal(line)
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if tr, ok := ev.(*trace.Trace); ok {
			traces++
			if want := strings.ToValidUTF8(hostile, "\ufffd"); tr.Process == nil || tr.Process.Name != want || tr.Service.Name != want {
				t.Errorf("%+v %+v, want %q", tr.Process, tr.Service, want)
			}
		}
	}
	if traces != 1 {
		t.Errorf("%d traces:\n%s", traces, records)
	}
}
