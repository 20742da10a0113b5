package selftest

import (
	"bufio"
	"context"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"servicetraceroute/internal/lab"
)

// ownSettings are settings of TCP that hosts have in common with the machine, where it
// can be seen how that is set. Those that a kernel has not got are left out.
var ownSettings = []string{
	"net.ipv4.tcp_congestion_control",
	"net.ipv4.tcp_sack",
	"net.ipv4.tcp_dsack",
	"net.ipv4.tcp_timestamps",
	"net.ipv4.tcp_window_scaling",
	"net.ipv4.tcp_ecn",
	"net.ipv4.tcp_frto",
	"net.ipv4.tcp_recovery",
	"net.ipv4.tcp_early_retrans",
	"net.ipv4.tcp_thin_linear_timeouts",
	"net.ipv4.tcp_mtu_probing",
	"net.ipv4.tcp_syncookies",
	"net.ipv4.tcp_autocorking",
	"net.ipv4.tcp_moderate_rcvbuf",
	"net.ipv4.tcp_invalid_ratelimit",
	"net.ipv4.tcp_challenge_ack_limit",
	"net.ipv6.auto_flowlabels",
}

// hostSettings reads those of the calling process's network namespace.
func hostSettings() map[string]string {
	all := map[string]string{}
	for _, name := range ownSettings {
		if b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/")); err == nil {
			all[name] = strings.TrimSpace(string(b))
		}
	}
	return all
}

// applySettings gives a host of the lab the machine's settings and returns what is in
// force there: some cannot be set in a namespace.
func applySettings(ctx context.Context, n *lab.Node, host map[string]string) map[string]string {
	all := map[string]string{}
	for _, name := range ownSettings {
		now, err := n.ReadSysctl(ctx, name)
		if err != nil {
			continue
		}
		if want, ok := host[name]; ok && want != now && n.Sysctl(ctx, name, want) == nil {
			now = want
		}
		all[name] = now
	}
	return all
}

// describe fills in what is tested, but for what only a Tracer and the lab can tell.
func (s *System) describe(version string, names ...string) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	s.Version, s.Go, s.OS, s.Arch = version, runtime.Version(), runtime.GOOS, runtime.GOARCH
	s.Kernel = nameless(unix.ByteSliceToString(name.Release[:]), names...) // who builds one may put a name into it
	s.UserNamespace = inUserNamespace()
	s.Capabilities = capabilities()
	return nil
}

// inUserNamespace reports whether this is not the first user namespace, in which every
// user is himself (user_namespaces(7)).
func inUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(b)), " ") != "0 0 4294967295"
}

// capabilities lists those in force that tracing may use.
func capabilities() []string {
	all := []string{}
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return all
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		hex, ok := strings.CutPrefix(lines.Text(), "CapEff:")
		if !ok {
			continue
		}
		has, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		for _, c := range []struct {
			bit  uint
			name string
		}{
			{unix.CAP_NET_RAW, "net_raw"}, {unix.CAP_NET_ADMIN, "net_admin"}, {unix.CAP_BPF, "bpf"}, {unix.CAP_PERFMON, "perfmon"},
			{unix.CAP_SYS_ADMIN, "sys_admin"},
		} {
			if err == nil && has>>c.bit&1 == 1 {
				all = append(all, c.name)
			}
		}
	}
	return all
}

// namesHere are names of this machine and its user, which no record may hold.
func namesHere() (names []string) {
	if host, err := os.Hostname(); err == nil {
		short, _, _ := strings.Cut(host, ".")
		names = append(names, host, short)
	}
	for _, name := range []string{os.Getenv("USER"), os.Getenv("SUDO_USER"), os.Getenv("LOGNAME")} {
		if name != "root" { // which tells nothing
			names = append(names, name)
		}
	}
	if u, err := user.Current(); err == nil && u.Username != "root" {
		names = append(names, u.Username)
	}
	return names
}
