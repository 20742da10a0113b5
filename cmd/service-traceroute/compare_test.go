package main

import (
	"strings"
	"testing"
	"time"

	"servicetraceroute"
)

// TestSiblingsHeed: what trace's flags say of patience holds for siblings where somebody says it.
func TestSiblingsHeed(t *testing.T) {
	for args, want := range map[string]servicetraceroute.CompareConfig{
		"":                              {Siblings: 96, Confidence: 0.95},
		"--timeout 3s":                  {Siblings: 96, Confidence: 0.95, Timeout: 3 * time.Second},
		"--max-silent 7 --siblings 30":  {Siblings: 30, Confidence: 0.95, MaxSilent: 7},
		"--max-silent 0 --timeout 2s":   {Siblings: 96, Confidence: 0.95, MaxSilent: -1, Timeout: 2 * time.Second},
		"--confidence 0.9 --max-ttl 30": {Siblings: 96, Confidence: 0.9},
	} {
		var f compareFlags
		if err := f.command().ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if got := f.comparison(); got != want {
			t.Errorf("%q: %+v, want %+v", args, got, want)
		}
	}
}
