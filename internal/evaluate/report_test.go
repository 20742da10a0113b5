package evaluate

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what it was; -update writes it anew", name)
	}
}

// wellFormed reads XML to its end.
func wellFormed(t *testing.T, text string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestChart(t *testing.T) {
	c := Chart{
		Title: "a < b & c", X: "per cent", Y: "share", YMax: 1, Percent: true, Bands: []Band{{"a band", Interval{0.4, 0.5}}},
		Series: []Series{
			{Name: "a line", Points: []Point{{X: 0, Y: 0}, {X: 45, Y: 0.8}}},
			{Name: "dashed", Color: 1, Dashed: true, Points: []Point{{X: 0, Y: 0.1}, {X: 45, Y: 0.5}}},
			{Name: "marks", Color: 2, Marks: true, Points: []Point{{X: 20, Y: 0.5, Bar: &Interval{0.4, 0.6}}}},
		},
	}
	got := c.SVG()
	wellFormed(t, got)
	golden(t, "chart.svg", got)
	if got != c.SVG() {
		t.Error("the same chart came out differently")
	}
}

func TestChartLog(t *testing.T) {
	c := Chart{Title: "spread", X: "ms", Y: "share", LogX: true, YMax: 1, Percent: true, Series: []Series{{Name: "steps", Steps: true, Points: Distribution([]float64{3, 30, 30, 3000})}}}
	got := c.SVG()
	wellFormed(t, got)
	golden(t, "log.svg", got)
	wellFormed(t, Chart{LogX: true}.SVG()) // of nothing, nothing breaks
	if strings.Contains(Chart{LogX: true}.SVG(), "NaN") {
		t.Error("an empty chart has no places")
	}
}

func TestBars(t *testing.T) {
	b := Bars{Title: "bars", Y: "share", Percent: true, Groups: []string{"one", "two"}, Series: []Bar{{"first", []float64{0.5, 1}}, {"second", []float64{math.NaN(), 0.25}}}}
	got := b.SVG()
	wellFormed(t, got)
	golden(t, "bars.svg", got)
}

// Ticks are round, few, and reach beyond the highest value.
func TestAxis(t *testing.T) {
	for _, high := range []float64{0, 0.03, 1, 7, 10, 99, 100, 215, 1234} {
		a := linear(high)
		if n := len(a.ticks); n < 3 || n > 8 || a.high < high || a.ticks[n-1] < a.high-1e-9 {
			t.Errorf("%v: up to %v, %v", high, a.high, a.ticks)
		}
	}
	if a := decades(2, 3000); a.low != 1 || a.high != 10000 || len(a.ticks) != 5 {
		t.Errorf("%+v", a)
	}
	for v, want := range map[float64]string{0.05: "0.05", 20: "20", 10000: "10 k", 2.5e6: "2.5 M", 1e9: "1 G"} {
		if got := number(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

func TestDistribution(t *testing.T) {
	got := Distribution([]float64{2, 1, 2, 4})
	if want := []Point{{X: 1}, {X: 1, Y: 0.25}, {X: 2, Y: 0.75}, {X: 4, Y: 1}}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if len(Distribution(nil)) != 0 {
		t.Error("a distribution of nothing")
	}
}

func TestReport(t *testing.T) {
	table := Table{Head: []string{"a", "b"}}
	table.Add(1, "x")
	table.Add(Interval{0.1, 0.25}, Percent(1, 3))
	if got, want := table.String(), "| a | b |\n| --- | --- |\n| 1 | x |\n| 10.0 to 25.0 % | 33.3 % |\n"; got != want {
		t.Errorf("%s", got)
	}
	if Percent(0, 0) != "-" {
		t.Error("a share of nothing")
	}
	var r Report
	r.Printf("text %d\n", 1)
	r.Show("plot", "a plot", "<svg/>")
	if got, want := r.Bytes(), "text 1\n![a plot](evaluation/plot.svg)\n\nplot\n<svg/>"; got != want {
		t.Errorf("%q", got)
	}
}

// One part is written anew, the others stay, in the order of the names.
func TestPut(t *testing.T) {
	names := []string{"one", "two"}
	doc := Put("", "head", names, "two", "second\n")
	doc = Put(doc, "head", names, "one", "first")
	want := "head\n\n<!-- begin one -->\nfirst\n<!-- end one -->\n\n<!-- begin two -->\nsecond\n<!-- end two -->\n"
	if doc != want {
		t.Errorf("%s", doc)
	}
	if again := Put(doc, "head", names, "two", "second"); again != want {
		t.Errorf("the same again: %s", again)
	}
	if other := Put(doc, "head", names, "two", "new"); !strings.Contains(other, "first") || strings.Contains(other, "second") || !strings.Contains(other, "new") {
		t.Errorf("%s", other)
	}
}
