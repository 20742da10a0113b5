//go:build linux

package whole

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/scenario"
	"servicetraceroute/internal/wire"
	"servicetraceroute/trace"
)

// marker is what the application says. It is long enough for its packet to be too
// big for the link behind the first router, whose error quotes it.
const marker = "the-words-of-the-application"

// packet is one of the file, decoded.
type packet struct {
	at       time.Time
	data     []byte
	length   int
	outbound bool
	comment  string
	tap      string
	ip       wire.Packet
	tcp      wire.TCP
}

func readPackets(t *testing.T, r io.Reader) (all []packet) {
	t.Helper()
	ng, err := pcapgo.NewNgReader(r, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, ci, opts, err := ng.ReadPacketDataWithOptions()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatalf("packet %d: %v", len(all), err)
		}
		i, err := ng.Interface(ci.InterfaceIndex)
		if err != nil {
			t.Fatal(err)
		}
		p := packet{at: ci.Timestamp, data: data, length: ci.Length, comment: strings.Join(opts.Comments, "|"), tap: i.Name}
		p.outbound = opts.Flags != nil && opts.Flags.Direction == pcapgo.NgEpbFlagDirectionOutbound
		if err := p.ip.Decode(data, ci.Length); err != nil {
			t.Errorf("packet %d: %v: %x", len(all), err, data)
		}
		if p.ip.Proto == wire.ProtoTCP {
			if err := p.tcp.Decode(p.ip.Transport, p.ip.TransportLen); err != nil {
				t.Errorf("packet %d: %v: %x", len(all), err, data)
			}
		}
		all = append(all, p)
	}
}

// newPcapField is a field with a link on which long packets do not fit, and a web
// server without TLS.
func newPcapField(t *testing.T) *field {
	f := &field{bin: build(t)}
	n := scenario.Network{Name: "pcap", Nodes: []scenario.Node{
		{Name: "client", Kind: scenario.Host}, {Name: "r1", Kind: scenario.Router},
		{Name: "r2", Kind: scenario.Router, Silent: true}, {Name: "r3", Kind: scenario.Router},
		{Name: "server", Kind: scenario.Host},
	}}
	for i := range 4 {
		n.Links = append(n.Links, scenario.Link{A: n.Nodes[i].Name, B: n.Nodes[i+1].Name})
	}
	n.Links[1].MTU = 1280
	f.Lab = labtest.Start(t, n)
	f.server = f.Node("server").Addr(false)
	if _, err := peer.ServeHTTPS(t.Context(), f.Node("server"), peer.HTTPSConfig{Port: 80, Plain: true}); err != nil {
		t.Fatal(err)
	}
	return f
}

// speak is a download whose request carries the marker, many times.
func (f *field) speak(t *testing.T, d time.Duration) {
	t.Helper()
	url := fmt.Sprintf("http://%v:80/slow/400000?for=%v&say=%s", f.server, d, strings.Repeat(marker, 100))
	got, err := peer.Get(t.Context(), f.Node("client"), peer.GetConfig{URL: url})
	if err != nil || len(got) != 1 || !got[0].Intact {
		t.Errorf("download: %+v, %v", got, err)
	}
}

func TestPcap(t *testing.T) {
	t.Parallel()
	f := newPcapField(t)
	t.Run("headers only", f.pcapHeaders)
	t.Run("payload", f.pcapPayload)
	t.Run("interrupted, through a pipe", f.pcapPipe)
	t.Run("the file cannot be written", f.pcapFull)
	t.Run("standard output", f.pcapStdout)
	t.Run("a pipe without a reader", f.pcapNoReader)
}

// traced runs the command over one download and returns its trace and packets.
func (f *field) traced(t *testing.T, flags ...string) (*trace.Trace, []packet, []byte) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "packets.pcapng")
	argv := []string{f.bin, "trace", "--host", f.server.String(), "--duration", "6s", "--output", "json", "--pcap", file}
	r := f.run(t, func() { f.speak(t, 5*time.Second) }, append(argv, flags...)...)
	if r.status != 0 {
		t.Fatalf("status %d, stderr %q", r.status, r.stderr)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var traces []*trace.Trace
	for line := range strings.Lines(r.stdout) {
		ev, err := trace.Unmarshal([]byte(line))
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		switch ev := ev.(type) {
		case *trace.Trace:
			traces = append(traces, ev)
		case *trace.Stats:
			if ev.Pcap == nil || ev.Pcap.Dropped != 0 {
				t.Errorf("%+v", ev.Pcap)
			}
		}
	}
	if len(traces) != 1 {
		t.Fatalf("%d traces:\n%s", len(traces), r.stdout)
	}
	return traces[0], readPackets(t, bytes.NewReader(b)), b
}

var probeComment = regexp.MustCompile(`^trace ([0-9a-f]{16}) ttl (\d+) probe (\d+): (.*)$`)

func (f *field) pcapHeaders(t *testing.T) {
	tr, all, raw := f.traced(t)
	for _, word := range []string{marker, "HTTP/1.1", "Content-"} {
		if bytes.Contains(raw, []byte(word)) {
			t.Errorf("the file holds %q", word)
		}
	}
	if !slices.IsSortedFunc(all, func(a, b packet) int { return a.at.Compare(b.at) }) {
		t.Error("not in time order")
	}
	if len(all) < 20 || all[0].tcp.Flags != wire.SYN || all[1].tcp.Flags != wire.SYN|wire.ACK || !all[0].outbound || all[1].outbound {
		t.Fatalf("the handshake is missing among %d packets", len(all))
	}
	longest, foreign := 0, 0
	probes, replies := map[string]string{}, map[string]string{}
	for _, p := range all {
		if p.tap != "eth0" {
			t.Errorf("at %q", p.tap)
		}
		longest = max(longest, p.length)
		m := probeComment.FindStringSubmatch(p.comment)
		switch {
		case m != nil:
			f.checkComment(t, tr, p, m, probes, replies)
		case p.comment == "trace "+tr.ID+": not a reply to a probe of ours":
			foreign++
			if p.ip.Proto != wire.ProtoICMP || len(p.data) != 20+8+20+20+12 || p.length < 500 {
				t.Errorf("%d of %d bytes are left of an error about the application's packet", len(p.data), p.length)
			}
		case strings.HasSuffix(p.comment, "which probe it answers cannot be told"):
		case p.comment != "":
			t.Errorf("comment %q", p.comment)
		case p.ip.Proto != wire.ProtoTCP || len(p.tcp.Payload) != 0:
			t.Errorf("payload or no TCP: %x", p.data)
		}
	}
	if longest < 1400 {
		t.Errorf("true lengths are lost: at most %d", longest)
	}
	if foreign == 0 {
		t.Error("the router's error about a packet too big is missing")
	}
	for _, h := range tr.Hops {
		sent, answered := 0, 0
		for key, verdict := range probes {
			if strings.HasPrefix(key, fmt.Sprintf("%d/", h.TTL)) {
				sent++
				if _, ok := replies[key]; ok {
					answered++
				}
				if unanswered := verdict == "silent" || verdict == "cut short"; unanswered != (h.TTL == 2) && h.TTL != 4 {
					t.Errorf("ttl %s: %s", key, verdict)
				}
			}
		}
		// Acknowledgements of the destination are shown once each; its other probes
		// are silent.
		if sent != h.Sent || answered != len(h.Replies) {
			t.Errorf("TTL %d: %d probes and %d replies in the file, record %+v", h.TTL, sent, answered, h)
		}
	}
	if t.Failed() {
		for _, p := range all {
			if p.comment != "" {
				t.Log(p.at.Format("05.000000"), p.outbound, p.comment)
			}
		}
	}
}

// checkComment sorts a probe or reply under "ttl/probe" and holds it against the
// record.
func (f *field) checkComment(t *testing.T, tr *trace.Trace, p packet, m []string, probes, replies map[string]string) {
	t.Helper()
	if m[1] != tr.ID {
		t.Errorf("trace %s, not %s", m[1], tr.ID)
	}
	key := m[2] + "/" + m[3]
	to := replies
	if p.outbound {
		to = probes
		if fmt.Sprint(p.ip.TTL) != m[2] || p.tcp.PayloadLen != 0 {
			t.Errorf("probe with TTL %d: %s", p.ip.TTL, p.comment)
		}
	}
	if old, ok := to[key]; ok {
		t.Errorf("ttl %s twice: %q and %q", key, old, m[4])
	}
	to[key] = m[4]
	for _, h := range tr.Hops {
		for _, r := range h.Replies {
			if fmt.Sprint(h.TTL) == m[2] && m[4] == fmt.Sprintf("%v from %v, %.3f ms", r.Kind, r.Addr, float64(r.RTT.Nanoseconds())/1e6) {
				return
			}
		}
	}
	if m[4] != "silent" && m[4] != "limited" && m[4] != "cut short" || !p.outbound {
		t.Errorf("the record knows nothing of %q", p.comment)
	}
}

func (f *field) pcapPayload(t *testing.T) {
	tr, all, raw := f.traced(t, "--pcap-payload")
	if n := bytes.Count(raw, []byte(marker)); n < 100 {
		t.Errorf("the marker is there %d times", n)
	}
	in := 0
	for _, p := range all {
		if p.tcp.PayloadLen != len(p.tcp.Payload) {
			t.Errorf("%d of %d bytes of payload", len(p.tcp.Payload), p.tcp.PayloadLen)
		}
		if !p.outbound {
			in += len(p.tcp.Payload)
		}
	}
	if uint64(in) < tr.Observed.BytesIn || in < 50000 { // until the trace ended
		t.Errorf("%d of %d bytes of the download are in the file", in, tr.Observed.BytesIn)
	}
	if tr.Stop != trace.StopDestination {
		t.Errorf("%v", tr.Stop)
	}
}

// Ctrl-C in the middle: what is in the pipe is a whole file, and outstanding probes
// say that they were cut short.
func (f *field) pcapPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte, 1)
	go func() {
		b, _ := os.ReadFile(pipe) // opens when the command does
		got <- b
	}()
	p := start(t, f.Node("client").Do, nil, f.bin, "trace", "--host", f.server.String(), "--pcap", pipe)
	p.stderr.await(t, "watching")
	over := make(chan struct{})
	go func() {
		defer close(over)
		f.speak(t, 2*time.Second)
	}()
	time.Sleep(time.Second)
	status, _ := p.signal(t, syscall.SIGINT, false)
	<-over
	if status != 0 || strings.Contains(p.stderr.String(), "error:") {
		t.Errorf("status %d: %s", status, p.stderr.String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case b := <-got:
		cut := 0
		for _, p := range readPackets(t, bytes.NewReader(b)) {
			if strings.HasSuffix(p.comment, ": cut short") && p.outbound {
				cut++
			}
		}
		if cut == 0 {
			t.Error("no probe was cut short")
		}
	case <-ctx.Done():
		t.Fatal("the pipe was never closed")
	}
}

// A disk that is full ends the packets, not the tracing, and is told.
func (f *field) pcapFull(t *testing.T) {
	r := f.run(t, func() { f.speak(t, 3*time.Second) },
		f.bin, "trace", "--host", f.server.String(), "--duration", "4s", "--pcap", "/dev/full")
	if r.status != 1 || strings.Count(r.stderr, "error: --pcap /dev/full: ") != 1 || !strings.Contains(r.stderr, "no space left") {
		t.Errorf("status %d, stderr %q", r.status, r.stderr)
	}
	if !strings.Contains(r.stdout, " in ") || !strings.Contains(r.stdout, "\n  1  ") {
		t.Errorf("stdout %q", r.stdout)
	}
}

// To a pipe on standard output, live; a reader that goes away ends the packets
// alone.
func (f *field) pcapStdout(t *testing.T) {
	dir := t.TempDir()
	paths, packets := filepath.Join(dir, "paths"), filepath.Join(dir, "packets")
	command := fmt.Sprintf("%s trace --host %v --duration 4s -o %s --pcap - 2>%s/err; echo status $? >>%s/err",
		f.bin, f.server, paths, dir, dir)
	for reader, want := range map[string]string{
		"cat >" + packets:              "status 0\n",
		"head -c 200 >" + dir + "/few": "status 1\n",
	} {
		ctx, cancel := context.WithCancel(t.Context())
		spoken := make(chan struct{})
		go func() {
			defer close(spoken)
			for ctx.Err() == nil && !strings.Contains(readFile(dir+"/err"), "watching") {
				time.Sleep(20 * time.Millisecond)
			}
			f.speak(t, 3*time.Second)
		}()
		_, stderr, exit, err := f.Node("client").Exec(ctx, []string{"sh", "-c", "(" + command + ") | " + reader}, nil, nil)
		cancel()
		<-spoken
		told := readFile(dir + "/err")
		if err != nil || exit != 0 || !strings.HasSuffix(told, want) {
			t.Errorf("%s: %v, %d, %s, %s", reader, err, exit, stderr, told)
		}
		if !strings.Contains(readFile(paths), "\n  1  ") {
			t.Errorf("%s: no path: %s", reader, readFile(paths))
		}
		if err := os.Remove(dir + "/err"); err != nil {
			t.Error(err)
		}
	}
	if all := readPackets(t, strings.NewReader(readFile(packets))); len(all) < 20 {
		t.Errorf("%d packets", len(all))
	}
}

func readFile(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(b)
}

// Ctrl-C ends the waiting for somebody who reads the pipe.
func (f *field) pcapNoReader(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	promptly(t, "Ctrl-C", func() time.Duration {
		p := start(t, f.Node("client").Do, nil, f.bin, "trace", "--host", f.server.String(), "--pcap", pipe)
		p.stderr.await(t, "waits for a reader")
		status, took := p.signal(t, syscall.SIGINT, false)
		if status != 1 || !strings.Contains(p.stderr.String(), "nobody reads it") {
			t.Errorf("status %d: %s", status, p.stderr.String())
		}
		return took
	})
}
