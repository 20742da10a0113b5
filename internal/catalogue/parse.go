package catalogue

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"sort"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Parse reads a catalogue from YAML (docs/catalogue.md); name is what messages call
// the file. It is read to its end, MaxBytes at most. All that is wrong is told, up to
// a bound, each thing as an *Error; only where the YAML itself is broken nothing
// further is known. An empty file is an empty catalogue.
func Parse(name string, r io.Reader) (*Catalogue, error) {
	in := reader{file: name}
	text, err := in.read(r)
	if err != nil {
		return nil, err
	}
	root, err := in.document(text)
	if err != nil {
		return nil, err
	}
	if root != nil {
		in.root(root)
	}
	if err := in.wrong.err(); err != nil {
		return nil, err
	}
	return newCatalogue(in.services), nil
}

// reader turns the nodes of a file into services.
type reader struct {
	file     string
	services []Service
	wrong    problems
	regexes  int // the weight of all so far
}

func (r *reader) complain(line int, format string, args ...any) {
	r.wrong.add(position{r.file, line}, format, args...)
}

// read returns the text of a file. It is not an *Error when reading fails.
func (r *reader) read(from io.Reader) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(from, MaxBytes+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", r.file, err)
	case len(text) > MaxBytes:
		return nil, &Error{File: r.file, Text: fmt.Sprintf("larger than %d bytes", MaxBytes)}
	}
	return text, nil
}

// documents returns the first document and, if there is one, the second.
func documents(text []byte) (first, second *yaml.Node, err error) {
	in := yaml.NewDecoder(bytes.NewReader(text))
	for _, doc := range []**yaml.Node{&first, &second} {
		var n yaml.Node
		switch err := in.Decode(&n); {
		case errors.Is(err, io.EOF):
			return first, second, nil
		case err != nil:
			return nil, nil, err
		}
		*doc = &n
	}
	return first, second, nil
}

// document returns the root of the only document, nil when there is none.
func (r *reader) document(text []byte) (*yaml.Node, error) {
	doc, more, err := documents(text)
	switch {
	case err != nil:
		return nil, &Error{r.file, brokenAt(text, err), "YAML: " + yamlLine.ReplaceAllString(err.Error(), "")}
	case more != nil:
		return nil, &Error{r.file, more.Line, "a second document begins here"}
	case doc == nil || isNull(doc.Content[0]):
		return nil, nil
	}
	return doc.Content[0], nil
}

// yamlLine is how the YAML reader says where something is wrong.
var yamlLine = regexp.MustCompile(`^yaml: (line \d+: )?`)

// brokenAt returns the line at which err becomes inevitable. The YAML reader names
// that where the list or mapping begins, of a long file mostly the second. It reads
// from front to back, so whatever follows the mistake, err is the same.
func brokenAt(text []byte, err error) int {
	var ends []int // of lines
	for line := range bytes.Lines(text) {
		end := len(line)
		if len(ends) > 0 {
			end += ends[len(ends)-1]
		}
		ends = append(ends, end)
	}
	return 1 + sort.Search(max(0, len(ends)-1), func(i int) bool {
		_, _, early := documents(text[:ends[i]])
		return early != nil && early.Error() == err.Error()
	})
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// pairs calls f with each key of a mapping. One that stands there twice is told and
// passed over.
func (r *reader) pairs(n *yaml.Node, f func(key string, line int, value *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch line, twice := seen[key.Value]; {
		case key.Kind != yaml.ScalarNode:
			r.complain(key.Line, "a key has to be a word")
		case twice:
			r.complain(key.Line, "%s is given twice, first in line %d", quote(key.Value), line)
		default:
			seen[key.Value] = key.Line
			f(key.Value, key.Line, value)
		}
	}
}

func (r *reader) root(root *yaml.Node) {
	if root.Kind != yaml.MappingNode {
		r.complain(root.Line, `"services:" with a list below it is expected`)
		return
	}
	r.pairs(root, func(key string, line int, value *yaml.Node) {
		switch {
		case key != "services":
			r.complain(line, `unknown key %s: "services" is the only one here`, quote(key))
		case isNull(value): // all of them are comments
		case value.Kind != yaml.SequenceNode:
			r.complain(value.Line, `services: a list is expected, each service begins with "- name: "`)
		case len(value.Content) > MaxServices:
			r.complain(value.Line, "%d services, more than %d", len(value.Content), MaxServices)
		default:
			r.list(value.Content)
		}
	})
}

// list reads the services.
func (r *reader) list(items []*yaml.Node) {
	lines := map[string]int{}
	for _, item := range items {
		if item.Kind != yaml.MappingNode {
			r.complain(item.Line, `a service is expected, as "- name: example"`)
			continue
		}
		s, named := r.service(item)
		if !named {
			continue
		}
		if first, twice := lines[s.Name]; twice {
			r.complain(item.Line, "service %s is there twice, first in line %d", s.Name, first)
			continue
		}
		lines[s.Name] = item.Line
		r.services = append(r.services, s)
	}
}

// keys are what a service can have, in the order in which they are written.
var keys = []string{"name", "title", "domains", "regexes", "prefixes", "ports", "proto", "exclude", "source", "replace"}

// service reads one service; named is false when it has no proper name.
func (r *reader) service(item *yaml.Node) (s Service, named bool) {
	s.at = position{r.file, item.Line}
	given := false
	r.pairs(item, func(key string, line int, value *yaml.Node) {
		switch key {
		case "name":
			given = true
			r.each(key, value, false, func(text string) error {
				s.Name = text
				err := checkName(text)
				named = err == nil
				return err
			})
		case "title":
			r.each(key, value, false, func(text string) error { s.Title = text; return checkText(text) })
		case "source":
			r.each(key, value, false, func(text string) error { s.Source = text; return checkText(text) })
		case "replace":
			if value.Kind != yaml.ScalarNode || value.ShortTag() != "!!bool" {
				r.complain(value.Line, "replace: want true or false")
			}
			s.Replace = strings.EqualFold(value.Value, "true")
		default:
			if !r.rule(&s, key, value) {
				r.complain(line, "unknown key %s: one of %s", quote(key), strings.Join(keys, ", "))
			}
		}
	})
	switch {
	case !given:
		r.complain(item.Line, "a service without a name")
	case named && s.Replace && !s.selects():
		r.complain(item.Line, "service %s replaces another with nothing: no domains, regexes, prefixes or ports", s.Name)
	}
	s.tidy()
	return s, named
}

// rule reads what tells which flows belong to a service; false when there is no such
// key.
func (r *reader) rule(s *Service, key string, value *yaml.Node) bool {
	switch key {
	case "domains":
		r.each(key, value, true, into(&s.Domains, parseDomain))
	case "regexes":
		r.each(key, value, true, into(&s.Regexes, r.regex))
	case "prefixes":
		r.each(key, value, true, into(&s.Prefixes, parsePrefix))
	case "ports":
		r.each(key, value, true, into(&s.Ports, parsePorts))
	case "proto":
		r.each(key, value, true, into(&s.Protos, parseProto))
	case "exclude":
		r.each(key, value, true, s.exclude)
	default:
		return false
	}
	return true
}

// exclude takes a prefix, an address or a domain.
func (s *Service) exclude(text string) error {
	prefix, err := parsePrefix(text)
	if err == nil {
		s.ExcludePrefixes = append(s.ExcludePrefixes, prefix)
		return nil
	}
	if _, isAddr := netip.ParseAddr(text); isAddr == nil || strings.Contains(text, "/") {
		return err
	}
	return into(&s.ExcludeDomains, parseDomain)(text)
}

// regex checks an expression, and that all of a file together stay small.
func (r *reader) regex(text string) (string, error) {
	weight, err := checkRegex(text)
	if err != nil {
		return "", err
	}
	if r.regexes += weight; r.regexes > maxRegexFile {
		return "", fmt.Errorf("%s: all regexes of this file together are too large", quote(text))
	}
	return text, nil
}

// into appends what parse makes of a text.
func into[T any](to *[]T, parse func(string) (T, error)) func(string) error {
	return func(text string) error {
		v, err := parse(text)
		if err == nil {
			*to = append(*to, v)
		}
		return err
	}
}

// each hands the texts of a value to take: one, or where it may be a list those of
// that. Aliases of YAML are not followed: with them a small file can mean a huge one.
func (r *reader) each(key string, value *yaml.Node, many bool, take func(string) error) {
	items := []*yaml.Node{value}
	if many && value.Kind == yaml.SequenceNode {
		items = value.Content
	}
	for _, item := range items {
		switch {
		case item.Kind == yaml.AliasNode:
			r.complain(item.Line, "%s: aliases (*%s) are not read here: write it out", key, item.Value)
		case item.Kind != yaml.ScalarNode:
			r.complain(item.Line, "%s: a single value is expected", key)
		case isNull(item):
			r.complain(item.Line, "%s: a value is missing", key)
		default:
			if err := take(item.Value); err != nil {
				r.complain(item.Line, "%s: %v", key, err)
			}
		}
	}
}
