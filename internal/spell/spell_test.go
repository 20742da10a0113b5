package spell

import "testing"

func TestDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"netflix", "netflix", 0}, {"", "abc", 3}, {"netflx", "netflix", 1},
		{"netflix", "netfl1x", 1}, {"nteflix", "netflix", 2}, {"kitten", "sitting", 3},
	} {
		for _, got := range []int{Distance(test.a, test.b), Distance(test.b, test.a)} {
			if got != test.want {
				t.Errorf("%q, %q: %d, want %d", test.a, test.b, got, test.want)
			}
		}
	}
}
