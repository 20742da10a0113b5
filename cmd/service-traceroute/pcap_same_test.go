package main

import (
	"os"
	"path/filepath"
	"testing"
)

// Two names of one file are told, whether or not it exists yet.
func TestSameFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.WriteFile("old", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link("old", "link"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		a, b string
		same bool
	}{
		{"new", "new", true}, {"new", "./new", true}, {"new", filepath.Join(dir, "new"), true}, {"new", "newer", false},
		{"old", filepath.Join(dir, "old"), true}, {"old", "link", true}, {"old", "new", false},
	} {
		if got := sameFile(test.a, test.b); got != test.same {
			t.Errorf("%s and %s: %t", test.a, test.b, got)
		}
	}
}
