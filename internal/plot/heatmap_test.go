package plot

import (
	"bytes"
	"fmt"
	"image/color"
	"image/png"
	"math"
	"math/rand/v2"
	"testing"
)

// bootLike is what the reads of a boot look like: streams, scattered ones, and a pause.
func bootLike(n int, seed uint64) HeatMap {
	rng := rand.New(rand.NewPCG(seed, seed))
	h := HeatMap{
		Title: "What web1 read, by time & offset", Subtitle: fmt.Sprintf("%d reads, 1.2 GiB, of registry.example/debian:12.1", n), Scale: "read in a cell",
		Show: func(w float64) string { return fmt.Sprintf("%.0f KiB", w/1024) },
		X:    Axis{"seconds since the first read", []Tick{{0, "0 s"}, {0.25, "5 s"}, {0.5, "10 s"}, {0.75, "15 s"}, {1, "20 s"}}},
		Y:    Axis{"offset", []Tick{{0, "0 B"}, {0.25, "512 MiB"}, {0.5, "1.0 GiB"}, {0.75, "1.5 GiB"}, {1, "2.0 GiB"}}},
	}
	add := func(x, low, size float64) {
		h.Spots = append(h.Spots, Spot{x, low, low + size, size * (2 << 30)})
	}
	for i := range n {
		part := float64(i) / float64(n)
		switch x := part * 0.9; {
		case part < 0.3:
			add(x, part/3+0.1, 1e-4)
		case part < 0.5:
			add(x, rng.Float64(), 1e-5)
		case part < 0.6:
			add(0.55+part/20, 0.8+rng.Float64()*0.01, 1e-4)
		default:
			add(x+0.1, math.Mod(part*3, 0.5), 5e-4)
		}
	}
	return h
}

func TestHeatMapCells(t *testing.T) {
	h := HeatMap{Spots: []Spot{{0, 0, 0, 1}, {1, 1, 1, 2}, {2, -1, 3, 60}, {0.5, 0.25, 0.75, 30}, {0.5, 0.5, 0.5, 0}}}
	cells, least, most := h.cells()
	sum := 0.0
	for _, row := range cells {
		for _, v := range row {
			sum += v
		}
	}
	rows, columns := len(cells), len(cells[0])
	if math.Abs(sum-93) > 1e-9 || cells[0][0] != 1 || math.Abs(cells[rows-1][columns-1]-(2+60/float64(rows))) > 1e-9 {
		t.Errorf("%g, %g, %g", sum, cells[0][0], cells[rows-1][columns-1])
	}
	if math.Abs(least-30/float64(rows)) > 1e-9 || most != cells[rows-1][columns-1] { // half a cell, at either end of the fourth
		t.Errorf("from %g to %g", least, most)
	}
	if got := cells[rows/2][columns/2]; math.Abs(got-30/(float64(rows)/2)) > 1e-9 {
		t.Errorf("in the middle: %g", got)
	}
}

// A PNG has the colours of much and of little where they are, nothing where there is nothing, and an SVG has the same.
func TestHeatMap(t *testing.T) {
	h := bootLike(3, 1)
	h.Spots = []Spot{{0.1, 0.2, 0.2, 1 << 20}, {0.6, 0.7, 0.7, 1 << 10}, {0.8, 0.3, 0.3, 1 << 15}}
	p, err := png.Decode(bytes.NewReader(written(t, "heat-few", h, PNG)))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range h.Spots {
		want := heatColor(float64(heatStep(s.Weight, 1<<10, 1<<20)) / (heatSteps - 1))
		cells, _, _ := h.cells()
		rows, columns := float64(len(cells)), float64(len(cells[0]))
		at := func(up float64) color.Color {
			q := heatFrame.place(Point{(math.Floor(s.X*columns) + 0.5) / columns, (math.Floor(s.Low*rows) + 0.5 + up) / rows})
			return p.At(int(q.X*pngScale), int(q.Y*pngScale))
		}
		if at(0) != want || at(1) != (color.RGBA{0xff, 0xff, 0xff, 0xff}) {
			t.Errorf("%+v is %v, want %v; above it is %v", s, at(0), want, at(1))
		}
	}
	texts, counts := elements(t, written(t, "heat-few", h, SVG))
	for _, want := range []string{h.Title, h.Subtitle, "offset", "1.0 GiB", "15 s", h.Scale, "1 KiB", "32 KiB", "1024 KiB"} {
		if !texts[want] {
			t.Errorf("there is no %q", want)
		}
	}
	if counts["path"] != len(h.Spots)+heatSteps {
		t.Errorf("%d paths", counts["path"])
	}
}

// Whatever there is to draw, it can be.
func TestHeatMaps(t *testing.T) {
	one := bootLike(0, 1)
	one.Spots = []Spot{{0.5, 0.5, 0.5, 4096}}
	wide := bootLike(0, 1)
	wide.Spots = []Spot{{0.5, 0.5, 0.5, 1}, {0.7, 0.5, 0.5, 1e12}}
	for name, h := range map[string]HeatMap{"none": bootLike(0, 1), "one": one, "wide": wide, "some": bootLike(300, 2), "many": bootLike(200_000, 3)} {
		for _, f := range []Format{SVG, PNG} {
			if got := written(t, "heat-"+name, h, f); len(got) < 2000 || len(got) > 1<<20 {
				t.Errorf("%s as %s has %d bytes", name, f, len(got))
			}
		}
	}
}
