package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"servicetraceroute"
	"servicetraceroute/internal/output"
)

// warnings are what of the log a person should know without -v, a line each.
type warnings struct{ w io.Writer }

// Enabled implements slog.Handler.
func (h warnings) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// Handle implements slog.Handler.
func (h warnings) Handle(_ context.Context, r slog.Record) error {
	var details []string
	r.Attrs(func(a slog.Attr) bool {
		details = append(details, output.Escape(a.Value.String()))
		return true
	})
	line := "warning: " + r.Message
	if len(details) > 0 {
		line += " (" + strings.Join(details, ": ") + ")"
	}
	_, err := fmt.Fprintln(h.w, line)
	if strings.HasPrefix(r.Message, servicetraceroute.WarnErrorsHeard) && err == nil {
		_, err = fmt.Fprintln(h.w, "hint: run as root, or setcap cap_net_raw,cap_net_admin+ep FILE; --proto tcp asks for no UDP flows")
	}
	return err
}

// WithAttrs implements slog.Handler.
func (h warnings) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup implements slog.Handler.
func (h warnings) WithGroup(string) slog.Handler { return h }
