//go:build linux

package whole

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/lab/tap"
	"servicetraceroute/trace"
)

// listen records the client's interfaces as tcpdump does: frames with the kernel's times,
// nothing of their ways. What it returns ends that and is the file.
func (f *field) listen(t *testing.T) func() []byte {
	t.Helper()
	var ring *tap.Ring
	err := f.Node("client").Do(func() (err error) {
		ring, err = tap.Open(tap.Config{Snap: 160, Frames: 1 << 14})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ring.Close)
	return func() []byte {
		file := ring.AppendPcap(nil)
		if n := ring.Dropped(); n > 0 {
			t.Fatalf("%d packets are missing", n)
		}
		return file
	}
}

// replay runs the command as nobody, without capabilities, on a file that it gets through
// a pipe.
func (f *field) replay(t *testing.T, file []byte, args ...string) (status int, stdout string) {
	t.Helper()
	cmd := exec.Command(f.bin, append([]string{"replay", "-", "--output", "json"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 65534, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 65534, HostID: os.Getegid(), Size: 1}},
	}
	var out, talk bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(file), &out, &talk
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if status = cmd.ProcessState.ExitCode(); status == 0 && talk.Len() > 0 || status != 0 && !strings.HasPrefix(talk.String(), "error: ") {
		t.Errorf("status %d: %s", status, talk.String())
	}
	return status, out.String()
}

// events reads records.
func events(t *testing.T, ndjson string) (traces map[trace.FlowKey]*trace.Trace, flows int) {
	t.Helper()
	traces = map[trace.FlowKey]*trace.Trace{}
	for line := range strings.Lines(ndjson) {
		ev, err := trace.Unmarshal([]byte(line))
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		switch ev := ev.(type) {
		case *trace.Trace:
			if traces[ev.Flow.FlowKey] != nil {
				t.Errorf("two traces of %v", ev.Flow.FlowKey)
			}
			traces[ev.Flow.FlowKey] = ev
		case *trace.Flow:
			flows++
		}
	}
	return traces, flows
}

// A file of real flows that were traced gives, without privileges, what was found then:
// the evidence does, and so does what somebody else captured beside it.
func TestReplay(t *testing.T) {
	t.Parallel()
	f := newField(t)
	udp, err := peer.ServeUDP(t.Context(), f.Node("server"), peer.UDPConfig{Port: 4433})
	if err != nil {
		t.Fatal(err)
	}
	recorded := f.listen(t)
	packets := filepath.Join(t.TempDir(), "packets.pcapng")
	r := f.run(t, func() {
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			if _, err := peer.RunExchange(t.Context(), f.Node("client"), peer.ExchangeConfig{
				Server: netip.AddrPortFrom(f.server, udp.Addr.Port()), Count: 40, Size: 100, Every: 100 * time.Millisecond,
			}); err != nil {
				t.Error(err)
			}
		}()
		f.download(t, 5*time.Second)
		<-asked
	}, f.bin, "trace", "--host", f.server.String(), "--udp-probe", "always", "--duration", "7s", "--output", "json", "--pcap", packets)
	capture := recorded()
	live, _ := events(t, r.stdout)
	if r.status != 0 || len(live) != 2 {
		t.Fatalf("status %d, %d traces: %s", r.status, len(live), r.stderr)
	}
	evidence, err := os.ReadFile(packets)
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string][]byte{"evidence": evidence, "capture": capture} {
		status, out := f.replay(t, file, "--host", f.server.String())
		again, flows := events(t, out)
		if status != 0 || flows != 2 {
			t.Errorf("%s: status %d, %d flows", name, status, flows)
		}
		for key, want := range live {
			if got := again[key]; got == nil || !alike(got, want) {
				t.Errorf("%s: got\n%s\nwant\n%s", name, inFull(got), inFull(want))
			}
		}
		if status, out := f.replay(t, file, "--proto", "udp", "--port", "4433"); status != 0 || strings.Contains(out, `"proto":"tcp"`) {
			t.Errorf("%s: %d\n%s", name, status, out)
		}
		if status, _ := f.replay(t, file, "--host", "192.0.2.1"); status != 3 {
			t.Errorf("%s: status %d of nothing", name, status)
		}
		if status, out := f.replay(t, file[:len(file)/2+3]); status != 1 || !strings.Contains(out, `"type":"stats"`) {
			t.Errorf("%s: status %d of a half\n%s", name, status, out)
		}
	}
}

// inFull is a trace as its record.
func inFull(tr *trace.Trace) string {
	b, err := json.Marshal(tr)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// alike reports whether a file has all that the trace of a flow found, and nothing else
// but answers that came when that had all it needed.
func alike(a, b *trace.Trace) bool { // a is of the file
	if a.Stop != b.Stop || a.Reached != b.Reached || a.Complete != b.Complete || a.PathID != b.PathID || *a.Service != *b.Service ||
		len(a.Hops) != len(b.Hops) || a.Flow.Direction != b.Flow.Direction {
		return false
	}
	if a.Reached && a.Destination.TTL != b.Destination.TTL {
		return false
	}
	for i, h := range a.Hops {
		other := b.Hops[i]
		if h.TTL != other.TTL || h.Sent != other.Sent || len(h.Replies) < len(other.Replies) {
			return false
		}
		for j, o := range other.Replies {
			if r := h.Replies[j]; r.Addr != o.Addr || r.Kind != o.Kind || (r.RTT-o.RTT).Abs() > 50*time.Millisecond { // each has stamps of its own
				return false
			}
		}
	}
	return true
}
