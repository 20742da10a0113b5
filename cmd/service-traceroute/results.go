package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"servicetraceroute"
	"servicetraceroute/internal/output"
)

// resultFlags say what becomes of the records.
type resultFlags struct {
	format, file, label string
	verbose             bool
	pcap                pcapFlags
}

// declare defines the flags and their completion.
func (f *resultFlags) declare(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.label, "label", "", "`TEXT` in every record")
	fl.StringVar(&f.format, "output", "text", "format: "+strings.Join(output.Formats, ", "))
	fl.StringVarP(&f.file, "out", "o", "", "write to `FILE` (mode 0600) instead of standard output")
	f.pcap.declare(cmd)
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "also show flows and counters, and log what happens")
	completeWith(cmd, "output", output.Formats)
}

// apply checks the flags and puts them into cfg. What is logged goes to stderr.
func (f *resultFlags) apply(cfg *servicetraceroute.Config, stderr io.Writer) error {
	if !slices.Contains(output.Formats, f.format) {
		return usage(fmt.Errorf("--output: unknown %q", f.format), "one of "+strings.Join(output.Formats, ", "))
	}
	cfg.Label = f.label
	cfg.Logger = slog.New(warnings{stderr})
	if f.verbose {
		cfg.Logger = slog.New(slog.NewTextHandler(stderr, nil))
	}
	return nil
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
	w, err = output.New(f.format, out, output.Options{Verbose: verbose, Style: styled(out)})
	return w, done, usage(err, "")
}
