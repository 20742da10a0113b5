// Package output writes records: as text for people, as NDJSON for programs, and
// traces in the shapes of two other tools (docs/decisions/0035-outputs.md).
// Bytes that come from outside (names, processes) are escaped wherever a
// terminal could obey them.
package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"servicetraceroute/trace"
)

// Writer writes records. It is not safe for concurrent use.
type Writer interface {
	Write(ev trace.Event) error
}

// Options of a Writer.
type Options struct {
	// Verbose also shows flow records and statistics as text.
	Verbose bool
	// Style sets headers in bold and silence in dim type: for terminals.
	Style bool
	// Version is this program's, for reference.
	Version string
	// Params are those of the run, for reference and scamper; ServiceParams those of
	// services that have their own, by the name in records.
	Params        Params
	ServiceParams map[string]Params
}

// params are those with which a trace ran.
func (o *Options) params(tr *trace.Trace) Params {
	if tr.Service != nil {
		if p, ok := o.ServiceParams[tr.Service.Name]; ok {
			return p
		}
	}
	return o.Params
}

// Formats are the names that New knows.
var Formats = []string{"text", "json", "reference", "scamper"}

// New returns a writer of the named format.
func New(format string, w io.Writer, opts Options) (Writer, error) {
	switch format {
	case "text":
		return &Text{w: w, verbose: opts.Verbose, style: opts.Style}, nil
	case "json":
		return &ndjson{json.NewEncoder(harmless{w})}, nil
	case "reference":
		return &reference{encoder(w), opts}, nil
	case "scamper":
		return &scamper{encoder(w), opts}, nil
	}
	return nil, fmt.Errorf("output: unknown format %q (one of %s)", format, strings.Join(Formats, ", "))
}

// ndjson writes one JSON object a line.
type ndjson struct{ enc *json.Encoder }

// encoder writes one JSON object a line, HTML's characters as they are.
func encoder(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(harmless{w})
	enc.SetEscapeHTML(false)
	return enc
}

// Write implements Writer.
func (n *ndjson) Write(ev trace.Event) error { return n.enc.Encode(ev) }

// harmless is where a json.Encoder writes to. JSON itself escapes the control characters
// below U+0020 alone (RFC 8259, section 7); a record that is shown on a terminal must not
// command it by one of the others either. What is read from it stays the same.
type harmless struct{ w io.Writer }

// Write takes whole characters, as an Encoder writes whole values. All that are not ASCII
// are within strings.
func (h harmless) Write(b []byte) (int, error) {
	out := b
	if bytes.IndexFunc(b, odd) >= 0 {
		out = make([]byte, 0, len(b)+64)
		for text := b; len(text) > 0; {
			r, size := utf8.DecodeRune(text)
			if odd(r) {
				for _, unit := range utf16.AppendRune(nil, r) {
					out = fmt.Appendf(out, `\u%04x`, unit)
				}
			} else {
				out = append(out, text[:size]...)
			}
			text = text[size:]
		}
	}
	if _, err := h.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

// odd are the characters that an Encoder leaves as they are and that are not safe.
func odd(r rune) bool { return r >= 0x7f && !safe(r) }

// safe are the characters that a terminal shows, one after another.
func safe(r rune) bool {
	return unicode.IsPrint(r) && r != utf8.RuneError && !unicode.Is(unicode.Bidi_Control, r)
}

// Escape makes text from outside safe to show: control characters, invalid UTF-8
// and characters that change the direction of writing are written as escapes.
func Escape(text string) string {
	clean := true
	for _, r := range text {
		clean = clean && safe(r)
	}
	if clean {
		return text
	}
	var b strings.Builder
	for i, r := range text {
		if safe(r) {
			b.WriteRune(r)
			continue
		}
		_, size := utf8.DecodeRuneInString(text[i:])
		if r == utf8.RuneError && size == 1 {
			fmt.Fprintf(&b, `\x%02x`, text[i])
			continue
		}
		quoted := strconv.QuoteRuneToASCII(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}
