package union

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"coppice/ublk/ublktest"
)

// live is a device that real reactors serve, with clients that know what they wrote.
type live struct {
	t        *testing.T
	dir      string
	rootPath string
	leafPath string
	size     int64
	all      []*client
	base     Base
	store    *Store
	layer    *Layer
	dev      *Device
}

func newLive(t *testing.T) *live {
	t.Helper()
	v := &live{t: t, dir: runDir(t), size: clients*(clientBytes+clientGap) + 2<<20}
	v.rootPath, v.leafPath = filepath.Join(v.dir, "root"), filepath.Join(v.dir, "leaf")
	root := make([]byte, v.size*2/3+100)
	for i := range root {
		root[i] = byte(i>>9) + 1
	}
	if err := os.WriteFile(v.rootPath, root, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Format(v.leafPath, FormatOptions{SizeBytes: MinStoreBytes}); err != nil {
		t.Fatal(err)
	}
	for i := range clients {
		c := &client{rng: rand.New(rand.NewPCG(uint64(i), 17)), from: int64(i) * (clientBytes + clientGap),
			content: make([]byte, clientBytes), stamp: uint64(i) << 32}
		if off := int(c.from); off < len(root) {
			copy(c.content, root[off:])
		}
		v.all = append(v.all, c)
	}
	return v
}

// open opens all, without the root where it is not there.
func (v *live) open() {
	v.t.Helper()
	v.base = nil
	if raw, err := OpenRaw(v.rootPath); err == nil {
		v.base = raw
	}
	var err error
	if v.store, err = OpenStore(v.leafPath, StoreOptions{RunDir: v.dir}); err != nil {
		v.t.Fatal(err)
	}
	if v.layer, err = v.store.OpenLayer("web1", LayerOptions{Create: v.base != nil, Pin: rootPin(v.base), SizeBytes: v.size}); err != nil {
		v.t.Fatal(err)
	}
	if v.dev, err = NewDevice(v.layer, v.base, DeviceOptions{}); err != nil {
		v.t.Fatal(err)
	}
}

func (v *live) close() {
	v.t.Helper()
	v.layer.Release()
	err := v.store.Close()
	if v.base != nil {
		err = errors.Join(err, v.base.Close())
	}
	if err != nil {
		v.t.Fatal(err)
	}
	if rep, err := Check(v.leafPath, CheckOptions{}); err != nil || len(rep.Problems) != 0 {
		v.t.Errorf("check: %+v %v", rep, err)
	}
}

// work has every client take steps, and compare all that it wrote in the end.
func (v *live) work(fake *ublktest.Fake, rounds int) {
	var work sync.WaitGroup
	for i, c := range v.all {
		c.fake = fake
		work.Go(func() {
			for n := range rounds {
				if err := c.step(); err != nil {
					v.t.Errorf("client %d, step %d: %v", i, n, err)
					return
				}
			}
			for first := 0; first < len(c.content)/sector; first += 100 {
				if err := c.compare(first, 100); err != nil {
					v.t.Errorf("client %d in the end: %v", i, err)
				}
			}
		})
	}
	work.Wait()
}

func (v *live) freeze(as string) {
	v.t.Helper()
	f, err := v.layer.PrepareFreeze(as)
	if err == nil {
		_, err = f.Seal()
	}
	if err != nil {
		v.t.Fatal(err)
	}
}

// export exports the device as the API does, and leaves nothing.
func (v *live) export(name string) error {
	f, err := v.layer.PrepareFreeze(name)
	if err != nil {
		return err
	}
	if _, err := f.Seal(); err != nil {
		return err
	}
	l, err := v.store.OpenSealed(name)
	if err != nil {
		return err
	}
	path := filepath.Join(v.dir, name)
	w, err := CreateExport(path, v.size)
	if err == nil {
		_, err = l.Export(context.Background(), v.base, w, ExportOptions{})
		err = errors.Join(err, w.Close(), os.Remove(path))
	}
	l.CloseSealed()
	return errors.Join(err, v.layer.Merge())
}

// TestDetachUnderLoad detaches a device that clients write to and that is exported meanwhile, interrupts that a few times, and
// in the end removes its ancestors while requests are in flight, and the root.
func TestDetachUnderLoad(t *testing.T) {
	v := newLive(t)
	v.open()
	rounds := 600
	if testing.Short() {
		rounds = 120
	}
	serve(t, v.dev, v.size, func(fake *ublktest.Fake) {
		for _, name := range []string{"p1", "p2", "p3"} {
			v.work(fake, rounds/6)
			v.freeze(name)
		}
		var beside sync.WaitGroup
		beside.Go(func() {
			for i := range 4 {
				if err := v.export(fmt.Sprint("export-", i)); err != nil {
					t.Errorf("export %d: %v", i, err)
				}
			}
		})
		beside.Go(func() {
			for i := range 3 { // interrupted
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i+1)*10*time.Millisecond)
				if err := v.store.Detach(ctx, "web1", v.base, DetachOptions{BytesPerSecond: 20 << 20}); err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("interrupted detach: %v", err)
				}
				cancel()
			}
			if err := v.store.Detach(context.Background(), "web1", v.base, DetachOptions{}); err != nil {
				t.Error(err)
			}
			// What the removals free is used again at once.
			free, keep := v.store.slots.freeSlots(), v.store.keepFor(classData, 0)+400
			taken, _ := v.store.slots.alloc(nil, int(max(free, keep)-keep), 0)
			defer v.store.releaseAll(taken)
			for _, name := range []string{"p3", "p2", "p1"} {
				if err := v.store.RemoveLayer(name); err != nil {
					t.Error(err)
				}
			}
		})
		var scrub sync.WaitGroup
		ctx, cancel := context.WithCancel(context.Background())
		scrub.Go(func() {
			for ctx.Err() == nil {
				err := v.store.Scrub(ctx, ScrubOptions{BytesPerSecond: 1 << 40}, func(p Problem, _ string) { t.Errorf("scrub found %s", p) })
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
		v.work(fake, rounds)
		beside.Wait()
		cancel()
		scrub.Wait()
		if st := v.store.ScrubStatus(); st.Passes == 0 || st.Running || len(st.Problems) != 0 {
			t.Errorf("scrubbed: %+v", st)
		}
		v.work(fake, rounds/4)
	})
	if info := v.store.Info(); len(info.Layers) != 1 || info.Layers[0].Pin != (Pin{}) || info.Layers[0].Detaching {
		t.Errorf("left: %+v", info.Layers)
	}
	v.close()
	if err := os.Remove(v.rootPath); err != nil {
		t.Fatal(err)
	}
	v.open()
	serve(t, v.dev, v.size, func(fake *ublktest.Fake) { v.work(fake, 20) })
	v.close()
}

// TestDetachGivesUp has the quota, the space or a damaged block stand in the way: the layer is as it was, and goes on.
func TestDetachGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(r *rig)
		want  error
		say   string
	}{
		"quota": {func(r *rig) { r.layer.entry.QuotaBytes = 1 << 20 }, ErrNoSpace, "quota"},
		"space": {func(r *rig) {
			_, ok := r.store.slots.alloc(nil, int(r.store.slots.freeSlots()-r.store.copyKeep())-300, 0)
			if !ok {
				r.t.Fatal("no slots")
			}
		}, ErrNoSpace, "no free slots"},
		"damage": {func(r *rig) {
			var m [1]mapping
			var sum [1]uint32
			if err := r.layer.resolve(1<<20>>blockShift, m[:], sum[:]); err != nil {
				t.Fatal(err)
			}
			r.disk.Bytes()[r.store.sb.slotOffset(m[0].slot())]++
		}, ErrCorrupt, "checksum"},
		"other root": {func(r *rig) { r.layer.entry.Pin.SizeBytes++ }, ErrOtherRoot, "root"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 2, false)
			content := bytes.Repeat([]byte{7}, 64<<10)
			if _, err := r.block.WriteAt(content, 1<<20); err != nil {
				t.Fatal(err)
			}
			r.sealAs("below")
			c.spoil(r)
			if err := r.checkpoint(); err != nil {
				t.Fatal(err)
			}
			free, layers := r.store.slots.freeSlots(), len(r.store.layers)
			err := r.store.Detach(context.Background(), "web1", r.base, DetachOptions{})
			wantError(t, err, c.want, "web1", c.say)
			if err := r.checkpoint(); err != nil {
				t.Fatal(err)
			}
			if n := r.store.slots.freeSlots(); n != free || len(r.store.layers) != layers || r.layer.entry.Detaching {
				t.Errorf("%d slots were free, now %d; layers %+v", free, n, r.store.Info().Layers)
			}
			if _, err := r.block.WriteAt(content, 2<<20); err != nil {
				t.Error(err)
			}
		})
	}
}

// A detach that is stopped leaves nothing, and may be started again; a layer in the making cannot be used.
func TestStopDetach(t *testing.T) {
	r := newRig(t, 1, false)
	if _, err := r.block.WriteAt(make([]byte, 64<<10), 1<<20); err != nil {
		t.Fatal(err)
	}
	r.sealAs("below")
	d := r.beginDetach("web1")
	for range 4 {
		d.some(r)
	}
	work := d.work.entry.Name
	_, err := r.store.OpenLayer(work, LayerOptions{Pin: r.base.Pin()})
	wantError(t, err, ErrLayerInUse, "not complete")
	_, err = r.store.OpenLayer("new", LayerOptions{Create: true, From: work, Pin: r.base.Pin()})
	wantError(t, err, ErrLayerInUse, "not complete")
	wantError(t, r.store.RemoveLayer(work), ErrLayerInUse, "being copied")
	wantError(t, r.store.RemoveLayer("below"), ErrLayerInUse, "stands on it")
	wantError(t, r.store.StopDetach("web1"), ErrLayerInUse)
	wantError(t, r.store.Detach(context.Background(), "web1", r.base, DetachOptions{}), ErrLayerInUse, "already")
	wantError(t, r.store.Detach(context.Background(), "none", r.base, DetachOptions{}), ErrNoLayer)
	info := r.layer.Info()
	if !info.Detaching || info.Detach == nil || info.Detach.CopiedBytes == 0 || info.Detach.TotalBytes != r.size {
		t.Errorf("progress %+v", info)
	}
	d.end()
	for range 2 {
		if err := r.store.StopDetach("web1"); err != nil {
			t.Fatal(err)
		}
	}
	if info := r.store.Info(); len(info.Layers) != 2 || r.layer.Info().Detaching {
		t.Errorf("left %+v", info.Layers)
	}
	for range 2 { // the second time there is nothing to do
		if err := r.store.Detach(context.Background(), "web1", r.base, DetachOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if p := r.layer.Info(); p.Parent != "" || p.Pin.Kind != PinNone || p.Detach != nil {
		t.Errorf("detached: %+v", p)
	}
	r.close()
	r.check()
}
