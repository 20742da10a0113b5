package evaluate

import (
	"fmt"
	"strings"
)

// Put replaces one part of a document, and leaves the others as they are: a document is a head
// and parts in the order of names, each between two comments of its own. Missing parts stay
// missing.
func Put(document, head string, names []string, name, text string) string {
	var b strings.Builder
	b.WriteString(strings.TrimSpace(head) + "\n")
	for _, n := range names {
		body, ok := part(document, n)
		if n == name {
			body, ok = text, true
		}
		if ok {
			fmt.Fprintf(&b, "\n%s\n%s\n%s\n", begin(n), strings.TrimSpace(body), end(n))
		}
	}
	return b.String()
}

func begin(name string) string { return "<!-- begin " + name + " -->" }
func end(name string) string   { return "<!-- end " + name + " -->" }

func part(document, name string) (body string, ok bool) {
	_, rest, ok := strings.Cut(document, begin(name))
	if !ok {
		return "", false
	}
	body, _, ok = strings.Cut(rest, end(name))
	return body, ok
}
