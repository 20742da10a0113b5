package catalogue

import (
	"encoding/json"
	"io"
	"net/netip"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// entry is a service in a file.
type entry struct {
	Name     string   `yaml:"name"`
	Title    string   `yaml:"title,omitempty"`
	Domains  []string `yaml:"domains,omitempty"`
	Regexes  []string `yaml:"regexes,omitempty"`
	Prefixes []string `yaml:"prefixes,omitempty"`
	Ports    []any    `yaml:"ports,flow,omitempty"` // a port alone is a number
	Proto    []string `yaml:"proto,flow,omitempty"`
	Exclude  []string `yaml:"exclude,omitempty"`
	Source   string   `yaml:"source,omitempty"`
	Replace  bool     `yaml:"replace,omitempty"`
}

// prefixTexts returns prefixes as text.
func prefixTexts(prefixes []netip.Prefix) []string {
	texts := make([]string, 0, len(prefixes))
	for _, p := range prefixes {
		texts = append(texts, p.String())
	}
	return texts
}

// PortTexts returns the ports as they are written: "443", "8801-8810".
func (s *Service) PortTexts() []string {
	texts := make([]string, 0, len(s.Ports))
	for _, r := range s.Ports {
		text := strconv.Itoa(int(r.First))
		if r.Last != r.First {
			text += "-" + strconv.Itoa(int(r.Last))
		}
		texts = append(texts, text)
	}
	return texts
}

func (s *Service) protoTexts() []string {
	texts := make([]string, 0, len(s.Protos))
	for _, p := range s.Protos {
		texts = append(texts, p.String())
	}
	return texts
}

func (s *Service) entry() entry {
	e := entry{
		Name: s.Name, Title: s.Title, Domains: s.Domains, Regexes: s.Regexes, Prefixes: prefixTexts(s.Prefixes),
		Proto: s.protoTexts(), Exclude: append(append([]string{}, s.ExcludeDomains...), prefixTexts(s.ExcludePrefixes)...),
		Source: s.Source, Replace: s.Replace,
	}
	for _, text := range s.PortTexts() {
		if n, err := strconv.Atoi(text); err == nil {
			e.Ports = append(e.Ports, n)
			continue
		}
		e.Ports = append(e.Ports, text)
	}
	return e
}

// WriteYAML writes services as a catalogue that Parse reads.
func WriteYAML(w io.Writer, services []Service) error {
	file := struct {
		Services []entry `yaml:"services"`
	}{[]entry{}}
	for i := range services {
		file.Services = append(file.Services, services[i].entry())
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&file); err != nil {
		return err
	}
	return enc.Close()
}

// MarshalJSON implements json.Marshaler: an object whose keys are those of the file,
// all of them but replace, with [] for an empty list. Ports are text.
func (s Service) MarshalJSON() ([]byte, error) {
	full := func(list []string) []string { return append([]string{}, list...) }
	return json.Marshal(struct {
		Name     string   `json:"name"`
		Title    string   `json:"title"`
		Domains  []string `json:"domains"`
		Regexes  []string `json:"regexes"`
		Prefixes []string `json:"prefixes"`
		Ports    []string `json:"ports"`
		Proto    []string `json:"proto"`
		Exclude  []string `json:"exclude"`
		Source   string   `json:"source"`
	}{s.Name, s.Title, full(s.Domains), full(s.Regexes), prefixTexts(s.Prefixes), s.PortTexts(), s.protoTexts(), s.entry().Exclude, s.Source})
}
