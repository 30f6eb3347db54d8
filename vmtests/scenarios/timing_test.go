//go:build vm && long

package scenarios

import (
	"os"
	"slices"
	"testing"
	"time"
)

// TestCreateTime shows that making a device does not depend on the size of its root.
func TestCreateTime(t *testing.T) {
	startDaemon(t)
	leaf := disk(t, "leaf")
	format(t, leaf)
	const rounds = 7
	var daemonMS, wholeMS [2][]float64
	sizes := []int64{1 << 30, 1 << 40}
	for i, size := range sizes {
		f, err := os.Create("/tmp/sparse-" + []string{"small", "large"}[i])
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(f.Name())
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	for round := range rounds {
		for i := range sizes {
			i = (i + round) % len(sizes) // the other one first every other time
			began := time.Now()
			dev := create(t, "sized", "/tmp/sparse-"+[]string{"small", "large"}[i], leaf+":"+[]string{"small", "large"}[i])
			wholeMS[i] = append(wholeMS[i], time.Since(began).Seconds()*1000)
			daemonMS[i] = append(daemonMS[i], dev.CreateMS)
			if dev.SizeBytes != sizes[i] {
				t.Errorf("device of %d bytes, want %d", dev.SizeBytes, sizes[i])
			}
			coppice(t, "delete", "sized")
		}
	}
	small, large := median(daemonMS[0]), median(daemonMS[1])
	t.Logf("coppice create, 1 GiB root:        %6.1f ms in the daemon, %6.1f ms the whole command (medians of %d)", small, median(wholeMS[0]), rounds)
	t.Logf("coppice create, sparse 1 TiB root: %6.1f ms in the daemon, %6.1f ms the whole command", large, median(wholeMS[1]))
	if large > 2*small+20 {
		t.Errorf("a root of 1 TiB takes %.1f ms where 1 GiB takes %.1f ms", large, small)
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
