package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice/cache"
)

var keepPlots = flag.String("keep-plots", "", "write plots to this directory, to look at")

// curveOf is a curve with 1 GiB of memory, of which points have so many misses in a thousand, from 512 MiB on and each with twice the memory.
func curveOf(measured float64, permille ...float64) cache.Curve {
	v := cache.Curve{
		Policy: cache.S3FIFO, ThresholdBytes: 1 << 30, Since: time.Unix(1e9, 0), Requests: 1_234_567, ReadBytes: 4 << 30, MissRatio: measured, SampledOneOf: 4,
	}
	for i, m := range permille {
		v.Points = append(v.Points, cache.CurvePoint{ThresholdBytes: 512 << 20 << i, MissRatio: m / 1000, FetchedBytes: uint64(m * (1 << 30) / 100)})
	}
	return v
}

func TestAdvice(t *testing.T) {
	for _, c := range []struct {
		v    cache.Curve
		want string
	}{
		{curveOf(0.2, 300, 200, 120, 50, 45), "4.0 GiB would miss 5.0 %"},
		{curveOf(0.2, 203, 200, 195, 192), "512 MiB would miss hardly more"},
		{curveOf(0.2, 300, 200, 195, 192), "the threshold is right"},
		{curveOf(0, 0, 0, 0), "coppice cache set --memory 512M"},
	} {
		if got := advice(c.v); !strings.Contains(got, c.want) {
			t.Errorf("%v: %s, want %s", c.v.Points, got, c.want)
		}
	}
}

func TestCurveTable(t *testing.T) {
	var out strings.Builder
	v := curveOf(0.198, 300, 200, 120)
	v.Points[0].Coarse = true
	writeCurve(&out, v)
	want := `THRESHOLD  MISSES  MEASURED              FETCHED PER GIB READ
512 MiB    -                             -
1.0 GiB    20.0 %  19.8 %, as it is now  512 MiB
2.0 GiB    12.0 %                        307 MiB

`
	if got := out.String(); !strings.HasPrefix(got, want) || !strings.Contains(got, "one of 4 chunks is looked at") {
		t.Errorf("%s", got)
	}
	out.Reset()
	v.ThresholdBytes = 1500 << 20
	writeCurve(&out, v)
	if got := out.String(); !strings.Contains(got, "\n1.5 GiB    -       19.8 %, as it is now  -\n2.0 GiB") {
		t.Errorf("%s", got)
	}
}

// Whatever a curve is, its chart has every point in the field.
func TestCurveChart(t *testing.T) {
	for name, v := range map[string]cache.Curve{
		"usual": curveOf(0.236, 320, 241, 180, 92, 60, 45, 41), "none": curveOf(0, 0, 0, 0), "all": curveOf(1, 1000, 1000), "one": curveOf(0.5, 510),
		"little": curveOf(0.0003, 2, 0.3, 0.1), "no points": curveOf(0.5),
	} {
		c := curveChart(v)
		if len(c.Line) != len(v.Points) || len(c.Y.Ticks) < 2 || len(c.Y.Ticks) > 12 {
			t.Errorf("%s: %d points, %d lines", name, len(c.Line), len(c.Y.Ticks))
		}
		for _, p := range append(c.Line, c.Mark.Point) {
			if !(p.X >= 0 && p.X <= 1 && p.Y >= 0 && p.Y <= 1) {
				t.Errorf("%s: %v", name, p)
			}
		}
		if *keepPlots != "" {
			for _, suffix := range []string{".png", ".svg"} {
				if err := drawPlot("a curve", c, filepath.Join(*keepPlots, name+suffix)); err != nil {
					t.Error(err)
				}
			}
		}
	}
	dir := t.TempDir()
	if err := drawPlot("a curve", curveChart(curveOf(0.1, 100, 200)), filepath.Join(dir, "a.svg")); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%v, %v", files, err)
	}
}
