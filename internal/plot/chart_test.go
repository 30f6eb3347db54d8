package plot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"image"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var keep = flag.String("keep", "", "write the charts to this directory, to look at")

var sample = Chart{
	Title: "Misses & <sizes>", Subtitle: "s3fifo, 1,234,567 requests",
	X: Axis{"threshold", []Tick{{0, "256 MiB"}, {0.5, "2 GiB"}, {1, "16 GiB"}}}, Y: Axis{"misses", []Tick{{0, "0 %"}, {0.5, "20 %"}, {1, "40 %"}}},
	Line: []Point{{0, 0.9}, {0.25, 0.7}, {0.5, 0.4}, {0.75, 0.3}, {1, 0.28}}, Mark: &Mark{Point{0.5, 0.4}, "now: 2 GiB, 16.0 % measured"},
}

// written is what a drawing is written as.
func written(t *testing.T, name string, d drawing, f Format) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b, f, d); err != nil {
		t.Fatal(err)
	}
	if *keep != "" {
		if err := os.WriteFile(filepath.Join(*keep, name+"."+string(f)), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// elements returns the texts of an SVG, and how many elements it has of each name.
func elements(t *testing.T, svg []byte) (texts map[string]bool, counts map[string]int) {
	t.Helper()
	texts, counts = map[string]bool{}, map[string]int{}
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return texts, counts
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.CharData:
			texts[string(token)] = true
		case xml.StartElement:
			counts[token.Name.Local]++
		}
	}
}

// An SVG is XML that has every text, as it is.
func TestSVG(t *testing.T) {
	texts, counts := elements(t, written(t, "chart", sample, SVG))
	for _, want := range []string{sample.Title, sample.Subtitle, "threshold", "misses", "2 GiB", "20 %", sample.Mark.Label} {
		if !texts[want] {
			t.Errorf("there is no %q", want)
		}
	}
	if counts["circle"] != len(sample.Line)+2 {
		t.Errorf("%d discs", counts["circle"])
	}
}

// A PNG has the line where the points are, and something where texts are.
func TestPNG(t *testing.T) {
	p, err := png.Decode(bytes.NewReader(written(t, "chart", sample, PNG)))
	if err != nil {
		t.Fatal(err)
	}
	if p.Bounds() != image.Rect(0, 0, pngScale*width, pngScale*height) {
		t.Errorf("%v", p.Bounds())
	}
	for i, at := range sample.Line {
		want := blue
		if i == 2 { // the mark is on it
			want.R, want.G, want.B = 0xff, 0xff, 0xff
		}
		if got := at; p.At(int(chartFrame.place(got).X*pngScale), int(chartFrame.place(got).Y*pngScale)) != want {
			t.Errorf("point %d is %v", i, p.At(int(chartFrame.place(got).X*pngScale), int(chartFrame.place(got).Y*pngScale)))
		}
	}
	inked := 0
	for x := pngScale * left; x < pngScale*width/2; x++ {
		for y := pngScale * 15; y < pngScale*32; y++ {
			if r, _, _, _ := p.At(x, y).RGBA(); r < 0x8000 {
				inked++
			}
		}
	}
	if inked < 500 {
		t.Errorf("the title has %d dark pixels", inked)
	}
}

func TestFormats(t *testing.T) {
	for path, want := range map[string]Format{"a.svg": SVG, "b/c.d.PNG": PNG, "a.pdf": "", "svg": "", "png/x": ""} {
		got, err := FormatOf(path)
		if got != want || (err != nil) != (want == "") || err != nil && (!errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), filepath.Base(path))) {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if err := sample.Write(io.Discard, "gif"); !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}
