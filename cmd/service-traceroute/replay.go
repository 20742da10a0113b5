package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"servicetraceroute"
	"servicetraceroute/internal/privilege"
	"servicetraceroute/trace"
)

const replayHelp = `Read a capture file: which flows, which services, and the traces in it.

Usage:  service-traceroute replay FILE.pcap[ng]|- [flags]

Needs no privileges and sends nothing. Probes that were captured, as by trace
--pcap or by a tcpdump beside it, are matched with the replies to them. All
flows are shown unless these flags select:

What:   --service NAME  --catalogue FILE  --no-dns
        --host ADDR|PREFIX|NAME (and all below)|*.NAME|/REGEX/  --match EXPR
Narrow: --port N|A-B  --proto tcp|udp  --interface IF --direction out|in  -4 -6
Ends:   --local ADDR|PREFIX (whose flows; else as the file tells, or clients')
Traced: --algorithm WORD --timeout 2s --probes 3 --border PREFIX (as it was)
Output: --output text|json|reference|scamper  -o FILE  --privacy  --label TEXT
Flags from a file: --config FILE.yaml   All, explained: replay --help-all

Examples:
  service-traceroute replay packets.pcapng --output json
  tcpdump -w - -s 200 | service-traceroute replay - --service netflix

Exit: 0 done, 1 failed (a broken file: after what is before), 3 none matched.
`

// replayFlags are the flags of replay as the user wrote them.
type replayFlags struct {
	traceFlags
	local []string
}

func newReplayCommand() *cobra.Command {
	var f replayFlags
	cmd := &cobra.Command{
		Use:        "replay FILE",
		Short:      "read a capture file: its flows, services, probes and replies",
		SuggestFor: []string{"read", "pcap", "analyse", "analyze"},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return usage(fmt.Errorf("replay needs one FILE, not %d arguments", len(args)), "for example: service-traceroute replay packets.pcapng")
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []string{"pcapng", "pcap", "cap"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd.Context(), args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fl := cmd.Flags()
	f.declareWhich(cmd)
	fl.StringArrayVar(&f.local, "local", nil, "address or `PREFIX` of the near end of flows, which probes leave from (repeat)")
	f.udpProbe, f.backend = "auto", backends[0]
	f.params.FirstTTL, f.params.MaxTTL, f.rate, f.hopRate = 1, 32, 1, 1
	fl.StringVar(&f.algorithm, "algorithm", "adaptive", "order of the probes when they were sent: "+strings.Join(algorithms, ", "))
	completeWith(cmd, "algorithm", algorithms)
	fl.DurationVar(&f.params.Timeout, "timeout", 2*time.Second, "how long replies were waited for")
	fl.IntVar(&f.params.Probes, "probes", 3, "probes per hop, at most")
	fl.IntVar(&f.maxSilent, "max-silent", 5, "silent hops in a row after which a trace stopped; 0: never")
	fl.StringArrayVar(&f.borders, "border", nil, "address or `PREFIX` at whose answer a trace stopped (repeat)")
	fl.StringArrayVar(&f.borderFile, "border-file", nil, "`FILE` of borders, one a line")
	f.declareRecords(cmd)
	f.ownerFlags.declare(cmd)
	for _, name := range ofOwners { // known so that also a configuration file is told why not
		if err := fl.MarkHidden(name); err != nil {
			panic("main: --" + name + ": " + err.Error())
		}
	}
	cmd.SetFlagErrorFunc(replayFlagError)
	helpText(cmd, replayHelp)
	return configurable(cmd, &f.configuration)
}

// ofOwners are the flags of trace about what no file tells.
var ofOwners = []string{"process", "pid", "cgroup"}

// replayFlagError says why what trace can do cannot be done with a file.
func replayFlagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return flagError(cmd, err)
	}
	name := unknown.GetSpecifiedName()
	trace, _, findErr := cmd.Root().Find([]string{"trace"})
	if findErr == nil && trace.Flags().Lookup(name) != nil {
		return usage(fmt.Errorf("--%s: replay only reads a file, nothing is sent or captured", name), "see "+cmd.CommandPath()+" -h")
	}
	return flagError(cmd, err)
}

// config turns the flags into the library's terms.
func (f *replayFlags) config(stderr io.Writer) (r servicetraceroute.Replay, sel servicetraceroute.Selection, err error) {
	for i, given := range []int{len(f.processes), len(f.pids), len(f.cgroups)} {
		if given > 0 {
			return r, sel, usage(fmt.Errorf("--%s: a capture file does not tell whose a flow is", ofOwners[i]), "select by --host, --service or --port")
		}
	}
	var cfg servicetraceroute.Config
	if err := f.probeFlags.apply(&cfg); err != nil {
		return r, sel, err
	}
	if err := f.resultFlags.apply(&cfg, stderr); err != nil {
		return r, sel, err
	}
	sel = servicetraceroute.Selection{
		Hosts: f.hosts, Match: f.match, Ports: f.ports, Interfaces: f.interfaces, IPv4Only: f.v4, IPv6Only: f.v6, Params: cfg.Defaults,
	}
	if err := f.words(&sel); err != nil {
		return r, sel, err
	}
	r = servicetraceroute.Replay{NoDNS: f.noDNS, Label: f.label, All: len(f.hosts)+len(f.services)+len(f.match) == 0}
	if err := prefixes("--local", f.local, nil, &r.Local); err != nil {
		return r, sel, err
	}
	if sel.Services, err = f.known(r.All); err != nil {
		return r, sel, err
	}
	if err := sel.Check(); err != nil {
		return r, sel, watchFailed(err)
	}
	switch {
	case sel.ByProcess():
		return r, sel, usage(errors.New("--match: a capture file does not tell whose a flow is"), "the fields process, exe, pid, uid and cgroup are about that")
	case slices.Contains(f.directions, "transit"):
		return r, sel, usage(errors.New("--direction transit: a capture file does not tell what its host only forwarded"), "--local names the near end of flows, which are then out or in")
	}
	return r, sel, nil
}

// known are the services that were asked for; the whole catalogue where that only gives
// flows their names.
func (f *replayFlags) known(all bool) ([]servicetraceroute.Service, error) {
	if all {
		c, err := f.load()
		if err != nil {
			return nil, err
		}
		for _, s := range c.All() {
			f.services = append(f.services, s.Name)
		}
	}
	return f.serviceFlags.selected()
}

// run reads the file to its end.
func (f *replayFlags) run(ctx context.Context, name string, stdout, stderr io.Writer) (err error) {
	replay, sel, err := f.config(stderr)
	if err != nil {
		return err
	}
	file, size, err := f.input(ctx, name)
	if err != nil {
		return err
	}
	defer file.Close()
	w, done, err := f.open(ctx, stdout, stderr, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if err := privilege.Drop(); err != nil {
		return failed(err, "")
	}
	in := &metered{in: file}
	replay.Packets = in
	if size == 0 {
		replay.Packets = interruptible(ctx, in)
	}
	var packets, flows atomic.Uint64
	replay.Progress = packets.Store
	progress := showProgress(stderr, "", func() string {
		return fmt.Sprintf("%s read, %d packets, %d flows matched", in.share(size), packets.Load(), flows.Load())
	})
	defer progress.stop()
	for ev, err := range replay.Watch(ctx, sel) {
		if err != nil {
			return unread(name, err)
		}
		if flow, ok := ev.(*trace.Flow); ok && flow.State != trace.FlowIgnored {
			flows.Add(1)
		}
		if err := progress.aside(func() error { return w.Write(ev) }); err != nil {
			return failed(fmt.Errorf("write: %w", err), "")
		}
	}
	if flows.Load() == 0 && ctx.Err() == nil {
		return f.nothing(replay.All)
	}
	return nil
}

// nothing is the error of a file in which no flow matched.
func (f *replayFlags) nothing(all bool) error {
	hint := "a flow needs packets of both its ends, or payload"
	switch {
	case !all:
		hint = "names are those in the file: without payload and DNS answers there are none; without --host, --service and --match all flows are shown"
	case len(f.ports)+len(f.protos)+len(f.interfaces)+len(f.directions) > 0 || f.v4 || f.v6:
		hint = "--port, --proto, --interface, --direction, -4 and -6 leave flows out"
	}
	return &failure{errors.New("no flow in the file matched"), hint, exitNoMatch}
}

// input opens what is read. size is 0 for what has no end that is known.
func (f *replayFlags) input(ctx context.Context, name string) (file *os.File, size int64, err error) {
	if name == "-" {
		if isTerminal(os.Stdin) {
			return nil, 0, usage(errors.New("standard input is a terminal"), "for example: tcpdump -w - | service-traceroute replay -")
		}
		return os.Stdin, 0, nil
	}
	opened := make(chan error, 1)
	var source *os.File
	go func() {
		var err error
		source, err = os.Open(name) // waits for who writes to a pipe
		opened <- err
	}()
	select {
	case <-ctx.Done():
		return nil, 0, interrupted(ctx, failed(fmt.Errorf("open %s: nobody writes to it", name), ""))
	case err = <-opened:
	}
	if err != nil {
		return nil, 0, failed(err, "")
	}
	file = source
	info, err := file.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a directory", name)
	}
	if err != nil {
		return nil, 0, errors.Join(failed(err, ""), file.Close())
	}
	if out, err := os.Stat(f.file); f.file != "" && err == nil && os.SameFile(out, info) {
		return nil, 0, errors.Join(usage(fmt.Errorf("-o names the file that is read, %s", f.file), ""), file.Close())
	}
	if info.Mode().IsRegular() {
		size = max(info.Size(), 1)
	}
	return file, size, nil
}

// unread is the error of a file that could not be read to its end.
func unread(name string, err error) error {
	if name == "-" {
		name = "standard input"
	}
	hint := "what came before that place is shown"
	switch {
	case errors.Is(err, servicetraceroute.ErrFormat):
		hint = "tcpdump -w, Wireshark and trace --pcap write such files; a compressed one has to be unpacked first"
	case !errors.Is(err, io.ErrUnexpectedEOF):
		hint += "; is the file damaged?"
	}
	return failed(fmt.Errorf("%s: %w", name, inFlags(err)), hint)
}

// metered counts what is read.
type metered struct {
	in   io.Reader
	read atomic.Int64
}

// Read implements io.Reader.
func (m *metered) Read(b []byte) (int, error) {
	n, err := m.in.Read(b)
	m.read.Add(int64(n))
	return n, err
}

// share says how much of so many bytes was read; 0: nobody knows how many there are.
func (m *metered) share(size int64) string {
	n := m.read.Load()
	if size == 0 {
		return fmt.Sprintf("%d MB", n/1e6)
	}
	return fmt.Sprintf("%d of %d MB (%d %%)", n/1e6, size/1e6, min(100*n/size, 100))
}

// interruptible lets the end of ctx wake whoever reads from a pipe. The goroutine that
// waits for the pipe ends with it, or with the process.
func interruptible(ctx context.Context, in io.Reader) io.Reader {
	r, w := io.Pipe()
	go func() {
		_, err := io.Copy(w, in)
		_ = w.CloseWithError(err) // nil is the end
	}()
	context.AfterFunc(ctx, func() { _ = w.CloseWithError(context.Cause(ctx)) })
	return r
}
