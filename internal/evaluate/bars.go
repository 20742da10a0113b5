package evaluate

import "math"

// Bars is a plot of groups of bars, one bar of each series in each group.
type Bars struct {
	Title, Y string
	Percent  bool // values are shares of 1
	Groups   []string
	Series   []Bar
}

// Bar is one series: a value for each group. NaN leaves one out.
type Bar struct {
	Name   string
	Values []float64
}

// SVG draws the bars. The same ones give the same bytes.
func (c Bars) SVG() string {
	high := 0.0
	for _, s := range c.Series {
		for _, v := range s.Values {
			if !math.IsNaN(v) {
				high = max(high, v)
			}
		}
	}
	if c.Percent {
		high = max(high, 1)
	}
	y := linear(high)
	d := newDrawing(c.Title, "", c.Y)
	for _, v := range y.ticks {
		d.tickY(py(y.at(v)), Chart{Percent: c.Percent}.label(v))
	}
	group := float64(plotWidth) / float64(max(len(c.Groups), 1))
	width := group * 0.8 / float64(max(len(c.Series), 1))
	for i, name := range c.Groups {
		left := plotLeft + group*(float64(i)+0.1)
		// Names are long: each other one stands lower.
		d.text(left+group*0.4, plotTop+plotHeight+18+float64(i%2)*18, "middle", name)
		for k, s := range c.Series {
			if math.IsNaN(s.Values[i]) {
				continue
			}
			top := py(y.at(s.Values[i]))
			d.printf(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`,
				left+float64(k)*width, top, width*0.92, plotTop+plotHeight-top, color(k))
		}
	}
	d.frame()
	for k, s := range c.Series {
		d.printf(`<rect x="%d" y="%d" width="24" height="10" fill="%s"/>`, legendX, legendY(k)-9, color(k))
		d.text(legendX+32, float64(legendY(k)), "start", s.Name)
	}
	return d.end()
}
