//go:build linux

package whole

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab/peer"
	"servicetraceroute/internal/privilege"
	"servicetraceroute/trace"
)

// envConfined makes this program execute its arguments with CAP_NET_RAW alone.
const envConfined = "SERVICE_TRACEROUTE_TEST_CONFINED"

func confine() {
	if os.Getenv(envConfined) == "" {
		return
	}
	err := privilege.Drop(privilege.NetRaw)
	if err == nil {
		err = unix.Exec(os.Args[1], os.Args[1:], os.Environ())
	}
	fmt.Println("error:", err)
	os.Exit(99)
}

// TestRecvErr traces a client whose socket hears of ICMP errors.
func TestRecvErr(t *testing.T) {
	t.Parallel()
	f := newField(t)
	if _, err := peer.ServeUDP(t.Context(), f.Node("server"), peer.UDPConfig{Port: 4433}); err != nil {
		t.Fatal(err)
	}
	t.Run("killed", f.killed)
	t.Run("without the capability", f.withoutNetAdmin)
}

// asks plays the client, which must not hear of any error.
func (f *field) asks(t *testing.T) {
	t.Helper()
	x, err := peer.RunExchange(t.Context(), f.Node("client"), peer.ExchangeConfig{
		Server: netip.AddrPortFrom(f.server, 4433), Count: 30, Size: 200, Every: 50 * time.Millisecond, Socket: peer.Socket{RecvErr: true},
	})
	if err != nil || x.Answered != x.Sent || x.SendErrorCount+x.RecvErrorCount > 0 {
		t.Errorf("%+v, %v", x, err)
	}
}

// dropRules counts our rules in the client's namespace.
func (f *field) dropRules(t *testing.T) (rules int) {
	t.Helper()
	err := f.Node("client").Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		for _, table := range tables {
			if strings.HasPrefix(table.Name, "service_traceroute_") {
				rules++
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

// The rule that tracing the flow takes is gone with the command, also when it is killed.
func (f *field) killed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "paths.ndjson")
	p := start(t, f.Node("client").Do, nil, f.bin, "trace", "--host", f.server.String(), "--proto", "udp", "--udp-probe", "always",
		"--output", "json", "-o", file)
	p.stderr.await(t, "watching")
	if n := f.dropRules(t); n != 0 {
		t.Errorf("%d rules before any flow needs one", n)
	}
	f.asks(t)
	eventually(t, "a trace", func() bool { return len(parsed(t, file)) > 0 })
	if tr := parsed(t, file)[0]; tr.Stop != trace.StopFence || len(tr.Hops) != 1 || len(tr.Hops[0].Replies) == 0 {
		t.Errorf("%v: %+v", tr.Stop, tr.Hops)
	}
	if n := f.dropRules(t); n != 1 {
		t.Errorf("%d rules while it runs", n)
	}
	if err := syscall.Kill(p.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.over
	if n := f.dropRules(t); n != 0 {
		t.Errorf("%d rules are left", n)
	}
}

// Without CAP_NET_ADMIN the flow is refused, and why is said once.
func (f *field) withoutNetAdmin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "paths.ndjson")
	p := start(t, f.Node("client").Do, func(cmd *exec.Cmd) { cmd.Env = append(cmd.Env, envConfined+"=1") }, self(t),
		f.bin, "trace", "--host", f.server.String(), "--proto", "udp", "--udp-probe", "always", "--output", "json", "-o", file)
	p.stderr.await(t, "watching")
	f.asks(t)
	f.asks(t)
	eventually(t, "two traces", func() bool { return len(parsed(t, file)) > 1 })
	for _, tr := range parsed(t, file) {
		if tr.Stop != trace.StopRefused || tr.Reason != trace.ReasonRecvErr || len(tr.Hops) > 0 {
			t.Errorf("%v: %v: %+v", tr.Stop, tr.Reason, tr.Hops)
		}
	}
	p.signal(t, syscall.SIGINT, false)
	text := p.stderr.String()
	if strings.Count(text, "warning: ") != 1 || !strings.Contains(text, "CAP_NET_ADMIN") || !strings.Contains(text, "operation not permitted") ||
		strings.Count(text, "\nhint: ") != 1 {
		t.Errorf("stderr:\n%s", text)
	}
}
