package evaluate

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Point is a value of a series, with an interval where there is one.
type Point struct {
	X, Y float64
	Bar  *Interval // drawn as an error bar
}

// Series is one line of a chart, or its marks alone.
type Series struct {
	Name   string
	Points []Point
	Color  int  // an index of the palette: lines that belong together have the same
	Dashed bool // without: a full line
	Marks  bool // without a line
	Steps  bool // a distribution: level until the next point
}

// Band is a range of Y that is pointed out.
type Band struct {
	Name string
	Interval
}

// Chart is a plot of series over two axes. LogX needs values above 0.
type Chart struct {
	Title, X, Y string
	LogX        bool
	YMax        float64 // 0: from the data
	Percent     bool    // Y is a share of 1
	Bands       []Band
	Series      []Series
}

// The measures of a plot, in pixels. The legend stands beside the plot, where it covers
// nothing.
const (
	plotLeft, plotTop     = 70, 40
	plotWidth, plotHeight = 520, 320
	legendWidth           = 270
	chartWidth            = plotLeft + plotWidth + legendWidth
	chartHeight           = plotTop + plotHeight + 60
)

// palette can be told apart by those who see few colours (Okabe and Ito).
var palette = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"}

func color(i int) string { return palette[i%len(palette)] }

// axis maps values to pixels.
type axis struct {
	low, high float64
	log       bool
	ticks     []float64
}

func (a axis) at(v float64) float64 {
	if a.log {
		return math.Log(v/a.low) / math.Log(a.high/a.low)
	}
	return (v - a.low) / (a.high - a.low)
}

// linear is an axis from 0 to at least high, with about six ticks at round values.
func linear(high float64) axis {
	if high <= 0 {
		high = 1
	}
	step := math.Pow(10, math.Floor(math.Log10(high/5)))
	for _, m := range []float64{1, 2, 5, 10} {
		if high/(m*step) <= 6 {
			step *= m
			break
		}
	}
	a := axis{high: math.Ceil(high/step-1e-9) * step}
	for i := 0; float64(i)*step <= a.high+step/2; i++ {
		a.ticks = append(a.ticks, float64(i)*step)
	}
	return a
}

// decades is a logarithmic axis from a power of ten to another.
func decades(low, high float64) axis {
	from, to := math.Floor(math.Log10(low)+1e-9), math.Ceil(math.Log10(high)-1e-9)
	if from == to {
		to++
	}
	a := axis{low: math.Pow(10, from), high: math.Pow(10, to), log: true}
	for e := from; e <= to; e++ {
		a.ticks = append(a.ticks, math.Pow(10, e))
	}
	return a
}

// SVG draws the chart. The same chart gives the same bytes.
func (c Chart) SVG() string {
	lowX, highX, highY := math.Inf(1), 0.0, c.YMax
	for _, s := range c.Series {
		for _, p := range s.Points {
			lowX, highX = min(lowX, p.X), max(highX, p.X)
			if c.YMax == 0 {
				highY = max(highY, p.Y)
			}
		}
	}
	x, y := linear(highX), linear(highY)
	if c.LogX {
		x = decades(max(lowX, 1e-9), max(highX, 1e-9))
	}
	d := newDrawing(c.Title, c.X, c.Y)
	for _, b := range c.Bands {
		top, bottom := py(y.at(min(b.High, y.high))), py(y.at(b.Low))
		d.printf(`<rect x="%d" y="%.1f" width="%d" height="%.1f" fill="#f0e442" fill-opacity="0.45"/>`, plotLeft, top, plotWidth, bottom-top)
	}
	for _, v := range x.ticks {
		d.tickX(px(x.at(v)), number(v))
	}
	for _, v := range y.ticks {
		d.tickY(py(y.at(v)), c.label(v))
	}
	for _, s := range c.Series {
		d.series(s, x, y)
	}
	d.frame()
	row := 0
	for _, s := range c.Series {
		d.legend(row, s)
		row++
	}
	for _, b := range c.Bands {
		d.printf(`<rect x="%d" y="%d" width="24" height="10" fill="#f0e442" fill-opacity="0.45" stroke="#888"/>`, legendX, legendY(row)-9)
		d.text(legendX+32, float64(legendY(row)), "start", b.Name)
		row++
	}
	return d.end()
}

func (c Chart) label(v float64) string {
	if c.Percent {
		return number(v*100) + " %"
	}
	return number(v)
}

// number is a value as people write it.
func number(v float64) string {
	switch {
	case v >= 1e9:
		return fmt.Sprintf("%g G", math.Round(v/1e9*1e6)/1e6)
	case v >= 1e6:
		return fmt.Sprintf("%g M", math.Round(v/1e6*1e6)/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%g k", math.Round(v/1e3*1e6)/1e6)
	}
	return fmt.Sprintf("%g", math.Round(v*1e6)/1e6)
}

func px(share float64) float64 { return plotLeft + share*plotWidth }
func py(share float64) float64 { return plotTop + (1-share)*plotHeight }

const legendX = plotLeft + plotWidth + 20

func legendY(row int) int { return plotTop + 16 + 22*row }

// drawing is an SVG under way.
type drawing struct{ b strings.Builder }

func newDrawing(title, x, y string) *drawing {
	d := &drawing{}
	d.printf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`,
		chartWidth, chartHeight, chartWidth, chartHeight)
	d.printf(`<rect width="%d" height="%d" fill="#ffffff"/>`, chartWidth, chartHeight)
	d.printf(`<text x="%d" y="22" font-size="15" font-weight="bold">%s</text>`, plotLeft, html.EscapeString(title))
	d.text(plotLeft+plotWidth/2, chartHeight-14, "middle", x)
	d.printf(`<text transform="translate(18 %d) rotate(-90)" text-anchor="middle">%s</text>`, plotTop+plotHeight/2, html.EscapeString(y))
	return d
}

func (d *drawing) printf(format string, args ...any) { fmt.Fprintf(&d.b, format+"\n", args...) }

func (d *drawing) text(x, y float64, anchor, text string) {
	d.printf(`<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x, y, anchor, html.EscapeString(text))
}

func (d *drawing) tickX(x float64, text string) {
	d.printf(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#dddddd"/>`, x, plotTop, x, plotTop+plotHeight)
	d.text(x, plotTop+plotHeight+18, "middle", text)
}

func (d *drawing) tickY(y float64, text string) {
	d.printf(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#dddddd"/>`, plotLeft, y, plotLeft+plotWidth, y)
	d.text(plotLeft-6, y+4, "end", text)
}

func (d *drawing) frame() {
	d.printf(`<rect x="%d" y="%d" width="%d" height="%d" fill="none" stroke="#444444"/>`, plotLeft, plotTop, plotWidth, plotHeight)
}

func (d *drawing) series(s Series, x, y axis) {
	points := slices.Clone(s.Points)
	var line []string
	for i, p := range points {
		if s.Steps && i > 0 {
			line = append(line, fmt.Sprintf("%.1f,%.1f", px(x.at(p.X)), py(y.at(points[i-1].Y))))
		}
		line = append(line, fmt.Sprintf("%.1f,%.1f", px(x.at(p.X)), py(y.at(p.Y))))
	}
	if !s.Marks {
		d.printf(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s/>`, strings.Join(line, " "), color(s.Color), dashes(s))
	}
	for _, p := range points {
		if !s.Marks && p.Bar == nil {
			continue
		}
		if p.Bar != nil {
			d.printf(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`,
				px(x.at(p.X)), py(y.at(p.Bar.Low)), px(x.at(p.X)), py(y.at(min(p.Bar.High, y.high))), color(s.Color))
		}
		d.printf(`<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`, px(x.at(p.X)), py(y.at(p.Y)), color(s.Color))
	}
}

func dashes(s Series) string {
	if s.Dashed {
		return ` stroke-dasharray="6 4"`
	}
	return ""
}

func (d *drawing) legend(row int, s Series) {
	y := legendY(row)
	if s.Marks {
		d.printf(`<circle cx="%d" cy="%d" r="4" fill="%s"/>`, legendX+12, y-4, color(s.Color))
	} else {
		d.printf(`<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s" stroke-width="2"%s/>`, legendX, y-4, legendX+24, y-4, color(s.Color), dashes(s))
	}
	d.text(legendX+32, float64(y), "start", s.Name)
}

func (d *drawing) end() string {
	d.b.WriteString("</svg>\n")
	return d.b.String()
}
