//go:build linux && peers

package whole

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestPeersTshark lets tshark, which knows nothing of this project, read the file.
func TestPeersTshark(t *testing.T) {
	f := newPcapField(t)
	file := filepath.Join(t.TempDir(), "packets.pcapng")
	r := f.run(t, func() { f.speak(t, 4*time.Second) },
		f.bin, "trace", "--host", f.server.String(), "--duration", "5s", "--pcap", file)
	if r.status != 0 {
		t.Fatalf("status %d: %s", r.status, r.stderr)
	}
	// tshark gives up its privileges and must be able to read what was private.
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	tshark := func(args ...string) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		cmd := exec.Command("tshark", append([]string{"-n", "-r", file}, args...)...)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("tshark %v: %v: %s", args, err, stderr.String())
		}
		if bad := regexp.MustCompile(`(?i)malformed|cut short in the middle|isn't valid|error`).FindString(stderr.String()); bad != "" {
			t.Errorf("tshark %v: %s", args, stderr.String())
		}
		return stdout.String()
	}
	lines := strings.Split(strings.TrimSpace(tshark("-Y", "frame.comment", "-T", "fields",
		"-e", "frame.interface_name", "-e", "frame.packet_flags_direction", "-e", "ip.ttl", "-e", "frame.comment")), "\n")
	probe := regexp.MustCompile(`^eth0\t0x00000002\t(\d+)\ttrace [0-9a-f]{16} ttl (\d+) probe \d+: \S`)
	reply := regexp.MustCompile(`^eth0\t0x00000001\t\S+\ttrace [0-9a-f]{16} ttl \d+ probe \d+: (time-exceeded|tcp-ack) from \S+, [0-9.]+ ms$`)
	probes, replies := 0, 0
	for _, line := range lines {
		switch m := probe.FindStringSubmatch(line); {
		case m != nil && m[1] == m[2]:
			probes++
		case reply.MatchString(line):
			replies++
		case strings.Contains(line, "not a reply to a probe of ours"), strings.Contains(line, "cannot be told"):
		default:
			t.Errorf("%q", line)
		}
	}
	if probes < 5 || replies < 3 {
		t.Errorf("%d probes, %d replies:\n%s", probes, replies, strings.Join(lines, "\n"))
	}
	if bad := tshark("-Y", "_ws.malformed"); bad != "" {
		t.Errorf("malformed packets:\n%s", bad)
	}
	if out := tshark("-Y", `tcp.flags.syn == 1`, "-T", "fields", "-e", "tcp.dstport"); !strings.HasPrefix(out, "80\n") {
		t.Errorf("the handshake: %q", out)
	}
	if out, err := exec.Command("capinfos", "-M", file).CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "service-traceroute") || !strings.Contains(string(out), "Strict time order:   True") {
		t.Errorf("%v: %s", err, out)
	}
	t.Logf("%d probes, %d replies:\n%s", probes, replies, strings.Join(lines, "\n"))
}
