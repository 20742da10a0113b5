package trigger

import (
	"errors"
	"strings"
	"testing"

	"servicetraceroute/internal/health"
)

// Expressions decide by the flow's state.
func TestHurts(t *testing.T) {
	s := health.State{Retransmits: 5, RTT: 60, RTTMin: 20, RTTFactor: 3, Stalled: 10}
	for text, want := range map[string]bool{
		"retransmits >= 5":                          true,
		"retransmits > 5":                           false,
		"rtt_factor >= 3 && rtt_ms > 50":            true,
		"rtt_factor > 3 || stalled_ms > 2000":       false,
		"not (stalled_ms > 2000)":                   true,
		"rtt_ms - rtt_min_ms == 40":                 true,
		"goodput_in < 1e6 and dup_acks == 0":        true,
		"goodput_in / goodput_out > 1 || rtt_ms>59": true,
	} {
		e, err := Compile(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if e.Hurts(s) != want || e.String() != text {
			t.Errorf("%s is not %v", text, want)
		}
	}
}

// What is wrong is said, with a hint.
func TestCompileErrors(t *testing.T) {
	for text, want := range map[string][2]string{
		"":                                {"empty", "for example"},
		"retransmit > 1":                  {"unknown field retransmit", "did you mean retransmits?"},
		"retransmits":                     {"bool", "for example"},
		"retransmits >":                   {"at character", "for example"},
		"len('x') > 1":                    {"only numbers", "for example"},
		"rtt_ms in [1]":                   {"only numbers", "for example"},
		"xyzzy > 1":                       {"unknown field xyzzy", "fields: dup_acks"},
		strings.Repeat("1+", 600):         {"bytes long", "for example"},
		strings.Repeat("!", 300) + "true": {"more than", "for example"},
	} {
		_, err := Compile(text)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(e.Error(), want[0]) || !strings.Contains(e.Hint, want[1]) {
			t.Errorf("%.30q: %v (%+v)", text, err, e)
		}
	}
}

// Whatever users write is compiled or refused with a hint, and asking it ends.
func FuzzCompile(f *testing.F) {
	for _, text := range []string{
		"retransmits >= 5 || rtt_factor > 3 && rtt_ms > 50", "not (stalled_ms / 0 > 1e9)", "goodput_in-goodput_out == -1", "rtt_ms ?? 1", "((", `"\x00`,
	} {
		f.Add(text, 5, 60.0)
	}
	f.Fuzz(func(t *testing.T, text string, retransmits int, rtt float64) {
		e, err := Compile(text)
		var why *Error
		switch {
		case err == nil:
			e.Hurts(health.State{Retransmits: retransmits, RTT: rtt})
		case !errors.As(err, &why) || why.Hint == "" || strings.HasPrefix(why.Why, "cannot be read"):
			t.Errorf("%q: %v", text, err)
		}
	})
}
