package join

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"unicode"

	"servicetraceroute/trace"
)

// MaxTraces is how many traces Read takes from one file.
const MaxTraces = 100_000

// maxLine bounds one record: a trace of 255 hops with all its labels is far below.
const maxLine = 4 << 20

// ErrTooMany is matched by Read's error about a file of more traces than MaxTraces.
var ErrTooMany = errors.New("too many traces")

// ErrCut is matched by Read's error about a file whose last line ends too early, as it does
// while it is being written. The traces before it are returned, too.
var ErrCut = errors.New("the last line is cut off")

// Read reads the traces among the records of r, one a line; records of other types, and of
// flows that were refused, are left out. Errors name the line.
func Read(r io.Reader) ([]*trace.Trace, error) { return read(r, MaxTraces) }

func read(r io.Reader, limit int) ([]*trace.Trace, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 64<<10), maxLine)
	var all []*trace.Trace
	n := 0
	for lines.Scan() {
		n++
		if len(lines.Bytes()) == 0 {
			continue
		}
		tr, err := record(lines.Bytes())
		if err != nil && n > 1 && cut(lines.Bytes()) && !lines.Scan() && lines.Err() == nil {
			return all, fmt.Errorf("line %d: %w", n, ErrCut)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if tr == nil {
			continue
		}
		if len(all) == limit {
			return nil, fmt.Errorf("line %d: more than %d: %w", n, limit, ErrTooMany)
		}
		all = append(all, tr)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", n+1, err)
	}
	return all, nil
}

// cut reports whether a line is the beginning of a record.
func cut(line []byte) bool {
	var all json.RawMessage
	return errors.Is(json.NewDecoder(bytes.NewReader(line)).Decode(&all), io.ErrUnexpectedEOF)
}

// record is the trace of one line; nil: it is none that can be joined.
func record(line []byte) (*trace.Trace, error) {
	var head struct {
		Schema string `json:"schema"`
		Type   string `json:"type"`
	}
	if err := json.Unmarshal(line, &head); err != nil {
		return nil, fmt.Errorf("not a record: %w", err)
	}
	if head.Schema != trace.Schema {
		return nil, fmt.Errorf("not a record of %s", trace.Schema)
	}
	if head.Type != "trace" {
		return nil, nil
	}
	tr := &trace.Trace{}
	if err := json.Unmarshal(line, tr); err != nil {
		return nil, err
	}
	if err := check(tr); err != nil {
		return nil, err
	}
	if tr.Stop == trace.StopRefused {
		return nil, nil
	}
	return tr, nil
}

// check holds a trace against what traces are: the rest relies on it.
func check(tr *trace.Trace) error {
	if !tr.Flow.Wire().IsValid() {
		return errors.New("a trace of no flow")
	}
	if d := tr.Destination; d != nil && (d.TTL < 0 || d.TTL > 255) {
		return fmt.Errorf("a destination at TTL %d", d.TTL)
	}
	addrs := []netip.Addr{tr.Flow.Src.Addr(), tr.Flow.Dst.Addr()}
	for _, h := range tr.Hops {
		if h.TTL < 1 || h.TTL > 255 {
			return fmt.Errorf("a hop at TTL %d", h.TTL)
		}
		for _, r := range h.Replies {
			addrs = append(addrs, r.Addr)
		}
	}
	for _, a := range addrs {
		if strings.ContainsFunc(a.Zone(), func(c rune) bool { return !unicode.IsGraphic(c) || c == ' ' }) {
			return fmt.Errorf("an address of the zone %q", a.Zone())
		}
	}
	return nil
}
