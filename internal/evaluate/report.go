package evaluate

import (
	"fmt"
	"slices"
	"strings"
)

// Table is rows of text below a head.
type Table struct {
	Head []string
	Rows [][]string
}

// Add appends a row. Values are written as fmt does.
func (t *Table) Add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = fmt.Sprint(c)
	}
	t.Rows = append(t.Rows, row)
}

// String is the table as Markdown.
func (t Table) String() string {
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(t.Head)
	rule := make([]string, len(t.Head))
	for i := range rule {
		rule[i] = "---"
	}
	line(rule)
	for _, r := range t.Rows {
		line(r)
	}
	return b.String()
}

// Percent is a share of n as people read it; of nothing it is a dash.
func Percent(hits, n int) string {
	if n == 0 {
		return "-"
	}
	return Share(float64(hits) / float64(n))
}

// Share is a share of 1 as people read it.
func Share(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) }

// String is the interval of a share as people read it.
func (i Interval) String() string { return fmt.Sprintf("%.1f to %.1f %%", 100*i.Low, 100*i.High) }

// Distribution is the share of values up to each of them, to be drawn in steps.
func Distribution(values []float64) (points []Point) {
	sorted := slices.Sorted(slices.Values(values))
	for i, v := range sorted {
		if i+1 < len(sorted) && sorted[i+1] == v {
			continue
		}
		points = append(points, Point{X: v, Y: float64(i+1) / float64(len(sorted))})
	}
	if len(points) > 0 { // from the ground up
		points = slices.Insert(points, 0, Point{X: points[0].X})
	}
	return points
}

// Report is text with its plots.
type Report struct {
	Text  strings.Builder
	Plots []Plot // in the order in which they were put in
}

// Plot is a picture of a report.
type Plot struct{ Name, SVG string }

// Printf appends text.
func (r *Report) Printf(format string, args ...any) { fmt.Fprintf(&r.Text, format, args...) }

// Show appends a picture. The report lies beside a directory that holds its pictures and has
// its name.
func (r *Report) Show(name, caption, svg string) {
	r.Plots = append(r.Plots, Plot{name, svg})
	r.Printf("![%s](evaluation/%s.svg)\n\n", caption, name)
}

// Bytes is all of the report in one piece, to be compared with another.
func (r *Report) Bytes() string {
	var b strings.Builder
	b.WriteString(r.Text.String())
	for _, p := range r.Plots {
		b.WriteString(p.Name + "\n" + p.SVG)
	}
	return b.String()
}
