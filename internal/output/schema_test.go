package output

import (
	"bufio"
	"bytes"
	"encoding"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"servicetraceroute/trace"
)

const schemaFile = "../../docs/schema/service-traceroute-1.schema.json"

func compiledSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func valid(t *testing.T, s *jsonschema.Schema, record []byte) error {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(record))
	if err != nil {
		t.Fatalf("%v: %s", err, record)
	}
	return s.Validate(doc)
}

// records are the golden ones of package trace, by type: for every type a full
// one and an empty one.
func records(t *testing.T) map[string][][]byte {
	t.Helper()
	b, err := os.ReadFile("../../trace/testdata/records.ndjson")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][][]byte{}
	for in := bufio.NewScanner(bytes.NewReader(b)); in.Scan(); {
		line := bytes.Clone(in.Bytes())
		var e struct{ Type string }
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		all[e.Type] = append(all[e.Type], line)
	}
	return all
}

// Every output goes through the writer, so what it writes is what is validated.
func TestRecordsMatchSchema(t *testing.T) {
	s := compiledSchema(t)
	all := records(t)
	for _, kind := range []string{"trace", "flow", "finding", "change", "compare", "stats"} {
		if len(all[kind]) < 2 {
			t.Errorf("%s: %d samples", kind, len(all[kind]))
		}
		for _, line := range all[kind] {
			ev, err := trace.Unmarshal(line)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			w, err := New("json", &out, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Write(ev); err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(out.Bytes(), []byte("\n")); n != 1 || out.Bytes()[out.Len()-1] != '\n' {
				t.Errorf("not one line: %q", out.Bytes())
			}
			if err := valid(t, s, out.Bytes()); err != nil {
				t.Errorf("%v\n%s", err, out.Bytes())
			}
		}
	}
}

// A schema that accepts everything would pass the test above.
func TestSchemaRejects(t *testing.T) {
	s := compiledSchema(t)
	all := records(t)
	for _, c := range []struct{ kind, old, new string }{
		{"trace", `"schema":"service-traceroute/1"`, `"schema":"service-traceroute/2"`},
		{"trace", `"type":"trace"`, `"type":"flow"`},
		{"trace", `"id":"0123456789abcdef"`, `"id":"1"`},
		{"trace", `"start":"2026-11-23T12:00:00.123456789Z"`, `"start":"2026-11-23 12:00"`},
		{"trace", `"src":"10.0.0.1"`, `"src":"10.0.0.256"`},
		{"trace", `"sport":40510`, `"sport":65536`},
		{"trace", `"replies":[]`, `"replies":null`},
		{"trace", `"ttl":2`, `"ttl":0`},
		{"trace", `"rtt_ms":0.31`, `"rtt_ms":"0.31"`},
		{"trace", `"kind":"time-exceeded"`, `"kind":"timeout"`},
		{"trace", `"stop":"destination"`, `"stop":"tired"`},
		{"trace", `"stop":"destination"`, `"stop":"refused"`},
		{"trace", `"complete":true`, `"complete":false`},
		{"trace", `"by":"ack"`, `"by":"passive"`},
		{"trace", `"label":"l",`, ``},
		{"trace", `"label":"l",`, `"label":"l","colour":"red",`},
		{"flow", `,"reason":"md5"`, ``},
		{"flow", `"state":"refused"`, `"state":"lost"`},
		{"finding", `"confidence":0.5`, `"confidence":1.5`},
		{"change", `"from":["::1"]`, `"from":[]`},
		{"change", `"cause":"route"`, `"cause":"weather"`},
		{"compare", `"proto":"udp","after_ttl"`, `"proto":"sctp","after_ttl"`},
		{"stats", `"by_stop":{"destination":8}`, `"by_stop":{"tired":8}`},
		{"stats", `"by_stop":{"destination":8}`, `"by_stop":null`},
	} {
		line := string(all[c.kind][0])
		broken := strings.Replace(line, c.old, c.new, 1)
		if broken == line {
			t.Fatalf("%s has no %s", c.kind, c.old)
		}
		if valid(t, s, []byte(broken)) == nil {
			t.Errorf("%s with %s instead of %s is accepted", c.kind, c.new, c.old)
		}
	}
}

// TestSchemaVocabulary holds the schema's words against those of package trace.
func TestSchemaVocabulary(t *testing.T) {
	b, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Defs map[string]struct{ Enum []string } `json:"$defs"`
	}
	if err := json.Unmarshal(b, &schema); err != nil {
		t.Fatal(err)
	}
	for def, want := range map[string][]string{
		"proto": words[trace.Proto](), "algorithm": words[trace.Algorithm](), "direction": words[trace.Direction](),
		"by": words[trace.By](), "reply-kind": words[trace.ReplyKind](), "stop": words[trace.Stop](),
		"reason": words[trace.Reason](), "destination-by": words[trace.DestinationBy](), "state": words[trace.FlowState](),
		"finding-kind": words[trace.FindingKind](),
	} {
		if got := schema.Defs[def].Enum; !slices.Equal(got, want) {
			t.Errorf("%s: schema %v, package trace %v", def, got, want)
		}
	}
}

// words returns the whole vocabulary of an enumeration.
func words[T interface {
	~uint8
	encoding.TextMarshaler
}]() []string {
	var all []string
	for v := 1; v < 256; v++ {
		if b, err := T(v).MarshalText(); err == nil {
			all = append(all, string(b))
		}
	}
	return all
}
