package catalogue

import (
	"cmp"
	"slices"
	"strings"

	"servicetraceroute/internal/spell"
)

// maxSuggestions is how many names Suggest returns.
const maxSuggestions = 3

// Suggest returns the names of services that somebody may have meant, the likeliest
// first: those that begin with the word, those whose name or title has it in it, those
// a few letters away. None when nothing is near. Case, spaces and dashes do not count.
func (c *Catalogue) Suggest(name string) []string {
	word := squash(name)
	if word == "" || len(word) > maxName {
		return nil
	}
	type candidate struct {
		name string
		far  int
	}
	var near []candidate
	for _, s := range c.services {
		if far, ok := distance(word, squash(s.Name), squash(s.Title)); ok {
			near = append(near, candidate{s.Name, far})
		}
	}
	slices.SortFunc(near, func(a, b candidate) int { return cmp.Or(cmp.Compare(a.far, b.far), strings.Compare(a.name, b.name)) })
	var names []string
	for _, n := range near[:min(len(near), maxSuggestions)] {
		names = append(names, n.name)
	}
	return names
}

// distance is how far a word is from the nearest of a service's words.
func distance(word string, of ...string) (far int, ok bool) {
	const nowhere = 1 << 10
	far = nowhere
	for _, w := range of {
		switch d := spell.Distance(word, w); {
		case w == "":
		case d == 0:
			far = 0
		case strings.HasPrefix(w, word):
			far = min(far, 1)
		case len(word) > 2 && strings.Contains(w, word), len(w) > 3 && strings.HasPrefix(word, w):
			far = min(far, 2)
		case d <= max(1, len(word)/3):
			far = min(far, 2+d)
		}
	}
	return far, far < nowhere
}

// squash leaves the letters and digits of a name, in lower case.
func squash(name string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			return r
		}
		return -1
	}, strings.ToLower(name))
}
