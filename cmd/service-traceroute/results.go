package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/internal/output"
	"servicetraceroute/internal/privacy"
)

// resultFlags say what becomes of the records.
type resultFlags struct {
	format, file, label string
	verbose, privacy    bool
	pcap                pcapFlags

	reported output.Options // how records are written, known after open but for the parameters of the run
	out      io.Writer
	mask     *privacy.Mask // nil: nothing is masked
}

// declare defines the flags and their completion.
func (f *resultFlags) declare(cmd *cobra.Command) {
	f.declareRecords(cmd)
	f.pcap.declare(cmd)
}

// declareRecords is declare without the file of packets.
func (f *resultFlags) declareRecords(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.label, "label", "", "`TEXT` in every record")
	fl.StringVar(&f.format, "output", "text", "format: "+strings.Join(output.Formats, ", "))
	fl.StringVarP(&f.file, "out", "o", "", "write to `FILE` (mode 0600) instead of standard output")
	fl.BoolVar(&f.privacy, "privacy", false, "mask addresses, names and processes in all records; not with --pcap")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "also show flows and counters, and log what happens")
	completeWith(cmd, "output", output.Formats)
}

// apply checks the flags and puts them into cfg. What is logged goes to stderr.
func (f *resultFlags) apply(cfg *servicetraceroute.Config, stderr io.Writer) error {
	if !slices.Contains(output.Formats, f.format) {
		return usage(fmt.Errorf("--output: unknown %q", f.format), "one of "+strings.Join(output.Formats, ", "))
	}
	if f.privacy && f.pcap.file != "" {
		return usage(errors.New("--privacy and --pcap exclude each other: packets are not masked"),
			"leave one of them away, or trace twice")
	}
	cfg.Label = f.label
	f.reported.Params = shown(cfg.Defaults)
	if f.privacy {
		f.mask = privacy.New(privacy.NewKey())
		stderr = f.mask.Log(stderr)
	}
	cfg.Logger = slog.New(warnings{stderr})
	if f.verbose {
		cfg.Logger = slog.New(slog.NewTextHandler(stderr, nil))
	}
	return nil
}

// shown are the parameters of a run as the formats of other tools show them.
func shown(p servicetraceroute.Params) output.Params {
	return output.Params{
		FirstTTL: p.FirstTTL, MaxTTL: p.MaxTTL, Probes: p.Probes, Timeout: p.Timeout, ProbeInterval: p.ProbeInterval,
		TTLInterval: p.TTLInterval, MaxSilent: max(p.MaxSilent, 0), FlowTimeout: p.FlowTimeout,
	}
}

// open returns where records are written to, and what ends that. ctx ends the waiting
// for a named pipe's reader.
func (f *resultFlags) open(ctx context.Context, stdout, stderr io.Writer, verbose bool) (w output.Writer, done func() error, err error) {
	done = func() error { return nil }
	out := stdout
	if f.file != "" {
		file, err := openPrivate(ctx, f.file, stderr)
		if err != nil {
			return nil, nil, err
		}
		out, done = file, func() error { return failed(file.Close(), "") }
	}
	f.out, f.reported.Verbose, f.reported.Style, f.reported.Version = out, verbose, styled(out), version()
	w, err = f.writer()
	return w, done, err
}

// writer writes records as the flags say.
func (f *resultFlags) writer() (w output.Writer, err error) {
	reported := f.reported
	if f.mask != nil { // services come with the names that it gives them
		reported.ServiceParams = maps.Clone(reported.ServiceParams)
		for name, p := range f.reported.ServiceParams {
			reported.ServiceParams[f.mask.Value(name)] = p
		}
	}
	w, err = output.New(f.format, f.out, reported)
	if f.mask != nil && err == nil {
		w = f.mask.Filter(w)
	}
	return w, usage(err, "")
}

// masked is a text for people as --privacy wants it.
func (f *resultFlags) masked(text string) string {
	if f.mask == nil {
		return text
	}
	return f.mask.Text(text)
}
