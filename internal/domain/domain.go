// Package domain matches names of hosts against patterns that users write:
//
//	example.com     that name and all below it
//	*.example.com   all below it, without itself
//	/REGEX/         names in which the regular expression occurs
//
// A name is below another if it ends with it on a label boundary: www.example.com is
// below example.com, notexample.com is not. Case does not matter, nor does one dot at the
// end of either. Names of another script may be written as they are read (bücher.example)
// and are turned into the form that goes over the wire (xn--bcher-kva.example) as browsers do,
// by UTS #46 lookup processing (RFC 5891 section 5).
//
// Regular expressions are Go's (RE2: linear in time), without case and without anchors
// unless written: /netflix/ matches notnetflix.com, /(^|\.)netflix\.(com|net)$/
// does not. They see the name in its form on the wire, without the last dot.
//
// Of several patterns the longest name wins, for equally long ones the wildcard, which
// says more; then come regular expressions, in the order written. It does no I/O.
package domain

import (
	"fmt"
	"regexp"
	"strings"
)

// maxName is the longest name that is looked at. Names of hosts have at most 253
// bytes; in the text form of RFC 1035 section 5.1, odd ones may have more.
const maxName = 255

// Set is a number of patterns, compiled. The zero value and nil match nothing. It
// is never changed, so that any number of goroutines may use it.
type Set struct {
	names   map[string]rule // by suffix
	longest int             // bytes of the longest suffix
	exprs   []expr
}

// rule is what was written for one suffix; empty: nothing.
type rule struct {
	tree  string // example.com
	below string // *.example.com
}

type expr struct {
	pattern string
	re      *regexp.Regexp
}

// New compiles patterns. Its error is an *Error, about the first pattern that is
// wrong.
func New(patterns []string) (*Set, error) {
	s := &Set{names: make(map[string]rule)}
	for _, written := range patterns {
		p, err := parse(written)
		if err != nil {
			return nil, err
		}
		if p.re != nil {
			s.exprs = append(s.exprs, expr{written, p.re})
			continue
		}
		r := s.names[p.suffix]
		at := &r.tree
		if p.wild {
			at = &r.below
		}
		if *at == "" { // who wrote it twice gets the first
			*at = written
		}
		s.names[p.suffix] = r
		s.longest = max(s.longest, len(p.suffix))
	}
	return s, nil
}

// Match returns the pattern that matches a name, as it was written. The name is
// in the form on the wire (xn--), as text (RFC 1035 section 5.1: a dot within a label
// is \. and parts nothing). It does not allocate.
func (s *Set) Match(name string) (pattern string, ok bool) {
	if s == nil {
		return "", false
	}
	if n := len(name); n > 0 && boundary(name, n-1) {
		name = name[:n-1]
	}
	if name == "" || len(name) > maxName {
		return "", false
	}
	if pattern, ok = s.suffix(name); ok {
		return pattern, true
	}
	for i := range s.exprs {
		if s.exprs[i].re.MatchString(name) {
			return s.exprs[i].pattern, true
		}
	}
	return "", false
}

// suffix looks the name up, and then all above it.
func (s *Set) suffix(name string) (pattern string, ok bool) {
	if len(s.names) == 0 {
		return "", false
	}
	var folded [maxName]byte
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		folded[i] = c
	}
	for at := 0; at < len(name); at++ {
		if at > 0 && !boundary(name, at-1) || len(name)-at > s.longest {
			continue
		}
		r, found := s.names[string(folded[at:len(name)])]
		switch {
		case !found:
		case at > 0 && r.below != "":
			return r.below, true
		case r.tree != "":
			return r.tree, true
		}
	}
	return "", false
}

// boundary reports whether a dot stands at i that parts labels: before it is no
// backslash, or a whole number of pairs.
func boundary(name string, i int) bool {
	if name[i] != '.' {
		return false
	}
	escaped := false
	for i--; i >= 0 && name[i] == '\\'; i-- {
		escaped = !escaped
	}
	return !escaped
}

// Len is the number of different patterns.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	n := len(s.exprs)
	for _, r := range s.names {
		if r.tree != "" {
			n++
		}
		if r.below != "" {
			n++
		}
	}
	return n
}

// Error says what is wrong with a pattern.
type Error struct {
	Pattern string
	Why     string
	Hint    string // what to write instead; may be empty
}

// Error is without the hint, which has a line of its own in this project.
func (e *Error) Error() string { return fmt.Sprintf("name %q: %s", short(e.Pattern), e.Why) }

// short keeps messages short.
func short(pattern string) string {
	if len(pattern) > 100 {
		return strings.ToValidUTF8(pattern[:100], "") + "…"
	}
	return pattern
}
