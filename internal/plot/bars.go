package plot

import (
	"image/color"
	"io"
	"math"
)

// Bars compares values by horizontal bars, one below the other.
type Bars struct {
	Title, Subtitle string
	Bars            []Bar
	Top             float64 // value at the right edge, at least; what is larger is cut off there
	Base            float64 // value with a line through all bars; 0: none
	Show            func(value float64) string
}

// Bar is one of them, with the range that its value is from.
type Bar struct {
	Label            string
	Value, Low, High float64
	Strong           bool // in the colour that stands out
}

// Sizes of bars. They share the height of the field.
const (
	barsLeft   = 250 // for the labels
	barsRight  = 70  // for the values
	barsTop    = 72
	barsBottom = 40
	maxBar     = 26 // with the room between two
	barPart    = 0.62
)

var gray = color.RGBA{0xa9, 0xb4, 0xbf, 0xff}

// Write writes the bars.
func (b Bars) Write(w io.Writer, f Format) error { return write(w, f, b) }

// step is the least round number of which about five make up the range.
func step(top float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(top/5)))
	for _, n := range []float64{1, 2, 5} {
		if top/(n*unit) <= 6 {
			return n * unit
		}
	}
	return 10 * unit
}

func (b Bars) draw(on canvas) {
	const textLeft = 24
	on.text(Point{textLeft, 30}, titleSize, atStart, ink, b.Title)
	on.text(Point{textLeft, 50}, textSize, atStart, faint, b.Subtitle)
	top := math.Max(b.Top, b.Base)
	if len(b.Bars) == 0 || top <= 0 {
		return
	}
	top *= 1.02
	x := func(v float64) float64 { return barsLeft + math.Min(v/top, 1)*(width-barsLeft-barsRight) }
	row := math.Min(maxBar, float64(height-barsTop-barsBottom)/float64(len(b.Bars)))
	foot := barsTop + row*float64(len(b.Bars))
	for v, s := 0.0, step(top); v <= top; v += s {
		on.line([]Point{{x(v), barsTop}, {x(v), foot}}, thinWidth, grid)
		on.text(Point{x(v), foot + 18}, textSize, atMiddle, faint, b.Show(v))
	}
	for i, bar := range b.Bars {
		middle := barsTop + row*(float64(i)+0.5)
		b.drawBar(on, bar, x, middle, row*barPart/2)
		label := Point{barsLeft - 8, middle + textSize/3}
		on.text(label, textSize, atEnd, ink, bar.Label)
	}
	if b.Base > 0 {
		on.line([]Point{{x(b.Base), barsTop - 4}, {x(b.Base), foot}}, thinWidth, amber)
	}
}

// drawBar draws a bar around a height, with its range as a line and its value behind the end of both.
func (b Bars) drawBar(on canvas, bar Bar, x func(float64) float64, middle, half float64) {
	c := gray
	if bar.Strong {
		c = blue
	}
	on.rects([]rect{{onHalf(Point{barsLeft, middle - half}), onHalf(Point{x(bar.Value), middle + half})}}, c)
	on.line([]Point{{x(bar.Low), middle}, {x(bar.High), middle}}, thinWidth, ink)
	for _, v := range []float64{bar.Low, bar.High} {
		on.line([]Point{{x(v), middle - half/2}, {x(v), middle + half/2}}, thinWidth, ink)
	}
	on.text(Point{x(math.Max(bar.Value, bar.High)) + 8, middle + textSize/3}, textSize, atStart, faint, b.Show(bar.Value))
}
