package main

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"servicetraceroute"
)

// paramFlags say how one flow is probed.
type paramFlags struct {
	algorithm, udpProbe string
	params              servicetraceroute.Params
	maxSilent           int
	borders, borderFile []string
}

// probeFlags are these, and what holds for all flows together.
type probeFlags struct {
	paramFlags
	excludes, excludeFile []string
	rate, hopRate         int
	loopback              bool
	backend               string
	connects              bool // the flow is one of our own making
}

var algorithms = []string{"packet-by-packet", "hop-by-hop", "concurrent", "adaptive"}

// backends are the words of --backend; the last one is for flows of our own making.
var backends = []string{"auto", "ebpf", "afpacket", "sock"}

var udpProbes = []string{"off", "auto", "always"}

// declare defines the flags.
func (f *paramFlags) declare(fl *pflag.FlagSet) {
	fl.StringVar(&f.algorithm, "algorithm", "adaptive", "order of the probes: "+strings.Join(algorithms, ", "))
	fl.IntVar(&f.params.FirstTTL, "first-ttl", 1, "TTL to start at")
	fl.IntVar(&f.params.MaxTTL, "max-ttl", 32, "highest TTL")
	fl.IntVar(&f.params.Probes, "probes", 3, "probes per hop, at most")
	fl.DurationVar(&f.params.Timeout, "timeout", 2*time.Second, "wait so long for a reply")
	fl.DurationVar(&f.params.ProbeInterval, "probe-interval", 20*time.Millisecond, "between probes of one TTL (not adaptive)")
	fl.DurationVar(&f.params.TTLInterval, "ttl-interval", time.Millisecond, "between TTLs (not adaptive)")
	fl.IntVar(&f.maxSilent, "max-silent", 5, "stop after so many silent hops in a row; 0: never")
	fl.StringArrayVar(&f.borders, "border", nil, "stop at an answer from this address or `PREFIX` (repeat)")
	fl.StringArrayVar(&f.borderFile, "border-file", nil, "`FILE` of borders, one a line")
	fl.DurationVar(&f.params.FlowTimeout, "flow-timeout", 0, "end the trace of a flow silent for so long; 0: no, of UDP after 60s")
	fl.BoolVar(&f.params.AfterClose, "after-close", false, "go on in a TCP flow that was closed, up to a minute, short of its destination")
	fl.StringVar(&f.udpProbe, "udp-probe", "auto", "probe UDP flows: off, auto (QUIC and streams), always")
}

// declare defines the flags and their completion.
func (f *probeFlags) declare(cmd *cobra.Command) {
	fl := cmd.Flags()
	f.paramFlags.declare(fl)
	fl.IntVar(&f.rate, "rate", 1000, "probes per second of this process")
	fl.IntVar(&f.hopRate, "hop-rate", 200, "probes per second and router, at most")
	fl.StringArrayVar(&f.excludes, "exclude", nil, "never probe this address or `PREFIX` (repeat)")
	fl.StringArrayVar(&f.excludeFile, "exclude-file", nil, "`FILE` of addresses and prefixes never probed, one a line")
	fl.BoolVar(&f.loopback, "loopback", false, "also probe flows that end on this host")
	about := "how packets are seen: auto, ebpf, afpacket (packet sockets)"
	if f.connects {
		about += ", sock (not at all: by the connection's own socket, without privileges)"
	}
	fl.StringVar(&f.backend, "backend", "auto", about)
	completeWith(cmd, "backend", f.backends())
	completeWith(cmd, "algorithm", algorithms)
	completeWith(cmd, "udp-probe", udpProbes)
}

// backends are those that this command can have.
func (f *probeFlags) backends() []string {
	if f.connects {
		return backends
	}
	return backends[:3]
}

// completeWith gives a flag the words that a shell completes it with.
func completeWith(cmd *cobra.Command, flag string, words []string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic("main: completion of --" + flag + ": " + err.Error())
	}
}

// apply checks the flags and puts them into cfg.
func (f *probeFlags) apply(cfg *servicetraceroute.Config) (err error) {
	switch {
	case !slices.Contains(backends, f.backend):
		return usage(fmt.Errorf("--backend: unknown %q", f.backend), "one of "+strings.Join(f.backends(), ", "))
	case !slices.Contains(f.backends(), f.backend):
		return usage(fmt.Errorf("--backend %s: it only connects by itself, and sees no flows of applications", f.backend),
			"service-traceroute dial HOST:PORT --backend sock; else --backend afpacket")
	}
	if err := cfg.Backend.UnmarshalText([]byte(f.backend)); err != nil {
		return usage(fmt.Errorf("--backend: %w", err), "")
	}
	cfg.Rate, cfg.HopRate, cfg.Loopback = f.rate, f.hopRate, f.loopback
	if cfg.Defaults, err = f.read(); err != nil {
		return err
	}
	if err := inBounds([]bounds{{"rate", f.rate, 1, 1e6}, {"hop-rate", f.hopRate, 1, 1e6}}); err != nil {
		return err
	}
	return prefixes("--exclude", f.excludes, f.excludeFile, &cfg.Exclude)
}

// read checks the flags and returns them in the library's terms.
func (f *paramFlags) read() (p servicetraceroute.Params, err error) {
	p = f.params
	if err := p.Algorithm.UnmarshalText([]byte(f.algorithm)); err != nil {
		return p, usage(fmt.Errorf("--algorithm: unknown %q", f.algorithm), "one of "+strings.Join(algorithms, ", "))
	}
	if err := p.UDPProbe.UnmarshalText([]byte(f.udpProbe)); err != nil {
		return p, usage(fmt.Errorf("--udp-probe: unknown %q", f.udpProbe), "one of "+strings.Join(udpProbes, ", "))
	}
	for name, value := range map[string]time.Duration{
		"flow-timeout": f.params.FlowTimeout, "probe-interval": f.params.ProbeInterval, "ttl-interval": f.params.TTLInterval,
	} {
		if err := notNegative(name, value); err != nil {
			return p, err
		}
	}
	if f.params.Timeout <= 0 || f.params.Timeout > time.Minute {
		return p, usage(fmt.Errorf("--timeout: %v is not above 0 and at most a minute", f.params.Timeout), "for example --timeout 2s")
	}
	if err := f.numbers(&p); err != nil {
		return p, err
	}
	return p, prefixes("--border", f.borders, f.borderFile, &p.Borders)
}

func notNegative(flag string, d time.Duration) error {
	if d < 0 {
		return usage(fmt.Errorf("--%s: %v is negative", flag, d), "")
	}
	return nil
}

// numbers checks what the library takes for "the default" when it is 0.
func (f *paramFlags) numbers(p *servicetraceroute.Params) error {
	err := inBounds([]bounds{
		{"first-ttl", f.params.FirstTTL, 1, 255}, {"max-ttl", f.params.MaxTTL, 1, 255}, {"probes", f.params.Probes, 1, 20},
		{"max-silent", f.maxSilent, 0, 255},
	})
	if err != nil {
		return err
	}
	if f.params.FirstTTL > f.params.MaxTTL {
		return usage(fmt.Errorf("--first-ttl %d is beyond --max-ttl %d", f.params.FirstTTL, f.params.MaxTTL), "")
	}
	p.MaxSilent = f.maxSilent
	if f.maxSilent == 0 {
		p.MaxSilent = -1 // the library's word for no limit
	}
	// As near to none as the library's "0 is the default" allows.
	p.ProbeInterval, p.TTLInterval = max(p.ProbeInterval, 1), max(p.TTLInterval, 1)
	return nil
}

// bounds are those of a flag's number.
type bounds struct {
	flag             string
	value, low, high int
}

func inBounds(list []bounds) error {
	for _, n := range list {
		if n.value < n.low || n.value > n.high {
			return usage(fmt.Errorf("--%s: %d is not within %d to %d", n.flag, n.value, n.low, n.high), "")
		}
	}
	return nil
}

// prefixes reads addresses and prefixes from flags and files.
func prefixes(flag string, values, files []string, to *[]netip.Prefix) error {
	for _, name := range files {
		lines, err := readLines(name)
		if err != nil {
			return failed(fmt.Errorf("%s-file: %w", flag, err), "")
		}
		values = append(values, lines...)
	}
	for _, text := range values {
		p, err := netip.ParsePrefix(text)
		if a, addrErr := netip.ParseAddr(text); addrErr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return usage(fmt.Errorf("%s: %q is neither an address nor a prefix", flag, text), "for example "+flag+" 192.0.2.0/24")
		}
		*to = append(*to, p.Masked())
	}
	return nil
}

// readLines returns a file's lines without comments (#) and empty ones.
func readLines(name string) ([]string, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var lines []string
	in := bufio.NewScanner(file)
	for in.Scan() {
		text, _, _ := strings.Cut(in.Text(), "#")
		if text = strings.TrimSpace(text); text != "" {
			lines = append(lines, text)
		}
	}
	return lines, in.Err()
}
