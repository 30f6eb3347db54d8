// Package plot draws charts as SVG and PNG. It has what the program's charts need, and no more: the libraries for plots that there are add half as much again to a
// program that lies in every initramfs.
package plot

import (
	"errors"
	"fmt"
	"image/color"
	"io"
	"path/filepath"
	"strings"
)

// Format is how a chart is written.
type Format string

// Formats.
const (
	SVG Format = "svg"
	PNG Format = "png"
)

// ErrFormat is wrapped by the error for a file whose name does not end as one of the formats.
var ErrFormat = errors.New("neither .svg nor .png")

// FormatOf returns the format that the name of a file ends with.
func FormatOf(path string) (Format, error) {
	suffix := filepath.Ext(path)
	for _, f := range []Format{SVG, PNG} {
		if strings.EqualFold(suffix, "."+string(f)) {
			return f, nil
		}
	}
	return "", fmt.Errorf("%q ends with %w", filepath.Base(path), ErrFormat)
}

// Tick is a place on an axis, from 0 at its beginning to 1 at its end, and what is written there.
type Tick struct {
	At    float64
	Label string
}

// Axis is one side of a chart.
type Axis struct {
	Title string
	Ticks []Tick
}

// Point is a place in a chart, each of its numbers from 0 to 1, from the left and from the bottom.
type Point struct{ X, Y float64 }

// Chart is one line over a field, and marks on it.
type Chart struct {
	Title, Subtitle string
	X, Y            Axis
	Line            []Point // from left to right, with a dot on each
	Mark            *Mark   // nil: none
}

// Mark is a vertical line with a text beside it, and a ring on it.
type Mark struct {
	Point
	Label string
}

// Sizes, in pixels of an SVG. A PNG has pngScale as many in each direction.
const (
	width, height         = 800, 500
	left, right           = 80, 30 // beside the field of a chart
	top, bottom           = 92, 62 // above and below it
	titleSize, textSize   = 17, 12
	lineWidth, thinWidth  = 2.5, 1
	dotRadius, ringRadius = 4, 7
)

var (
	ink   = color.RGBA{0x22, 0x2b, 0x35, 0xff}
	faint = color.RGBA{0x5f, 0x6b, 0x77, 0xff}
	grid  = color.RGBA{0xe1, 0xe5, 0xea, 0xff}
	blue  = color.RGBA{0x1f, 0x6f, 0xb4, 0xff}
	amber = color.RGBA{0xc4, 0x5a, 0x0c, 0xff}
)

// anchor says which part of a text is at its place.
type anchor int

const (
	atStart anchor = iota
	atMiddle
	atEnd
)

// canvas is what is drawn on. Coordinates count from the upper left.
type canvas interface {
	line(points []Point, width float64, c color.RGBA)
	rects(list []rect, c color.RGBA)
	disc(at Point, radius float64, c color.RGBA)
	text(at Point, size float64, a anchor, c color.RGBA, text string)
}

// rect is one with sides along the axes; it goes from the upper left to the lower right.
type rect struct{ from, to Point }

// drawing is what can be drawn.
type drawing interface{ draw(on canvas) }

// Write writes the chart.
func (c Chart) Write(w io.Writer, f Format) error { return write(w, f, c) }

func write(w io.Writer, f Format, d drawing) error {
	switch f {
	case SVG:
		return writeSVG(w, d)
	case PNG:
		return writePNG(w, d)
	}
	return fmt.Errorf("write plot as %q: %w", f, ErrFormat)
}

// frame is what is around a field: so much room is to the right of it.
type frame struct{ right float64 }

// place returns where a point of the field is on the canvas.
func (f frame) place(p Point) Point {
	return Point{left + p.X*(width-left-f.right), top + (1-p.Y)*(height-top-bottom)}
}

func (f frame) draw(on canvas, title, subtitle string, x, y Axis) {
	on.text(Point{left, 32}, titleSize, atStart, ink, title)
	on.text(Point{left, 54}, textSize, atStart, faint, subtitle)
	for _, t := range y.Ticks {
		from, to := f.place(Point{0, t.At}), f.place(Point{1, t.At})
		on.line([]Point{from, to}, thinWidth, grid)
		on.text(Point{from.X - 8, from.Y + textSize/3}, textSize, atEnd, faint, t.Label)
	}
	for _, t := range x.Ticks {
		at := f.place(Point{t.At, 0})
		on.line([]Point{at, {at.X, at.Y + 5}}, thinWidth, faint)
		on.text(Point{at.X, at.Y + 20}, textSize, atMiddle, faint, t.Label)
	}
	on.line([]Point{f.place(Point{0, 0}), f.place(Point{1, 0})}, thinWidth, faint)
	on.text(Point{f.place(Point{0.5, 0}).X, height - 14}, textSize, atMiddle, ink, x.Title)
	on.text(Point{left, top - 9}, textSize, atStart, ink, y.Title)
}

var chartFrame = frame{right}

func (c Chart) draw(on canvas) {
	place := chartFrame.place
	chartFrame.draw(on, c.Title, c.Subtitle, c.X, c.Y)
	if c.Mark != nil {
		at := place(Point{c.Mark.X, 1})
		on.line([]Point{at, place(Point{c.Mark.X, 0})}, thinWidth, amber)
	}
	var line []Point
	for _, p := range c.Line {
		line = append(line, place(p))
	}
	on.line(line, lineWidth, blue)
	for _, p := range line {
		on.disc(p, dotRadius, blue)
	}
	c.drawMark(on)
}

func (c Chart) drawMark(on canvas) {
	if c.Mark == nil {
		return
	}
	place := chartFrame.place
	at := place(c.Mark.Point)
	on.disc(at, ringRadius, amber)
	on.disc(at, ringRadius-2.5, color.RGBA{0xff, 0xff, 0xff, 0xff})
	label, a := Point{place(Point{c.Mark.X, 1}).X + 8, top + 14}, atStart
	if c.Mark.X > 0.6 {
		label.X, a = label.X-16, atEnd
	}
	on.text(label, textSize, a, amber, c.Mark.Label)
}
