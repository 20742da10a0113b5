package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/internal/lab"
	"servicetraceroute/internal/output"
	"servicetraceroute/internal/selftest"
)

const selftestHelp = `Show on this machine that tracing does no harm to flows.

Usage:  service-traceroute selftest [flags]

It builds a client, four routers and a server from network namespaces, on this
machine's kernel, and runs TCP and UDP flows over IPv4 and IPv6, in turns with
and without tracing. It compares bytes, speed, the kernel's counters
(retransmissions, resets, …), paths and what is left behind, in a minute or two.

The record (JSON, one line) goes to standard output, what it means to standard
error. It names this kernel and its TCP settings, nobody's addresses or names.

  --quick          two TCP flows and one UDP flow, shorter: ten seconds
  --pairs 8        TCP flows with and without tracing
  --backend auto   or ebpf, afpacket
  --congestion C   TCP's congestion control, instead of the machine's default
  -o, --out FILE   the record's file, instead of standard output

Examples:
  sudo service-traceroute selftest -o selftest.json
  service-traceroute selftest --quick | jq .verdict

Exit: 0 harmless, 1 harm or failed, 2 usage, 3 too little could be compared.
`

// selftestFlags are the flags of selftest as the user wrote them.
type selftestFlags struct {
	quick      bool
	pairs      int
	backend    string
	congestion string
	file       string
}

func newSelftestCommand() *cobra.Command {
	var f selftestFlags
	cmd := &cobra.Command{
		Use:        "selftest",
		Short:      "show on this machine that tracing does no harm to flows",
		SuggestFor: []string{"check", "verify", "test", "doctor"},
		Args:       noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.Context(), cmd.Flags().Changed("pairs"), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.quick, "quick", false, "two TCP flows, unless --pairs says otherwise, and one UDP flow, shorter ones")
	fl.IntVar(&f.pairs, "pairs", 8, "TCP flows that run with and without tracing, 1 to 200")
	fl.StringVar(&f.backend, "backend", "auto", "how packets are seen: "+strings.Join(selftestBackends, ", "))
	fl.StringVar(&f.congestion, "congestion", "", "TCP's congestion control at both hosts, by its `NAME`; empty is the machine's default")
	fl.StringVarP(&f.file, "out", "o", "", "write the record to `FILE` (mode 0600) instead of standard output")
	completeWith(cmd, "backend", selftestBackends)
	helpText(cmd, selftestHelp)
	return cmd
}

var selftestBackends = []string{"auto", "ebpf", "afpacket"}

// config checks the flags.
func (f *selftestFlags) config(pairsGiven bool) (cfg selftest.Config, err error) {
	switch {
	case f.pairs < 1 || f.pairs > 200:
		return cfg, usage(fmt.Errorf("--pairs %d: not between 1 and 200", f.pairs), "8 take a minute")
	case !slices.Contains(selftestBackends, f.backend):
		return cfg, usage(fmt.Errorf("--backend: unknown %q", f.backend), "one of "+strings.Join(selftestBackends, ", "))
	}
	cfg = selftest.Config{Quick: f.quick, Congestion: f.congestion, Version: version()}
	if pairsGiven || !f.quick {
		cfg.Pairs = f.pairs
	}
	return cfg, cfg.Backend.UnmarshalText([]byte(f.backend))
}

func (f *selftestFlags) run(ctx context.Context, pairsGiven bool, stdout, stderr io.Writer) error {
	cfg, err := f.config(pairsGiven)
	if err != nil {
		return err
	}
	if err := lab.Enter(); err != nil {
		return selftestFailed(err)
	}
	if f.file != "" { // told now, not when the minute is over
		if _, err := os.Stat(filepath.Dir(f.file)); err != nil {
			return failed(fmt.Errorf("write the record: %w", err), "")
		}
	}
	rec, err := try(ctx, cfg, stderr)
	switch {
	case ctx.Err() != nil:
		return failed(errors.New("interrupted; the network is taken down"), "")
	case err != nil:
		return selftestFailed(err)
	}
	out, done := stdout, func() error { return nil }
	if f.file != "" { // a record that is there stays until there is another
		file, err := openPrivate(ctx, f.file, stderr)
		if err != nil {
			return err
		}
		defer file.Close() // a second time, unless something went wrong
		out, done = file, file.Close
	}
	if err := errors.Join(rec.WriteJSON(out), done()); err != nil {
		return failed(fmt.Errorf("write the record: %w", err), "")
	}
	if err := rec.Write(stderr); err != nil {
		return failed(err, "")
	}
	return f.conclude(rec.Verdict, stderr)
}

// try runs the suite, with a line on a terminal that says how far it is.
func try(ctx context.Context, cfg selftest.Config, stderr io.Writer) (*selftest.Record, error) {
	var mu sync.Mutex
	now := ""
	cfg.Progress = func(done, total int, what string) {
		mu.Lock()
		defer mu.Unlock()
		now = fmt.Sprintf("%d of %d flows done; %s", done, total, what)
	}
	fmt.Fprintf(stderr, "testing, for about %v, in network namespaces that are removed afterwards; Ctrl-C stops\n", cfg.Estimate().Round(5*time.Second))
	p := showProgress(stderr, "", func() string {
		mu.Lock()
		defer mu.Unlock()
		return now
	})
	defer p.stop()
	return selftest.Run(ctx, cfg)
}

// conclude says what may be done with the record, and how the command ends.
func (f *selftestFlags) conclude(v selftest.Verdict, stderr io.Writer) error {
	record := "the line on standard output"
	if f.file != "" {
		record = output.Escape(f.file)
	}
	fmt.Fprintf(stderr, "\nTo send the record in: %s is all of it; docs/stacks.md says where it goes.\n"+
		"It holds no addresses, no names of hosts or users, no paths.\n", record)
	switch v {
	case selftest.Harmless:
		return nil
	case selftest.NotTried:
		return &failure{errors.New("too little could be compared, see above"), "is the machine very busy? try again", exitNoMatch}
	}
	return failed(errors.New("tracing did harm, see above"), "please send the record in as SECURITY.md says, and do not trace here")
}

// selftestFailed says what helps where the suite could not run.
func selftestFailed(err error) error {
	switch {
	case errors.Is(err, selftest.ErrCongestion):
		return failed(err, "sysctl net.ipv4.tcp_available_congestion_control lists those that there are; some need root, some modprobe tcp_NAME")
	case errors.Is(err, servicetraceroute.ErrEBPF):
		return failed(err, "--backend afpacket needs no eBPF")
	case errors.Is(err, os.ErrPermission):
		return failed(err, "run it as root, or allow user namespaces (sysctl user.max_user_namespaces)")
	case errors.Is(err, errors.ErrUnsupported):
		return failed(err, "the self-test needs Linux")
	}
	return failed(err, "")
}
