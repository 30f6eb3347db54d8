package main

import (
	"fmt"
	"math"
	"time"

	"coppice/ebpf/boottrace"
	"coppice/internal/plot"
)

// traceHeatMap draws what was read, by time and offset on the device.
func traceHeatMap(t *boottrace.Trace) plot.HeatMap {
	h := plot.HeatMap{
		Title: "What was read, by time and offset",
		X:     plot.Axis{Title: "since the first request"}, Y: plot.Axis{Title: "offset on the device"},
		Scale: "bytes in a cell", Show: func(n float64) string { return showBytes(int64(math.Round(n))) },
	}
	reads, bytes, end, last := 0, int64(0), int64(0), time.Duration(0)
	for _, e := range t.Events {
		last = max(last, e.At)
		if e.Op == boottrace.Read {
			reads++
			bytes += e.Len
			end = max(end, e.Off+e.Len)
		}
	}
	h.Subtitle = fmt.Sprintf("%s of %s, recorded %s on Linux %s", count(uint64(reads), "read"), showBytes(bytes), t.Began.UTC().Format(time.DateTime), t.Kernel)
	if t.Lost > 0 {
		h.Subtitle += fmt.Sprintf("; %d of any device LOST", t.Lost)
	}
	wide, high := max(last.Seconds(), 1e-3), math.Max(float64(end), 4096)
	for _, e := range t.Events {
		if e.Op == boottrace.Read {
			h.Spots = append(h.Spots, plot.Spot{X: e.At.Seconds() / wide, Low: float64(e.Off) / high, High: float64(e.Off+e.Len) / high, Weight: float64(e.Len)})
		}
	}
	const most = 8 // lines
	step := math.Exp2(math.Ceil(math.Log2(high / most)))
	for at := 0.0; at <= high; at += step {
		h.Y.Ticks = append(h.Y.Ticks, plot.Tick{At: at / high, Label: showBytes(int64(at))})
	}
	step = roundStep(wide / most)
	for i := 0; float64(i)*step <= wide; i++ {
		h.X.Ticks = append(h.X.Ticks, plot.Tick{At: float64(i) * step / wide, Label: showShort(time.Duration(math.Round(float64(i) * step * 1e9)))})
	}
	return h
}

// roundStep is the next number that is 1, 2 or 5 times a power of ten.
func roundStep(least float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(least)))
	for _, n := range []float64{1, 2, 5} {
		if n*power >= least*(1-1e-9) {
			return n * power
		}
	}
	return 10 * power
}
