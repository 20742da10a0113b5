//go:build linux

package peer

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"servicetraceroute/internal/lab/node"
	"servicetraceroute/internal/scenario"
)

// Counters are a namespace's counters by the names of /proc/net/snmp and netstat
// ("Tcp.RetransSegs", "TcpExt.TCPDSACKRecv") and snmp6 ("Ip6.InReceives").
type Counters map[string]int64

// Harm are the counters that a probe could move by disturbing an application.
// What they count is described in the kernel's networking/snmp_counter.
var Harm = []string{
	"Tcp.RetransSegs",
	"TcpExt.TCPFastRetrans",
	"TcpExt.TCPSlowStartRetrans",
	"TcpExt.TCPTimeouts",
	"TcpExt.TCPSpuriousRTOs",
	"TcpExt.TCPSpuriousRtxHostQueues",
	"TcpExt.TCPDSACKRecv",
	"TcpExt.TCPDSACKOfoRecv",
	"TcpExt.TCPDSACKUndo",
	"TcpExt.TCPFullUndo",
	"TcpExt.TCPPartialUndo",
	"TcpExt.TCPLossUndo",
	"TcpExt.TCPRenoRecovery",
	"TcpExt.TCPRenoReorder",
	"TcpExt.TCPSACKReneging",
	"TcpExt.TCPRcvQDrop",
	"TcpExt.BeyondWindow",
	"TcpExt.PAWSEstab",
	"TcpExt.TcpDuplicateDataRehash",
	"TcpExt.TcpTimeoutRehash",
	"TcpExt.TCPChallengeACK",
	"TcpExt.TCPKeepAlive",
	"TcpExt.TCPAbortOnTimeout",
	"Tcp.OutRsts",
	"Tcp.EstabResets",
	"Icmp.InErrors",
	"Icmp6.InErrors",
}

// Expected are counters that harmless probes move: they show that a probe was
// seen and ignored.
var Expected = []string{
	"TcpExt.OutOfWindowIcmps", // errors about segments below SND.UNA
	"TcpExt.TCPACKSkippedSeq", // old segments not answered, for the 500 ms limit
	"TcpExt.PAWSOldAck",       // pure ACKs with an old timestamp, silently ignored
}

// Jitter are counters that a busy test machine moves by itself: a tail-loss
// probe goes out when an answer is a few milliseconds late.
var Jitter = []string{"TcpExt.TCPLossProbes", "TcpExt.TCPLossProbeRecovery"}

// ReadCounters returns the counters of a node's network namespace.
func ReadCounters(ctx context.Context, c node.Caller) (Counters, error) {
	return node.Call[Counters](ctx, c, "peer/counters", none{})
}

// Delta returns what changed since before, without what did not.
func (c Counters) Delta(before Counters) Counters {
	d := Counters{}
	for name, v := range c {
		if v != before[name] {
			d[name] = v - before[name]
		}
	}
	return d
}

// Only returns the named counters that are not zero.
func (c Counters) Only(names []string) Counters {
	d := Counters{}
	for _, name := range names {
		if v := c[name]; v != 0 {
			d[name] = v
		}
	}
	return d
}

// String lists the counters in the order of their names.
func (c Counters) String() string {
	var b strings.Builder
	for i, name := range slices.Sorted(maps.Keys(c)) {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%d", name, c[name])
	}
	return b.String()
}

// procNet is the calling thread's own: /proc/net belongs to the process's first
// thread, which may be in another namespace.
const procNet = "/proc/thread-self/net"

func counters(context.Context, none) (Counters, error) {
	c := Counters{}
	for name, parse := range map[string]func(Counters, io.Reader) error{
		"snmp": Counters.parsePairs, "netstat": Counters.parsePairs, "snmp6": Counters.parseSNMP6,
	} {
		if err := c.read(filepath.Join(procNet, name), parse); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c Counters) read(path string, parse func(Counters, io.Reader) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := parse(c, f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// parsePairs reads pairs of lines, names above values:
//
//	Tcp: RtoAlgorithm RtoMin
//	Tcp: 1 200
func (c Counters) parsePairs(r io.Reader) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		names := strings.Fields(s.Text())
		if len(names) == 0 {
			continue
		}
		if !s.Scan() {
			return io.ErrUnexpectedEOF
		}
		values := strings.Fields(s.Text())
		if len(values) != len(names) || values[0] != names[0] {
			return fmt.Errorf("values %q do not fit names %q", values, names)
		}
		for i := 1; i < len(names); i++ {
			v, err := strconv.ParseInt(values[i], 10, 64)
			if err != nil {
				return err
			}
			c[strings.TrimSuffix(names[0], ":")+"."+names[i]] = v
		}
	}
	return s.Err()
}

// parseSNMP6 reads lines like "Ip6InReceives  12"; the group's name ends at its
// version digit.
func (c Counters) parseSNMP6(r io.Reader) error {
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) != 2 {
			continue
		}
		v, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return err
		}
		group, name, ok := strings.Cut(f[0], "6")
		if !ok {
			continue
		}
		c[group+"6."+name] = v
	}
	return s.Err()
}

// Sysctl is the name and value of a kernel parameter.
type Sysctl struct {
	Name  string // "net.ipv4.tcp_sack"
	Value string // empty: only read
}

// SetSysctl sets a parameter of a node's network namespace.
func SetSysctl(ctx context.Context, c node.Caller, name, value string) error {
	_, err := node.Call[Sysctl](ctx, c, "peer/sysctl", Sysctl{name, value})
	return err
}

// GetSysctl reads a parameter of a node's network namespace.
func GetSysctl(ctx context.Context, c node.Caller, name string) (string, error) {
	s, err := node.Call[Sysctl](ctx, c, "peer/sysctl", Sysctl{Name: name})
	return s.Value, err
}

// ApplyOptions sets a host's TCP options as the workload wants them; both ends
// of its flows need it.
func ApplyOptions(ctx context.Context, c node.Caller, w scenario.Workload) error {
	for _, o := range []struct {
		name string
		off  bool
	}{
		{"net.ipv4.tcp_sack", w.NoSACK},
		{"net.ipv4.tcp_timestamps", w.NoTimestamps},
		{"net.ipv4.tcp_window_scaling", w.NoWindowScale},
	} {
		value := "1"
		if o.off {
			value = "0"
		}
		if err := SetSysctl(ctx, c, o.name, value); err != nil {
			return err
		}
	}
	return nil
}

// sysctl touches only net: the rest of the tree is the whole machine's.
func sysctl(_ context.Context, s Sysctl) (Sysctl, error) {
	path := filepath.Join("/proc/sys", strings.ReplaceAll(s.Name, ".", "/"))
	if !strings.HasPrefix(path, "/proc/sys/net/") {
		return s, fmt.Errorf("sysctl %q is not one of a network namespace", s.Name)
	}
	if s.Value != "" {
		if err := os.WriteFile(path, []byte(s.Value), 0); err != nil {
			return s, err
		}
	}
	raw, err := os.ReadFile(path)
	s.Value = strings.TrimSpace(string(raw))
	return s, err
}
