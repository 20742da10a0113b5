// Package spell measures how far a word that somebody typed is from one that
// exists, for "did you mean". It knows no words itself.
package spell

import "strings"

// Distance is the Levenshtein distance of two words: how many bytes have to be
// changed, added or left out to make one of the other.
func Distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Nearest returns the word that needs the fewest edits, "" when none is near.
func Nearest(word string, words []string) string {
	for _, w := range words {
		if len(word) > 2 && strings.HasPrefix(w, word) {
			return w // cut short
		}
	}
	best, least := "", max(2, len(word)/3)+1
	for _, w := range words {
		if d := Distance(word, w); d < least {
			best, least = w, d
		}
	}
	return best
}
