package main

import (
	"math"
	"path/filepath"
	"testing"
	"time"

	"coppice/ebpf/boottrace"
	"coppice/internal/plot"
)

// recordedFor is a trace of so many reads within a time and the first bytes of a disk, and a write that is no matter.
func recordedFor(n int, lasted time.Duration, bytes int64) *boottrace.Trace {
	t := &boottrace.Trace{Kernel: "6.12.1", Began: time.Date(2026, 11, 22, 14, 5, 10, 0, time.UTC), DeviceBytes: 2 * bytes}
	for i := range n {
		part := float64(i) / math.Max(float64(n-1), 1)
		off := int64(math.Mod(part*2.7+0.3*math.Sin(float64(i)), 1)*float64(bytes)) &^ 4095
		t.Events = append(t.Events, boottrace.Event{At: time.Duration(part * float64(lasted)), Off: max(min(off, bytes-4096), 0), Len: 4096 << (i % 5)})
	}
	return t
}

// Whatever was recorded, all reads are in the field, and each axis has some marks, which do not write over each other.
func TestTraceHeatMap(t *testing.T) {
	for name, trace := range map[string]*boottrace.Trace{
		"none": recordedFor(0, 0, 4096), "one": recordedFor(1, 0, 4096), "short": recordedFor(50, 3*time.Millisecond, 1<<20),
		"boot": recordedFor(20000, 23*time.Second, 3<<30), "long": recordedFor(3000, 7*time.Hour, 10<<40),
	} {
		trace.Lost = uint64(len(trace.Events)) / 1000
		h := traceHeatMap(trace)
		if len(h.Spots) != len(trace.Events) {
			t.Errorf("%s: %d spots", name, len(h.Spots))
		}
		for _, s := range h.Spots {
			if s.X < 0 || s.X > 1 || s.Low < 0 || s.High > 1+1e-9 || s.Weight <= 0 {
				t.Fatalf("%s: %+v", name, s)
			}
		}
		for _, axis := range [][]float64{places(h.X.Ticks), places(h.Y.Ticks)} {
			if len(axis) < 2 || len(axis) > 10 || axis[len(axis)-1] > 1+1e-9 {
				t.Errorf("%s: marks at %v", name, axis)
			}
		}
		if *keepPlots != "" {
			for _, suffix := range []string{".png", ".svg"} {
				if err := drawPlot("a trace", h, filepath.Join(*keepPlots, "trace-"+name+suffix)); err != nil {
					t.Error(err)
				}
			}
		}
	}
	trace := recordedFor(1, 0, 1<<20)
	trace.Events = append(trace.Events, boottrace.Event{At: time.Second, Op: boottrace.Write, Off: 1 << 30, Len: 4096})
	if h := traceHeatMap(trace); len(h.Spots) != 1 || h.Spots[0].X != 0 {
		t.Errorf("a write: %+v", h.Spots)
	}
}

func places(list []plot.Tick) (at []float64) {
	for _, t := range list {
		at = append(at, t.At)
	}
	return at
}
