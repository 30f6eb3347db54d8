package plot

import (
	"bytes"
	"fmt"
	"image/png"
	"testing"
)

var sampleBars = Bars{
	Title: "Random read & <depth>", Subtitle: "ratio", Top: 1.4, Base: 1,
	Show: func(v float64) string { return fmt.Sprintf("%.2f", v) },
	Bars: []Bar{
		{"kernel", 1, 1, 1, false}, {"ours, with a long name indeed", 1.2, 1.1, 1.35, true}, {"floor", 9, 8, 10, false}, {"slow", 0.07, 0.05, 0.08, false},
	},
}

// Bars are as long as their values say, and what is too long ends at the edge, with its value.
func TestBars(t *testing.T) {
	texts, counts := elements(t, written(t, "bars", sampleBars, SVG))
	for _, b := range sampleBars.Bars {
		if !texts[b.Label] || !texts[sampleBars.Show(b.Value)] {
			t.Errorf("%s: its name or value is not there", b.Label)
		}
	}
	if counts["path"] != len(sampleBars.Bars) {
		t.Errorf("%d bars", counts["path"])
	}
	p, err := png.Decode(bytes.NewReader(written(t, "bars", sampleBars, PNG)))
	if err != nil {
		t.Fatal(err)
	}
	field := float64(width - barsLeft - barsRight)
	for i, b := range sampleBars.Bars {
		y := int(pngScale * (barsTop + maxBar*(float64(i)+0.5) - maxBar*barPart/2 + 2)) // above the line of the range
		end := barsLeft + min(b.Value/(1.4*1.02), 1)*field
		c := gray
		if b.Strong {
			c = blue
		}
		if got := p.At(int(pngScale*(end-3)), y); got != c {
			t.Errorf("%s: %v before its end", b.Label, got)
		}
		if got := p.At(int(pngScale*(end+3)), y); got == c {
			t.Errorf("%s goes on behind its end", b.Label)
		}
	}
}

func TestNoBars(t *testing.T) {
	if _, counts := elements(t, written(t, "none", Bars{Title: "x"}, SVG)); counts["path"] != 0 {
		t.Errorf("%v", counts)
	}
	var b bytes.Buffer
	if err := sampleBars.Write(&b, "gif"); err == nil {
		t.Error("a format that there is not")
	}
}

func TestStep(t *testing.T) {
	for top, want := range map[float64]float64{1.4: 0.5, 1: 0.2, 0.9: 0.2, 3.1: 1, 12: 2, 40: 10, 0.07: 0.02} {
		if got := step(top); got < want*0.999 || got > want*1.001 {
			t.Errorf("%g: %g, want %g", top, got, want)
		}
	}
}
