package catalogue

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"servicetraceroute/internal/service"
	"servicetraceroute/trace"
)

// Service is one entry of a catalogue. A flow belongs to it when a name of its peer
// fits one of Domains or Regexes, or its peer's address lies in one of Prefixes. Ports
// and Protos narrow that; a service that has none of the three is known by its ports
// alone. Slices are sorted, without doubles, and belong to the catalogue: nobody
// writes to them.
type Service struct {
	Name  string // lower case letters, digits and single dashes between them
	Title string // as its makers write it; may be empty

	// Domains are names in lower case and without a final dot: "example.com" is that
	// name and all below it, "*.example.com" all below it only. "example.com" is not
	// "notexample.com".
	Domains []string

	// Regexes are in RE2's syntax (package regexp). They are meant without regard to
	// case, hold anywhere in a name unless anchored, and compile.
	Regexes []string

	Prefixes []netip.Prefix // masked; none is IPv4 within IPv6

	Ports  []service.PortRange // of the server; none: any
	Protos []trace.Proto       // none: any

	// Never probed as flows of this service, whatever else fits.
	ExcludeDomains  []string
	ExcludePrefixes []netip.Prefix

	Source string // where this is documented: an address or words; may be empty

	// Replace makes Merge put this service in the place of one of the same name,
	// instead of adding to it.
	Replace bool

	at position
}

// selects reports whether any flow can belong to the service.
func (s *Service) selects() bool {
	return len(s.Domains)+len(s.Regexes)+len(s.Prefixes)+len(s.Ports) > 0
}

// extend returns the service with what over adds. Its words win.
func (s Service) extend(over Service) Service {
	if over.Title != "" {
		s.Title = over.Title
	}
	if over.Source != "" {
		s.Source = over.Source
	}
	s.Domains = slices.Concat(s.Domains, over.Domains)
	s.Regexes = slices.Concat(s.Regexes, over.Regexes)
	s.Prefixes = slices.Concat(s.Prefixes, over.Prefixes)
	s.Ports = slices.Concat(s.Ports, over.Ports)
	s.Protos = slices.Concat(s.Protos, over.Protos)
	s.ExcludeDomains = slices.Concat(s.ExcludeDomains, over.ExcludeDomains)
	s.ExcludePrefixes = slices.Concat(s.ExcludePrefixes, over.ExcludePrefixes)
	s.at = over.at
	s.tidy()
	return s
}

// tidy sorts the slices and takes doubles out. It writes to them.
func (s *Service) tidy() {
	for _, words := range []*[]string{&s.Domains, &s.Regexes, &s.ExcludeDomains} {
		slices.Sort(*words)
		*words = slices.Compact(*words)
	}
	for _, prefixes := range []*[]netip.Prefix{&s.Prefixes, &s.ExcludePrefixes} {
		slices.SortFunc(*prefixes, netip.Prefix.Compare)
		*prefixes = slices.Compact(*prefixes)
	}
	slices.SortFunc(s.Ports, func(a, b service.PortRange) int {
		return (int(a.First)-int(b.First))<<16 + int(a.Last) - int(b.Last)
	})
	s.Ports = slices.Compact(s.Ports)
	slices.Sort(s.Protos)
	s.Protos = slices.Compact(s.Protos)
}

// Catalogue is a set of services, each with a name of its own. It does not change
// and may be used by several goroutines; its zero value is empty.
type Catalogue struct {
	services []Service // by name
}

//go:embed services.yaml
var builtin []byte

// Builtin returns the catalogue in the binary.
func Builtin() *Catalogue { return builtinOnce() }

var builtinOnce = sync.OnceValue(func() *Catalogue {
	c, err := Parse("services.yaml", bytes.NewReader(builtin))
	if err != nil {
		panic("catalogue: the one in the binary: " + err.Error())
	}
	return c
})

// newCatalogue takes services that are checked and have different names.
func newCatalogue(services []Service) *Catalogue {
	slices.SortFunc(services, func(a, b Service) int { return strings.Compare(a.Name, b.Name) })
	return &Catalogue{services}
}

// find is where a service is, or would be.
func (c *Catalogue) find(name string) (int, bool) {
	return slices.BinarySearchFunc(c.services, name, func(s Service, name string) int { return strings.Compare(s.Name, name) })
}

// Get returns a service by its name, in which case does not matter.
func (c *Catalogue) Get(name string) (Service, bool) {
	i, ok := c.find(strings.ToLower(name))
	if !ok {
		return Service{}, false
	}
	return c.services[i], true
}

// All returns the services, sorted by name. The slice is the caller's, those in the
// services are not.
func (c *Catalogue) All() []Service { return slices.Clone(c.services) }

// Merge returns a catalogue of c and of all of over, a later one over an earlier one.
// A service of a name that is there already adds to that: the union of domains,
// regexes, prefixes, ports, protocols and excludes, its own title and source where it
// has them. With Replace it takes that one's place. A service that then selects
// nothing, since all it has is excludes for a name that is not there, is an error;
// all such are joined, each an *Error.
func (c *Catalogue) Merge(over ...*Catalogue) (*Catalogue, error) {
	byName := map[string]Service{}
	for _, s := range c.services {
		byName[s.Name] = s
	}
	for _, o := range over {
		for _, s := range o.services {
			if base, ok := byName[s.Name]; ok && !s.Replace {
				s = base.extend(s)
			}
			byName[s.Name] = s
		}
	}
	services := make([]Service, 0, len(byName))
	for _, s := range byName {
		services = append(services, s)
	}
	merged := newCatalogue(services)
	var wrong problems
	for i := range merged.services {
		if s := &merged.services[i]; !s.selects() {
			wrong.add(s.at, "service %s has no domains, regexes, prefixes or ports%s", s.Name, c.meant(s.Name))
		}
	}
	if err := wrong.err(); err != nil {
		return nil, err
	}
	return merged, nil
}

// meant is what to append to a message about a name that c does not know.
func (c *Catalogue) meant(name string) string {
	if like := c.Suggest(name); len(like) > 0 {
		return " (did you mean " + strings.Join(like, " or ") + "?)"
	}
	return ""
}

// position is where something was read.
type position struct {
	file string
	line int
}

// Error is one thing that is wrong with a catalogue. What Parse, Import and Merge
// return is one of these, or several joined (errors.Join).
type Error struct {
	File string
	Line int // from 1; 0: the file as a whole
	Text string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Text
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
}

// maxProblems is how many wrong things of a file are told.
const maxProblems = 100

// problems collects what is wrong. The zero value has none.
type problems struct {
	told []error
	more int
	file string // of the last one
}

func (p *problems) add(at position, format string, args ...any) {
	p.file = at.file
	if len(p.told) == maxProblems {
		p.more++
		return
	}
	p.told = append(p.told, &Error{at.file, at.line, fmt.Sprintf(format, args...)})
}

// err is all of them, nil when there are none.
func (p *problems) err() error {
	if p.more > 0 {
		return errors.Join(append(slices.Clip(p.told), &Error{File: p.file, Text: fmt.Sprintf("and %d more errors", p.more)})...)
	}
	return errors.Join(p.told...)
}
