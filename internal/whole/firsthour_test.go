//go:build linux && peers

package whole

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
)

// typed is one thing that a newcomer types.
type typed struct {
	command string
	status  int
	want    string // what has to come back, a regular expression
	mended  string // what was unclear at first
}

// firstHour is what a newcomer types, in this order. docs/first-hour.md is made
// from it.
var firstHour = []typed{
	{command: "service-traceroute", want: `(?s)^service-traceroute shows the path.*\n  trace .*\n  run `},
	{
		command: "service-traceroute trace", status: 2, want: `^error: nothing selected.*--service.*--host.*--process.*\nhint: for example`,
		mended: "It said that `--host` is missing, although a process selects as well.",
	},
	{
		command: "service-traceroute traceroute", status: 2, want: `hint: did you mean trace\?`,
		mended: "There was no suggestion.",
	},
	{
		command: "service-traceroute trace --host $S --duration 6s & sleep 1; curl -sk -o /dev/null https://$S/slow/100000?for=4s; wait",
		want:    `(?s)^watching for flows of 10\..*\n  1  .*\n  2  \*  \*  \*\n.*\[destination\]\nreached the destination at TTL 4 in .*: complete, .* no impact`,
	},
	{command: "service-traceroute run -- curl -sk -o /dev/null https://$S/bytes/100000", want: `(?s)chosen by run curl, process curl.*stopped: the flow closed`},
	{command: `service-traceroute run -- curl -sk -o /dev/null "https://$S/slow/100000?for=4s"`, want: `reached the destination at TTL 4`},
	{
		command: `service-traceroute run --output json -- curl -sk "https://$S/slow/2000?for=2s" -o /dev/null`,
		want:    `(?s)"type":"flow".*"type":"trace".*"type":"stats"`,
	},
	{command: "service-traceroute run curl -sk -o /dev/null https://$S/bytes/1000", want: `chosen by run curl`},
	{command: "service-traceroute run -- nosuchcommand", status: 127, want: `^error: nosuchcommand: command not found\nhint: `},
	{command: "service-traceroute run -- sh -c 'exit 7'", status: 7, want: `^service-traceroute: no flow of sh was seen\n$`},
	{command: "service-traceroute run -- true", want: `^service-traceroute: no flow of true was seen\n$`},
	{command: "service-traceroute dial $S", status: 1, want: `error: TLS handshake.*\nhint: --insecure traces all the same`},
	{command: "service-traceroute dial $S --insecure", want: `(?s)connected: .*TLS 1\.3, h2.*\[destination\]\nreached the destination`},
	{
		command: "service-traceroute dial --plain $S:80 --request", want: `(?s)answer: HTTP/1\.1 404 Not Found.*reached the destination`,
		mended: "On a short path the trace was done before the answer came, which was then not shown.",
	},
	{command: "service-traceroute dial $S:22", status: 1, want: `connection refused\nhint: the host answers, but nothing listens`},
	{
		command: "service-traceroute trace --host nosuch.example --duration 2s", status: 3,
		want:   `^warning: a name does not resolve now: its flows are known only once they name it \(nosuch\.example: .*\nwatching for flows of nosuch\.example.*\nerror: the time is over and no flow matched\nhint: `,
		mended: "It said that it watches before it had the name's addresses.",
	},
	{command: "service-traceroute trace --host 300.1.2.3", status: 2, want: `^error: --host: "300\.1\.2\.3" is neither an address, a prefix nor a name\nhint: `},
	{command: "service-traceroute trace --host '/(abc/'", status: 2, want: `^error: --host: name "/\(abc/": missing closing \).*\nhint: the syntax is RE2's`},
	{
		command: `service-traceroute trace --host '*.example.com' --duration 6s & sleep 1; curl -sk -o /dev/null --resolve www.example.com:443:$S "https://www.example.com/slow/20000?for=4s"; wait`,
		want:    `(?s)chosen by sni \*\.example\.com \(www\.example\.com\).*reached the destination at TTL 4`,
	},
	{command: "service-traceroute trace --service netflx", status: 2, want: `^error: unknown service "netflx"\nhint: did you mean netflix\?`},
	{command: "service-traceroute services show netflix | head -4", want: `name: netflix`},
	{
		command: `service-traceroute trace --service netflix --duration 6s & sleep 1; curl -sk -o /dev/null --resolve www.netflix.com:443:$S "https://www.netflix.com/slow/20000?for=4s"; wait`,
		want:    `(?s)watching for flows of service netflix.*chosen by sni netflix \(www\.netflix\.com\).*reached the destination at TTL 4`,
	},
	{command: "service-traceroute services show netflx", status: 2, want: `^error: .*netflx.*\nhint: did you mean netflix\?`},
	{
		command: `service-traceroute trace --host alone.example --duration 6s & sleep 1; dig +short @$S AAAA alone.example; curl -gsk -o /dev/null "https://[$S6]/slow/20000?for=4s"; wait`,
		want:    `(?s)chosen by dns alone\.example.*reached the destination at TTL 4`,
	},
	{
		command: `service-traceroute trace --host one.example --port 443 --duration 5s & sleep 1; dig +short @$S one.example; dig +short @$S two.example; curl -sk -o /dev/null "https://$S/slow/2000?for=2s"; wait`,
		want:    `(?s)error: the time is over and no flow matched\nhint: flows to addresses with other names as well, whose clients named none: 1; `,
		mended:  "The hint did not tell of the flow that was left out.",
	},
	{
		command: "service-traceroute trace --process crul --duration 2s & sleep 1; curl -sk -o /dev/null https://$S/bytes/1000; wait",
		want:    `error: the time is over and no flow matched\nhint: `,
	},
	{command: "service-traceroute trace --interface eth9 --host $S", status: 1, want: `^error: --interface: "eth9": no such interface\nhint: interfaces here: lo, eth0\n$`},
	{command: "service-traceroute trace --host $S --duration 1s", status: 3, want: `error: the time is over and no flow matched\nhint: `},
	{
		command: "service-traceroute trace --proces curl", status: 2, want: `^error: unknown flag: --proces\nhint: did you mean --process\?`,
		mended: "The hint was to see `-h`.",
	},
	{
		command: `service-traceroute trace --process curl --duration 5s & sleep 1; curl -sk -o /dev/null "https://$S/slow/20000?for=3s"; wait`,
		want:    `(?s)watching for flows of process "curl".*chosen by process curl, process curl \(\d+\)`,
	},
	{
		command: "setpriv --reuid 65534 --regid 65534 --clear-groups service-traceroute trace --host $S", status: 1,
		want: `^error: capture: open packet socket: operation not permitted\nhint: run as root, or once: chgrp`,
	},
	{command: "service-traceroute trace -h | wc -l", want: `^(1?[0-9]|2[0-4])\n$`},
	{
		command: "service-traceroute trace --help-all | head -12", want: `(?s)--algorithm.*--direction WAY`,
		mended: "`--direction out` read like a switch.",
	},
	{command: `printf 'host: [%s]\nduraton: 3s\n' $S > c.yaml; service-traceroute trace --config c.yaml`, status: 2, want: `^error: c\.yaml:2: unknown name "duraton"\nhint: did you mean duration\?`},
	{
		command: `printf 'host: [%s]\nduration: 5s\n' $S > c.yaml; service-traceroute trace --config c.yaml & sleep 1; curl -sk -o /dev/null "https://$S/slow/20000?for=3s"; wait`,
		want:    `reached the destination at TTL 4`,
	},
	{command: "service-traceroute __complete trace --alg 2>/dev/null", want: `^--algorithm\torder of the probes`},
	{
		command: `service-traceroute trace --host $S6 --pcap p.pcapng --duration 5s & sleep 1; curl -gsk -o /dev/null "https://[$S6]/slow/20000?for=3s"; wait; ls -l p.pcapng`,
		want:    `(?s)chosen by address fd00:.*reached the destination at TTL 4.*-rw------- .* p\.pcapng`,
	},
	{
		command: `service-traceroute trace --host $S --no-probe --duration 3s & sleep 1; curl -sk -o /dev/null "https://$S/slow/2000?for=1s"; wait`,
		want:    `chosen by address 10\.[0-9.]+(, process curl \(\d+\))?: matched\n`,
	},
	{
		command: `service-traceroute trace --host $S --netns all --duration 4s & sleep 1; curl -sk -o /dev/null "https://$S/slow/2000?for=2s"; wait`,
		want:    `chosen by address`,
	},
	{command: "service-traceroute --version", want: `^service-traceroute `},
}

// resolver is that of the machine where the test runs, of no interest to a reader.
var resolver = regexp.MustCompile(`(on \S+:53: )?dial udp \S+:53`)

// TestFirstHour types all of it.
func TestFirstHour(t *testing.T) {
	f := newHour(t)
	var doc strings.Builder
	doc.WriteString("# The first hour\n\nWhat a newcomer types, and what comes back. All of it ran on real kernels: a client, three routers of which the second is silent, and a web\n" +
		"server, 2 ms a link; `$S` and `$S6` are the server's addresses. What was unclear was mended; that is said below the command. `TestFirstHour` types\n" +
		"all of it again each time, and with `SERVICE_TRACEROUTE_FULL=1` writes this file.\n")
	for i, step := range firstHour {
		text, status := f.types(t, step.command)
		if status != step.status || !regexp.MustCompile(step.want).MatchString(text) {
			t.Errorf("%s: status %d, want %d; want %s in\n%s", step.command, status, step.status, step.want, text)
		}
		fmt.Fprintf(&doc, "\n%d. `%s` — exit %d\n\n", i+1, step.command, status)
		if step.mended != "" {
			fmt.Fprintf(&doc, "   At first: %s\n\n", step.mended)
		}
		text = resolver.ReplaceAllString(text, "dial udp 192.0.2.53:53")
		fmt.Fprintf(&doc, "   ```text\n%s   ```\n", abridged(text, 14, 170))
	}
	if os.Getenv("SERVICE_TRACEROUTE_FULL") == "" || t.Failed() {
		return
	}
	if err := os.WriteFile(filepath.Join("..", "..", "docs", "first-hour.md"), []byte(doc.String()), 0o644); err != nil {
		t.Error(err)
	}
}

// abridged is an output as the page shows it.
func abridged(text string, lines, columns int) string {
	var b strings.Builder
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, line := range all {
		if i == lines {
			fmt.Fprintf(&b, "   … %d lines more\n", len(all)-i)
			break
		}
		if r := []rune(line); len(r) > columns {
			line = string(r[:columns]) + "…"
		}
		b.WriteString(strings.TrimRight("   "+line, " ") + "\n")
	}
	return b.String()
}

// hour is the place where the newcomer sits.
type hour struct {
	*lab.Lab
	dir string
	env []string
}

func newHour(t *testing.T) *hour {
	t.Helper()
	n := scenario.Network{Name: "hour", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "r1", Kind: scenario.Router},
		{Name: "r2", Kind: scenario.Router, Silent: true}, {Name: "r3", Kind: scenario.Router},
		{Name: "server", Kind: scenario.Host},
	}}
	for i := range 4 {
		n.Links = append(n.Links, scenario.Link{A: n.Nodes[i].Name, B: n.Nodes[i+1].Name, Delay: 2 * time.Millisecond})
	}
	bin := build(t)
	f := &hour{Lab: labtest.Start(t, n)}
	for _, cfg := range []peer.HTTPSConfig{{Port: 443}, {Port: 80, Plain: true}} {
		if _, err := peer.ServeHTTPS(t.Context(), f.Node("server"), cfg); err != nil {
			t.Fatal(err)
		}
	}
	// Two names have one address, and one name has the other to itself.
	zone := fmt.Sprintf("one.example. 60 IN A %[1]v\ntwo.example. 60 IN A %[1]v\nalone.example. 60 IN AAAA %[2]v\n",
		f.Node("server").Addr(false), f.Node("server").Addr(true))
	if _, err := peer.ServeDNS(t.Context(), f.Node("server"), peer.DNSConfig{Port: 53, Zone: zone}); err != nil {
		t.Fatal(err)
	}
	// Other users have to be able to start the command.
	var err error
	if f.dir, err = os.MkdirTemp("", "first-hour"); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(f.dir) })
		err = os.Chmod(f.dir, 0o755)
	}
	if err == nil {
		err = os.Rename(bin, filepath.Join(f.dir, "service-traceroute"))
	}
	if err != nil {
		t.Fatal(err)
	}
	f.env = []string{
		"PATH=" + f.dir + ":" + os.Getenv("PATH"), "S=" + f.Node("server").Addr(false).String(), "S6=" + f.Node("server").Addr(true).String(),
	}
	return f
}

// types runs one line in a shell. The status is that of the tool: of what runs beside
// a fetch, too.
func (f *hour) types(t *testing.T, line string) (text string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	status, err := f.Node("client").Run(ctx, lab.Program{
		Argv: []string{"sh", "-c", line}, Env: f.env, Dir: f.dir, Stdout: &out, Stderr: &out,
	})
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out.String())
	}
	return out.String(), status
}
