package plot

import (
	"image/color"
	"io"
	"math"
)

// HeatMap shows how much there is at each place of a field, by colour. The scale of the colours is logarithmic.
type HeatMap struct {
	Title, Subtitle string
	X, Y            Axis
	Spots           []Spot
	// Scale is the title of the colours, and Show writes the number that one stands for.
	Scale string
	Show  func(weight float64) string
}

// Spot is a weight that lies on the field at X, evenly from Low to High. All three are from 0 to 1; what is outside is moved to the edge.
type Spot struct{ X, Low, High, Weight float64 }

// Sizes of a heat map. Cells are large enough for one that stands alone to be seen.
const (
	heatRight  = 118 // room for the scale
	cellSize   = 5.5
	scaleLeft  = 24 // of the field
	scaleWidth = 14
	heatSteps  = 24 // colours
)

var heatFrame = frame{heatRight}

// The colours, from little to much.
var heat = []color.RGBA{{0xb9, 0xda, 0xf2, 0xff}, {0x5e, 0xa9, 0xdc, 0xff}, {0x1f, 0x6f, 0xb4, 0xff}, {0x16, 0x45, 0x87, 0xff}, {0x10, 0x1d, 0x45, 0xff}}

// heatColor returns a colour for 0 to 1.
func heatColor(at float64) color.RGBA {
	at *= float64(len(heat) - 1)
	i := min(int(at), len(heat)-2)
	mix := func(a, b uint8) uint8 { return uint8(math.Round(float64(a) + (at-float64(i))*(float64(b)-float64(a)))) }
	a, b := heat[i], heat[i+1]
	return color.RGBA{mix(a.R, b.R), mix(a.G, b.G), mix(a.B, b.B), 0xff}
}

// Write writes the heat map.
func (h HeatMap) Write(w io.Writer, f Format) error { return write(w, f, h) }

// cells adds the spots up: rows from the bottom, each from left to right.
func (h HeatMap) cells() (cells [][]float64, least, most float64) {
	columns := int(math.Floor((width - left - heatRight) / cellSize))
	cells = make([][]float64, int(math.Floor((height-top-bottom)/cellSize)))
	for i := range cells {
		cells[i] = make([]float64, columns)
	}
	rows := float64(len(cells))
	for _, s := range h.Spots {
		column := int(min(max(s.X, 0), 1) * float64(columns))
		column = min(column, columns-1)
		low, high := min(max(s.Low, 0), 1)*rows, min(max(s.High, 0), 1)*rows
		first, last := min(int(low), len(cells)-1), min(int(math.Ceil(high)), len(cells))-1
		if last <= first || high <= low {
			cells[first][column] += s.Weight
			continue
		}
		for row := first; row <= last; row++ {
			part := min(high, float64(row+1)) - max(low, float64(row))
			cells[row][column] += s.Weight * part / (high - low)
		}
	}
	least, most = math.Inf(1), 0
	for _, row := range cells {
		for _, v := range row {
			if v > 0 {
				least, most = min(least, v), max(most, v)
			}
		}
	}
	return cells, least, most
}

// heatStep is which of the colours a weight has.
func heatStep(v, least, most float64) int {
	if most <= least {
		return heatSteps - 1
	}
	return min(int(math.Log(v/least)/math.Log(most/least)*heatSteps), heatSteps-1)
}

func (h HeatMap) draw(on canvas) {
	heatFrame.draw(on, h.Title, h.Subtitle, h.X, h.Y)
	cells, least, most := h.cells()
	if most == 0 {
		return
	}
	least = max(least, most/maxHeatRange)
	byStep := make([][]rect, heatSteps)
	for y, row := range cells {
		for x := 0; x < len(row); {
			if row[x] == 0 {
				x++
				continue
			}
			step, from := heatStep(max(row[x], least), least, most), x
			for x < len(row) && row[x] > 0 && heatStep(max(row[x], least), least, most) == step {
				x++
			}
			columns, rows := float64(len(row)), float64(len(cells))
			byStep[step] = append(byStep[step], rect{
				onHalf(heatFrame.place(Point{float64(from) / columns, float64(y+1) / rows})), onHalf(heatFrame.place(Point{float64(x) / columns, float64(y) / rows})),
			})
		}
	}
	for step, list := range byStep {
		if len(list) > 0 {
			on.rects(list, heatColor(float64(step)/(heatSteps-1)))
		}
	}
	h.drawScale(on, least, most)
}

// maxHeatRange is how much more than the palest the darkest colour can stand for.
const maxHeatRange = 1e6

// onHalf moves a point to a pixel of a PNG, so that both formats have the same edges.
func onHalf(p Point) Point {
	return Point{math.Round(p.X*pngScale) / pngScale, math.Round(p.Y*pngScale) / pngScale}
}

// drawScale shows what the colours stand for.
func (h HeatMap) drawScale(on canvas, least, most float64) {
	low, high := heatFrame.place(Point{1, 0}), heatFrame.place(Point{1, 1})
	at := low.X + scaleLeft
	on.text(Point{width - 12, top - 16}, textSize, atEnd, ink, h.Scale)
	if most <= least {
		on.rects([]rect{{onHalf(Point{at, high.Y}), onHalf(Point{at + scaleWidth, high.Y + scaleWidth})}}, heatColor(1))
		on.text(Point{at + scaleWidth + 6, high.Y + scaleWidth - 3}, textSize, atStart, faint, h.Show(most))
		return
	}
	y := func(part float64) float64 { return low.Y + part*(high.Y-low.Y) }
	for step := range heatSteps {
		from, to := y(float64(step+1)/heatSteps), y(float64(step)/heatSteps)
		on.rects([]rect{{onHalf(Point{at, from}), onHalf(Point{at + scaleWidth, to})}}, heatColor(float64(step)/(heatSteps-1)))
	}
	const labels = 4
	for i := range labels + 1 {
		part := float64(i) / labels
		on.text(Point{at + scaleWidth + 6, y(part) + textSize/3}, textSize, atStart, faint, h.Show(least*math.Pow(most/least, part)))
	}
}
