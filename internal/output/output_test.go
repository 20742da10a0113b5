package output

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"servicetraceroute/trace"
)

var update = flag.Bool("update", false, "write the golden files")

func render(t *testing.T, format string, opts Options) string {
	t.Helper()
	var b bytes.Buffer
	w, err := New(format, &b, opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range samples() {
		if err := w.Write(ev); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func TestGolden(t *testing.T) {
	for file, got := range map[string]string{
		"records.txt":    render(t, "text", Options{}),
		"verbose.txt":    render(t, "text", Options{Verbose: true}),
		"records.ndjson": render(t, "json", Options{}),

		"reference.ndjson": render(t, "reference", Options{Version: "v1", Params: parameters}),
		"scamper.ndjson":   render(t, "scamper", Options{Params: parameters}),
	} {
		name := "testdata/" + file
		if *update {
			if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: got\n%s\nwant\n%s", file, got, want)
		}
	}
}

// Every record is one line that the published schema allows and that reads back.
func TestSamplesMatchSchema(t *testing.T) {
	schema := compiledSchema(t)
	out := render(t, "json", Options{})
	if lines := strings.Count(out, "\n"); lines != len(samples()) {
		t.Errorf("%d records are %d lines", len(samples()), lines)
	}
	for line := range strings.Lines(out) {
		if err := valid(t, schema, []byte(line)); err != nil {
			t.Errorf("%v\n%s", err, line)
		}
		if _, err := trace.Unmarshal([]byte(line)); err != nil {
			t.Errorf("%v\n%s", err, line)
		}
	}
}

// Names come from the network: none may reach the terminal as commands, or break
// a line.
func TestTextIsSafe(t *testing.T) {
	for _, text := range []string{hostile, "\u2066x\u2069", "\u200f", "\r", "\x7f", "\u0085", "\ufeff", "ok-ü.example"} {
		got := Escape(text)
		for _, r := range got {
			if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == utf8.RuneError || strings.ContainsRune("\u202e\u2066\u2069\u200f\ufeff", r) {
				t.Errorf("Escape(%q) = %q", text, got)
			}
		}
	}
	if got := Escape("ok-ü.example"); got != "ok-ü.example" {
		t.Errorf("a good name became %q", got)
	}
	out := render(t, "text", Options{Verbose: true})
	if strings.ContainsAny(out, "\x1b\u202e") || !utf8.ValidString(out) {
		t.Errorf("bytes from outside came through:\n%q", out)
	}
}

// Nothing that a terminal obeys is in JSON either, and what is read is what there was.
func TestJSONIsSafe(t *testing.T) {
	name := "\x00\x1b\n\"\\\x7f\u0080\u0085\u009b2J\u202e\u2028\ufeff\U000e0001\ufffdok-ü.example"
	tr := short()
	tr.Label, tr.Process = name, &trace.Process{PID: 1, Name: name}
	tr.Service = &trace.Service{Name: name, By: trace.BySNI, Value: name}
	tr.Hops[0].Replies[0].Name = name
	for _, format := range []string{"json", "reference", "scamper"} {
		line := write(t, format, Options{Version: name}, tr)
		for _, r := range strings.TrimSuffix(line, "\n") {
			if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || strings.ContainsRune("\u202e\u2028\ufeff\U000e0001", r) {
				t.Errorf("%s: %q came through:\n%q", format, r, line)
			}
		}
		if strings.Count(line, "\n") != 1 || !strings.Contains(line, "ok-ü.example") {
			t.Errorf("%s: %q", format, line)
		}
		if got := texts(t, line); !slices.Contains(got, name) {
			t.Errorf("%s: the name is none of %q", format, got)
		}
	}
}

// texts are all strings in a JSON document.
func texts(t *testing.T, line string) (all []string) {
	t.Helper()
	var doc any
	if err := json.Unmarshal([]byte(line), &doc); err != nil {
		t.Fatalf("%v: %q", err, line)
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			all = append(all, v)
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		case map[string]any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(doc)
	return all
}

// Every published word has a sentence.
func TestEveryReasonHasWords(t *testing.T) {
	for s := trace.StopDestination; s < trace.StopRefused; s++ {
		if got := stop(&trace.Trace{Stop: s}); got == "stopped: "+s.String() && s != trace.StopCancelled {
			t.Errorf("stop %v has no words", s)
		}
	}
	for r := trace.ReasonRecvErr; r <= trace.ReasonAmbiguous; r++ {
		if refusal(r) == r.String() {
			t.Errorf("reason %v has no words", r)
		}
	}
}

func TestUnknownFormat(t *testing.T) {
	if _, err := New("xml", &bytes.Buffer{}, Options{}); err == nil || !strings.Contains(err.Error(), "text, json") {
		t.Errorf("New(xml): %v", err)
	}
	var b bytes.Buffer
	w, _ := New("json", &b, Options{})
	if err := w.Write(&trace.Trace{}); err == nil || json.Valid(b.Bytes()) {
		t.Errorf("an invalid record was written: %v %s", err, b.Bytes())
	}
}
