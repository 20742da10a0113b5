package catalogue

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Import reads the service list of the paper's tool, its input.conf:
//
//	{"Services": [{"Name": "Netflix", "DomainsString": ["netflix.com"],
//	  "DomainsRegex": ["nflx.*"], "Prefixes": ["198.38.96.0/19"]}]}
//
// Names become names of a catalogue ("Sling TV": sling-tv), those of built-in services
// where only case, spaces or dashes differ. As in that tool, case does not matter in
// keys, unknown keys are passed over, and null is nothing. That tool looked for a
// DomainsString anywhere in a name; one with a dot becomes a domain here, which holds
// at the boundaries of labels only, one without becomes a regex, which holds anywhere.
// What is wrong is told as by Parse. Notes tell what became other than it was.
func Import(name string, r io.Reader) (c *Catalogue, notes []string, err error) {
	in := importer{reader: reader{file: name}}
	text, err := in.read(r)
	if err != nil {
		return nil, nil, err
	}
	root, err := jsonNodes(text)
	if err != nil {
		return nil, nil, &Error{name, root.Line, "JSON: " + err.Error()}
	}
	in.root(root)
	if err := in.wrong.err(); err != nil {
		return nil, nil, err
	}
	return newCatalogue(in.services), in.told(), nil
}

// importer is a reader of the other tool's form.
type importer struct {
	reader
	notes []string
	more  int
}

func (in *importer) note(line int, format string, args ...any) {
	if len(in.notes) == maxProblems {
		in.more++
		return
	}
	in.notes = append(in.notes, fmt.Sprintf("%s:%d: ", in.file, line)+fmt.Sprintf(format, args...))
}

func (in *importer) told() []string {
	if in.more > 0 {
		return append(in.notes, fmt.Sprintf("and %d more notes", in.more))
	}
	return in.notes
}

// member returns the last value of a key that is not null, as package json has it.
func member(object *yaml.Node, key string) *yaml.Node {
	var found *yaml.Node
	for i := 0; i+1 < len(object.Content); i += 2 {
		if strings.EqualFold(object.Content[i].Value, key) && !isNull(object.Content[i+1]) {
			found = object.Content[i+1]
		}
	}
	return found
}

func (in *importer) root(root *yaml.Node) {
	if root.Kind != yaml.MappingNode {
		in.complain(root.Line, `an object is expected: {"Services": […]}`)
		return
	}
	list := member(root, "Services")
	switch {
	case list == nil:
		in.note(root.Line, "there are no Services")
	case list.Kind != yaml.SequenceNode:
		in.complain(list.Line, "Services: a list is expected")
	case len(list.Content) > MaxServices:
		in.complain(list.Line, "%d services, more than %d", len(list.Content), MaxServices)
	default:
		in.list(list.Content)
	}
}

func (in *importer) list(items []*yaml.Node) {
	at := map[string]int{}
	for _, item := range items {
		if isNull(item) {
			continue
		}
		if item.Kind != yaml.MappingNode {
			in.complain(item.Line, "Services: an object is expected")
			continue
		}
		s, ok := in.service(item)
		if !ok {
			continue
		}
		if !s.selects() {
			in.note(item.Line, "%s is left out: it has no domains and no prefixes", s.Name)
			continue
		}
		if i, twice := at[s.Name]; twice {
			in.note(item.Line, "%s is there twice, both became one", s.Name)
			in.services[i] = in.services[i].extend(s)
			continue
		}
		at[s.Name] = len(in.services)
		in.services = append(in.services, s)
	}
}

// service reads one; false when it has no name.
func (in *importer) service(item *yaml.Node) (s Service, ok bool) {
	s.at = position{in.file, item.Line}
	name := member(item, "Name")
	if name == nil {
		in.complain(item.Line, "a service without a Name")
		return s, false
	}
	in.each("Name", name, false, func(text string) (err error) {
		s.Name, s.Title = nameOf(text), strings.TrimSpace(text)
		if checkName(s.Name) != nil || checkText(s.Title) != nil {
			return fmt.Errorf("%s makes no name of letters and digits", quote(text))
		}
		ok = true
		return nil
	})
	in.texts(item, "DomainsString", func(text string, line int) error { return in.piece(&s, text, line) })
	in.texts(item, "DomainsRegex", func(text string, _ int) error { return into(&s.Regexes, in.regex)(text) })
	in.texts(item, "Prefixes", func(text string, _ int) error { return into(&s.Prefixes, parsePrefix)(text) })
	s.tidy()
	return s, ok
}

// texts hands over the items of a list that may be missing.
func (in *importer) texts(item *yaml.Node, key string, take func(text string, line int) error) {
	list := member(item, key)
	if list == nil {
		return
	}
	if list.Kind != yaml.SequenceNode {
		in.complain(list.Line, "%s: a list is expected", key)
		return
	}
	for _, entry := range list.Content {
		if entry.Kind == yaml.ScalarNode && strings.TrimSpace(entry.Value) == "" {
			continue // null, too
		}
		if entry.Kind == yaml.ScalarNode && entry.Tag != "!!str" {
			in.complain(entry.Line, "%s: %s is no text", key, quote(entry.Value))
			continue
		}
		in.each(key, entry, false, func(text string) error { return take(strings.TrimSpace(text), entry.Line) })
	}
}

// piece is a DomainsString: a name, or a piece of one.
func (in *importer) piece(s *Service, text string, line int) error {
	if domain := strings.TrimPrefix(text, "."); strings.Contains(strings.Trim(domain, "."), ".") {
		return into(&s.Domains, parseDomain)(domain)
	}
	in.note(line, "%s: %s is a piece of a name: it became a regex", s.Name, quote(text))
	return into(&s.Regexes, in.regex)(regexp.QuoteMeta(text))
}

// nameOf makes a catalogue's name of any other.
func nameOf(text string) string {
	words := strings.FieldsFunc(strings.ToLower(text), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	name := strings.Join(words, "-")
	for _, s := range Builtin().services {
		if squash(s.Name) == squash(name) {
			return s.Name
		}
	}
	return name
}

// maxDepth is how deep JSON may be nested; that tool's is four deep.
const maxDepth = 100

// jsonNodes reads JSON into nodes as YAML's, which have lines. With an error the node
// has the line at which that is.
func jsonNodes(text []byte) (*yaml.Node, error) {
	text = bytes.TrimPrefix(text, []byte("\uFEFF")) // some editors begin with it
	t := jsonReader{text: text, dec: json.NewDecoder(bytes.NewReader(text)), line: 1}
	t.dec.UseNumber()
	root, err := t.value(0)
	if err == nil {
		if _, err = t.dec.Token(); errors.Is(err, io.EOF) {
			return root, nil
		}
		err = errors.New("something follows the first value")
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it ends too early")
	}
	return &yaml.Node{Line: t.at(wrongAt(err, t.dec.InputOffset()))}, err
}

type jsonReader struct {
	text       []byte
	dec        *json.Decoder
	line, seen int // of text up to seen
}

// wrongAt is the offset of an error.
func wrongAt(err error, otherwise int64) int64 {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return syntax.Offset
	}
	return otherwise
}

// at returns the line of an offset. Offsets come in order.
func (t *jsonReader) at(offset int64) int {
	if end := min(int(offset), len(t.text)); end > t.seen {
		t.line += bytes.Count(t.text[t.seen:end], []byte("\n"))
		t.seen = end
	}
	return t.line
}

func (t *jsonReader) value(depth int) (*yaml.Node, error) {
	token, err := t.dec.Token()
	if err != nil {
		return nil, err
	}
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Line: t.at(t.dec.InputOffset())}
	switch v := token.(type) {
	case string:
		n.Value = v
	case nil:
		n.Tag = "!!null"
	case json.Delim:
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		if v == '{' {
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
		}
		if depth == maxDepth {
			return nil, fmt.Errorf("nested more than %d deep", maxDepth)
		}
		for t.dec.More() {
			item, err := t.value(depth + 1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, item)
		}
		_, err = t.dec.Token() // the end of it
	default: // a number or a truth value
		n.Tag, n.Value = "!!int", fmt.Sprint(v)
	}
	return n, err
}
