package union

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLayerNames(t *testing.T) {
	for _, name := range []string{"a", "Z", "0", "_", "web1", "a.b-c_D", strings.Repeat("x", 64)} {
		if err := ValidLayerName(name); err != nil {
			t.Error(err)
		}
	}
	s := openStore(t, newStoreFile(t))
	for _, name := range []string{"", ".", "..", ".a", "-a", "a/b", "a b", "a:b", "é", "a\x00", "a\n", strings.Repeat("x", 65)} {
		_, err := s.OpenLayer(name, LayerOptions{Create: true, SizeBytes: 4096})
		wantError(t, err, nil, "layer name", fmt.Sprintf("%q", name))
	}
	if n := len(s.Info().Layers); n != 0 {
		t.Errorf("%d layers were made", n)
	}
}

func TestLayerSizes(t *testing.T) {
	s := openStore(t, newStoreFile(t))
	for _, size := range []int64{-1, 0, 1, 511, 513, 1<<52 + 4096} {
		_, err := s.OpenLayer("web1", LayerOptions{Create: true, SizeBytes: size})
		wantError(t, err, nil, "web1", fmt.Sprint(size))
	}
	for i, size := range []int64{512, 4096, 4608, 1 << 40} {
		l, err := s.OpenLayer(fmt.Sprintf("l%d", i), LayerOptions{Create: true, SizeBytes: size})
		if err != nil || l.SizeBytes() != size {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	l, err := s.OpenLayer("root", LayerOptions{Create: true, Pin: Pin{Kind: PinRaw, SizeBytes: 8192}})
	if err != nil || l.SizeBytes() != 8192 {
		t.Errorf("size of the root: %v", err)
	}
	// For the clean-up.
	for _, l := range s.layers {
		l.opened = false
	}
}

// TestLayerLife makes, opens, refuses and removes a layer, across an opening of the store.
func TestLayerLife(t *testing.T) {
	path := newStoreFile(t)
	s := openStore(t, path)
	pin := Pin{Kind: PinRaw, SizeBytes: 1 << 20, ModTime: 1700000000123456789, Digest: [32]byte{1, 2, 3, 4, 5, 6}}
	_, err := s.OpenLayer("web1", LayerOptions{Pin: pin})
	wantError(t, err, ErrNoLayer, "web1", path)
	wantError(t, s.RemoveLayer("web1"), ErrNoLayer, "web1", path)

	began := time.Now().Unix()
	l, err := s.OpenLayer("web1", LayerOptions{Create: true, Pin: pin, SizeBytes: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	info := l.Info()
	if !l.Made() || l.Name() != "web1" || l.Store() != s || l.SizeBytes() != 2<<20 || info.Pin != pin || !info.Open ||
		info.DataBytes != 0 || info.MapBytes != 0 || info.Created.Unix() < began {
		t.Errorf("made %v: %+v", l.Made(), info)
	}
	_, err = s.OpenLayer("web1", LayerOptions{Create: true, Pin: pin})
	wantError(t, err, ErrLayerInUse, "web1", path)
	wantError(t, s.RemoveLayer("web1"), ErrLayerInUse, "web1", path)
	l.Release()

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, path)
	for name, c := range map[string]struct {
		change func(p *Pin)
		words  []string
	}{
		"size":    {func(p *Pin) { p.SizeBytes++ }, []string{"1048577 bytes, not 1048576"}},
		"content": {func(p *Pin) { p.Digest[3]++ }, []string{"content 010203050506, not 010203040506"}},
		"time":    {func(p *Pin) { p.ModTime++ }, []string{"same samples", "2023-11-14T22:13:20.12345679Z, not 2023-11-14T22:13:20.123456789Z"}},
		"kind":    {func(p *Pin) { p.Kind = PinNone }, []string{"this one has no root"}},
	} {
		other := pin
		c.change(&other)
		_, err := s.OpenLayer("web1", LayerOptions{Create: true, Pin: other})
		if wantError(t, err, ErrOtherRoot, append(c.words, "web1", path)...); t.Failed() {
			t.Fatalf("other %s", name)
		}
	}
	_, err = s.OpenLayer("web1", LayerOptions{Create: true, Pin: pin, SizeBytes: 1 << 20})
	wantError(t, err, nil, "2097152", "1048576", "web1", path)
	for _, size := range []int64{0, 2 << 20} {
		l, err := s.OpenLayer("web1", LayerOptions{Create: true, Pin: pin, SizeBytes: size})
		if err != nil {
			t.Fatal(err)
		}
		if l.Made() {
			t.Error("a layer that was there is said to be made")
		}
		again := l.Info()
		if again.UUID != info.UUID || !again.Created.Equal(info.Created) || again.Pin != pin || again.SizeBytes != info.SizeBytes {
			t.Errorf("opened %+v, made %+v", again, info)
		}
		l.Release()
	}
	if err := s.RemoveLayer("web1"); err != nil {
		t.Fatal(err)
	}
	_, err = s.OpenLayer("web1", LayerOptions{Pin: pin})
	wantError(t, err, ErrNoLayer)
	l, err = s.OpenLayer("web1", LayerOptions{Create: true, Pin: Pin{Kind: PinRaw, SizeBytes: 512}})
	if err != nil || !l.Made() || l.Info().UUID == info.UUID || l.entry.Number < 2 {
		t.Errorf("made again: %v %+v", err, l.Info())
	}
	l.Release()
}

// TestManyLayers makes hundreds of layers, so that the catalog takes a chain of blocks, and finds them again.
func TestManyLayers(t *testing.T) {
	t.Parallel()
	path := newStoreFile(t)
	s := openStore(t, path)
	free := s.Info().FreeBytes
	const n = 300
	name := func(i int) string { return fmt.Sprintf("layer-%s-%d", strings.Repeat("n", i%50), i) }
	for i := range n {
		l, err := s.OpenLayer(name(i), LayerOptions{Create: true, SizeBytes: int64(i+1) * 512})
		if err != nil {
			t.Fatal(err)
		}
		l.Release()
	}
	if s.sb.CatalogBlocks < 8 {
		t.Errorf("the catalog has %d blocks only", s.sb.CatalogBlocks)
	}
	if got, want := s.Info().FreeBytes, free+blockSize-int64(s.sb.CatalogBlocks)*blockSize; got != want {
		t.Errorf("%d bytes free, want %d", got, want)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rep, err := Check(path, CheckOptions{})
	if err != nil || len(rep.Problems) != 0 || len(rep.Store.Layers) != n {
		t.Fatalf("check: %v %d layers %v", rep.Problems, len(rep.Store.Layers), err)
	}
	s = openStore(t, path)
	for i := range n {
		l, err := s.OpenLayer(name(i), LayerOptions{})
		if err != nil || l.SizeBytes() != int64(i+1)*512 {
			t.Fatalf("layer %d: %v", i, err)
		}
		l.Release()
		if i%2 == 0 {
			if err := s.RemoveLayer(name(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, path)
	infos := s.Info().Layers
	if len(infos) != n/2 {
		t.Fatalf("%d layers, want %d", len(infos), n/2)
	}
	for i := 1; i < len(infos); i++ {
		if infos[i-1].Name >= infos[i].Name {
			t.Errorf("layers not in order of names: %s, %s", infos[i-1].Name, infos[i].Name)
		}
	}
	for _, l := range infos {
		if err := s.RemoveLayer(l.Name); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Info().FreeBytes; got != free {
		t.Errorf("%d bytes free without layers, %d in the new store", got, free)
	}
}

// TestRemoveLayerFreesEverything writes, overwrites and discards, with and without flushes and checkpoints: the
// space is all there again when the layer is gone, now and after opening the store again.
func TestRemoveLayerFreesEverything(t *testing.T) {
	for seed := range seeds(12) {
		rng := rand.New(rand.NewPCG(seed, 7))
		r := newRig(t, seed, false)
		other, err := r.store.OpenLayer("other", LayerOptions{Create: true, SizeBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		other.Release()
		free := r.store.Info().FreeBytes
		o := newOracle(r)
		drive(r, o, rng, 100+rng.IntN(1000))
		if err := r.sim.Run(); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(2) == 0 {
			r.close()
			r.open()
		}
		if rng.IntN(2) == 0 {
			drive(r, o, rng, 300)
			if err := r.sim.Run(); err != nil {
				t.Fatal(err)
			}
		}
		flushed := rng.IntN(2) == 0
		if flushed {
			if err := r.store.commit(); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.block.Close(); err != nil {
			t.Fatal(err)
		}
		r.layer.Release()
		if err := r.store.RemoveLayer("web1"); err != nil {
			t.Fatal(err)
		}
		if !flushed { // what was superseded before it waits for a flush
			if err := r.store.commit(); err != nil {
				t.Fatal(err)
			}
		}
		r.store.epochs.collect()
		if got := r.store.Info().FreeBytes; got != free {
			t.Errorf("seed %d: %d bytes free, %d before the layer", seed, got, free)
		}
		r.store.disk = keepOpen{r.disk}
		if err := errors.Join(r.store.Close(), r.reopen()); err != nil {
			t.Fatal(err)
		}
		if got := r.store.Info().FreeBytes; got != free {
			t.Errorf("seed %d: %d bytes free after opening again, %d before the layer", seed, got, free)
		}
		r.check()
		r.disk.Close()
	}
}

// reopen opens the store, without layer and device.
func (r *rig) reopen() (err error) {
	r.store, err = openOn("leaf", r.disk, r.options())
	return err
}

// TestPowerCutWhileLayersChange cuts the power at each call that making and removing a layer takes: the
// layer is there or it is not, and the others keep their content.
func TestPowerCutWhileLayersChange(t *testing.T) {
	t.Parallel()
	for _, remove := range []bool{false, true} {
		for calls := 0; ; calls++ {
			if calls > 20 {
				t.Fatal("a change of layers takes more than 20 calls")
			}
			seed := uint64(calls)
			rng := rand.New(rand.NewPCG(seed, 8))
			r := newRig(t, seed, false)
			if remove {
				l, err := r.store.OpenLayer("other", LayerOptions{Create: true, SizeBytes: 1 << 20})
				if err != nil {
					t.Fatal(err)
				}
				l.Release()
			}
			o := newOracle(r)
			drive(r, o, rng, 400)
			if err := r.sim.Run(); err != nil {
				t.Fatal(err)
			}
			d := &faultDisk{Disk: r.disk, left: calls, garble: calls%2 == 0}
			r.store.disk = d
			var err error
			if remove {
				err = r.store.RemoveLayer("other")
			} else {
				_, err = r.store.OpenLayer("other", LayerOptions{Create: true, SizeBytes: 1 << 20})
			}
			done := err == nil
			if !done && !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			if !done {
				r.wantFailed()
			}
			r.powerCut(rng)
			r.open()
			if there := r.store.layers["other"] != nil; done && there == remove {
				t.Errorf("after %d calls: done, and undone by the cut", calls)
			}
			o.settle(r, func(s, i int) bool { return i >= o.floor[s] })
			r.shut()
			if done || t.Failed() {
				break
			}
		}
	}
}

// wantFailed demands that the store takes no more changes of any kind, and reads.
func (r *rig) wantFailed() {
	r.t.Helper()
	p := bytes.Repeat([]byte{1}, 4096)
	_, write := r.block.WriteAt(p, 0)
	_, layer := r.store.OpenLayer("another", LayerOptions{Create: true, SizeBytes: 4096})
	for name, err := range map[string]error{
		"write": write, "FUA write": r.block.WriteFUA(p, 0), "flush": r.block.Flush(), "discard": r.block.Discard(0, 4096),
		"write in part": r.block.WriteFUA(p[:512], 512),
	} {
		if !errors.Is(err, syscall.EIO) {
			r.t.Errorf("%s on a failed store: %v", name, err)
		}
	}
	for name, err := range map[string]error{"layer": layer, "checkpoint": r.checkpoint()} {
		if !errors.Is(err, errFailed) {
			r.t.Errorf("%s on a failed store: %v", name, err)
		}
	}
	if _, err := r.block.ReadAt(make([]byte, 64<<10), 0); err != nil {
		r.t.Errorf("read on a failed store: %v", err)
	}
	if !r.store.Info().Failed {
		r.t.Error("the store does not say that it failed")
	}
}
