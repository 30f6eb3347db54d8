package union

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func exportLayer(t *testing.T, r *rig, name, path string) (*ExportResult, error) {
	t.Helper()
	l, err := r.store.OpenSealed(name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.CloseSealed()
	w, err := CreateExport(path, l.SizeBytes())
	if err != nil {
		return nil, err
	}
	res, err := l.Export(context.Background(), r.base, w, ExportOptions{})
	return res, errors.Join(err, w.Close())
}

// cut seals what the device holds as the layer "cut", and returns it.
func (r *rig) cut() []byte {
	r.t.Helper()
	held := make([]byte, r.size)
	for off := int64(0); off < r.size; off += 64 << 10 {
		if _, err := r.block.ReadAt(held[off:min(off+64<<10, r.size)], off); err != nil {
			r.t.Fatal(err)
		}
	}
	f, err := r.layer.PrepareFreeze("cut")
	if err == nil {
		_, err = f.Seal()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return held
}

// TestExportWhileInUse freezes a device, writes on, exports the frozen state, merges it away, a few times over: content, depth
// and space are right each time.
func TestExportWhileInUse(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 5))
	r := newRig(t, 1, false)
	o := &layerOracle{oracle: newOracle(r), sealed: map[string]*sealedState{}}
	dir := t.TempDir()
	for i := range 8 {
		drive(r, o.oracle, rng, 400)
		if err := r.sim.Run(); err != nil {
			t.Fatal(err)
		}
		want := r.cut()
		drive(r, o.oracle, rng, 200)
		path := filepath.Join(dir, "out")
		res, err := exportLayer(t, r, "cut", path)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) || res.Digest != sha256.Sum256(want) {
			t.Fatalf("export %d is not what the device held when it was frozen", i)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := r.sim.Run(); err != nil {
			t.Fatal(err)
		}
		if err := r.layer.Merge(); err != nil {
			t.Fatal(err)
		}
		if r.layer.parent != nil || len(r.store.layers) != 1 {
			t.Fatalf("%d layers are left, depth %d", len(r.store.layers), r.layer.depth())
		}
	}
	o.settle(r, func(s, i int) bool { return i == o.acked[s] })
	r.close()
	r.check()
}

func TestExportLeavesNothingHalfDone(t *testing.T) {
	r := newRig(t, 2, false)
	if _, err := r.block.WriteAt(bytes.Repeat([]byte{7}, 8192), 1<<20); err != nil {
		t.Fatal(err)
	}
	f, err := r.layer.PrepareFreeze("cut")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seal(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "out")
	if _, err := exportLayer(t, r, "cut", path); err != nil {
		t.Fatal(err)
	}
	if _, err := exportLayer(t, r, "cut", path); err == nil {
		t.Fatal("an existing file was overwritten")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	var out [2]mapping
	var sums [2]uint32
	if err := r.layer.resolve(1<<20>>blockShift, out[:], sums[:]); err != nil {
		t.Fatal(err)
	}
	r.disk.Bytes()[r.store.sb.slotOffset(out[1].slot())]++
	if _, err := exportLayer(t, r, "cut", path); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("export of a damaged block: %v, want %v", err, ErrCorrupt)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 0 {
		t.Fatalf("a failed export left %v behind (%v)", left, err)
	}
}

func TestFreezeRefuses(t *testing.T) {
	r := newRig(t, 3, false)
	for _, name := range []string{"", "web1", "a/b", ".x"} {
		if _, err := r.layer.PrepareFreeze(name); err == nil {
			t.Errorf("frozen as %q", name)
		}
	}
	f, err := r.layer.PrepareFreeze("cut")
	if err != nil {
		t.Fatal(err)
	}
	f.Cancel()
	if len(r.store.layers) != 1 {
		t.Error("a cancelled freeze made a layer")
	}
	for i := range MaxDepth {
		f, err := r.layer.PrepareFreeze("s" + string(rune('A'+i/26)) + string(rune('a'+i%26)))
		if err != nil {
			t.Fatalf("depth %d: %v", i, err)
		}
		if _, err := f.Seal(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.layer.PrepareFreeze("deeper"); err == nil {
		t.Error("frozen beyond the greatest depth")
	}
	if _, err := r.store.OpenLayer("sAa", LayerOptions{Pin: r.base.Pin()}); !errors.Is(err, ErrSealed) {
		t.Errorf("open a sealed layer for writing: %v, want %v", err, ErrSealed)
	}
	if err := r.store.RemoveLayer("sAa"); !errors.Is(err, ErrLayerInUse) {
		t.Errorf("remove a layer that others stand on: %v, want %v", err, ErrLayerInUse)
	}
	r.close()
	r.check()
	r.open()
}

// readAt is readBlocks once.
func (l *Layer) readAt(base Base, p []byte, off int64) error {
	read := l.store.newReader()
	defer read.close()
	c := chunks.take()
	defer chunks.give(c)
	return l.readBlocks(read, base, p, off, c, nil)
}

// chunkList keeps chunks for the next who needs one. A sync.Pool forgets many of them under the race detector, to which their
// memory is dear.
type chunkList struct {
	mu   sync.Mutex
	free []*chunk
}

var chunks chunkList

func (l *chunkList) take() *chunk {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.free); n > 0 {
		c := l.free[n-1]
		l.free = l.free[:n-1]
		return c
	}
	return newChunk()
}

func (l *chunkList) give(c *chunk) {
	l.mu.Lock()
	l.free = append(l.free, c)
	l.mu.Unlock()
}
