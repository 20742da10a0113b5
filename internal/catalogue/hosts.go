package catalogue

import (
	"net/netip"
	"slices"
)

// Hosts are Domains, Regexes and Prefixes as a selection takes them: a regular
// expression between slashes.
func (s *Service) Hosts() []string {
	all := slices.Clone(s.Domains)
	for _, r := range s.Regexes {
		all = append(all, "/"+r+"/")
	}
	return appendPrefixes(all, s.Prefixes)
}

// Except are ExcludeDomains and ExcludePrefixes as a selection takes them.
func (s *Service) Except() []string {
	return appendPrefixes(slices.Clone(s.ExcludeDomains), s.ExcludePrefixes)
}

func appendPrefixes(all []string, prefixes []netip.Prefix) []string {
	for _, p := range prefixes {
		all = append(all, p.String())
	}
	return all
}
