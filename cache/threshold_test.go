//go:build !race

// Memory under the race detector is another.

package cache

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// rss returns how much memory of this process is resident, in bytes.
func rss(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(text), &size, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

const thresholdChild = "COPPICE_CACHE_THRESHOLD_CHILD"

// In a million random operations, a process never takes more than the threshold and 5 % of it beyond what it took before.
func TestThreshold(t *testing.T) {
	if os.Getenv(thresholdChild) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestThreshold$", "-test.v")
		cmd.Env = append(os.Environ(), thresholdChild+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "operations:") {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
		return
	}
	const operations = 1_000_000
	before := rss(t)
	c := newCache(t, Options{MemoryBytes: 512 << 20})
	o := &keysOrigin{fakeOrigin{size: 4 << 30, chunk: 64 * kib}}
	v := open(t, c, o).Reader()
	rng := rand.New(rand.NewPCG(1, 2))
	chunks := uint64(o.size / int64(o.chunk))
	zipf := rand.NewZipf(rng, 3, 600, chunks-1)
	p, worst, hits := make([]byte, 4*kib), -1.0, 0
	for i := range operations {
		off := int64(zipf.Uint64()*7919%chunks)*int64(o.chunk) + rng.Int64N(16)*4*kib
		if v.TryRead(p, off) {
			hits++
		} else if err := v.Read(context.Background(), p, off); err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint64(p); got != o.word(off) {
			t.Fatalf("byte %d is that at another place", off)
		}
		switch i {
		case operations / 2, operations * 3 / 4:
			if err := c.SetMemory(int64(operations-i) * 1024); err != nil {
				t.Fatal(err)
			}
		}
		if i%500 == 0 {
			s := c.Stats().Memory
			if s.UsedBytes > s.ThresholdBytes {
				t.Fatalf("%d bytes are used, of %d", s.UsedBytes, s.ThresholdBytes)
			}
			worst = max(worst, float64(rss(t)-before-s.ThresholdBytes)/float64(s.ThresholdBytes))
		}
	}
	t.Logf("%d operations: %.1f %% hits, resident at most %+.1f %% beyond the threshold", operations, 100*float64(hits)/operations, 100*worst)
	if worst > 0.05 {
		t.Error("more than 5 %")
	}
}
