package union

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"coppice/ublk/ublktest"
)

// TestGrowAllocator compares an allocator that grows with a new one of the greater size in which the same slots are taken.
func TestGrowAllocator(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.Uint64Range(1, 20000).Draw(t, "from")
		to := from + rapid.Uint64Range(0, 20000).Draw(t, "more")
		a := newSlotAllocator(from)
		m := slotModel{used: map[uint64]bool{}}
		if n := rapid.IntRange(0, int(from)).Draw(t, "taken"); n > 0 {
			exts, ok := a.alloc(nil, n, 0)
			if !ok {
				t.Fatal("no slots")
			}
			m.take(t, exts, n, from)
		}
		a.grow(to)
		a.grow(from) // never shrinks
		if a.size() != to {
			t.Fatalf("%d slots, want %d", a.size(), to)
		}
		m.check(t, a)
		if n := int(a.freeSlots()); n > 0 {
			exts, ok := a.alloc(nil, n, 0)
			if !ok {
				t.Fatal("free slots cannot be had")
			}
			m.take(t, exts, n, to)
		}
		m.check(t, a)
	})
}

// TestGrow grows a store again and again while requests go on, and fills what was added.
func TestGrow(t *testing.T) {
	t.Parallel()
	for seed := range seeds(4) {
		rng := rand.New(rand.NewPCG(seed, 51))
		r := newRigOf(t, rigConfig{seed: seed, sizeBytes: 64 << 20})
		r.work()
		n := r.fillUp(0)
		size := r.store.Info().SizeBytes
		for range 5 {
			more := int64(1+rng.IntN(900)) << blockShift
			odd := rng.Int64N(blockSize)
			before := r.store.Info()
			info, err := r.store.Grow(size + more + odd)
			if err != nil {
				t.Fatal(err)
			}
			if size += more; info.SizeBytes != size || info.SlotBytes != before.SlotBytes+more || info.Generation <= before.Generation {
				t.Fatalf("%+v, want %d bytes", info, size)
			}
			got := r.fillUp(n)
			if want := int(more >> blockShift); got > want || got < want-want/25-8 {
				t.Errorf("seed %d: %d blocks more could be written, the store has %d more", seed, got, want)
			}
			n += got
			r.wantBlocks(min(n, 50), func(b int) uint64 { return uint64(b + 1) })
			switch rng.IntN(3) {
			case 0:
				r.close()
				r.check()
				r.open()
				r.work()
			case 1:
				if err := r.block.Flush(); err != nil {
					t.Fatal(err)
				}
				r.stopWork()
				r.powerCut(rng)
				r.open()
				r.work()
			}
		}
		r.wantBlocks(n, func(b int) uint64 { return uint64(b + 1) })
		for what, bytes := range map[string]int64{"smaller": size - blockSize, "negative": -1} {
			if _, err := r.store.Grow(bytes); err == nil || what == "smaller" && !errors.Is(err, ErrCannotShrink) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for _, bytes := range []int64{0, size} {
			if info, err := r.store.Grow(bytes); err != nil || info.SizeBytes != size {
				t.Errorf("to what it has: %+v, %v", info, err)
			}
		}
		r.end()
	}
}

// TestGrowCutAtEachCall stops a growing store at each write and flush, with what was not flushed lost, kept, or garbage. It opens
// with the old size or the new, and all that it held.
func TestGrowCutAtEachCall(t *testing.T) {
	const more = 1 << 20
	for _, left := range []string{"nothing", "all", "garbage"} {
		for calls := 0; ; calls++ {
			rng := rand.New(rand.NewPCG(uint64(calls), 52))
			r := newRig(t, 1, false)
			o := newOracle(r)
			drive(r, o, rng, 150)
			if err := errors.Join(r.sim.Run(), r.block.Flush()); err != nil {
				t.Fatal(err)
			}
			copy(o.floor, o.acked)
			d := &faultDisk{Disk: r.disk, left: calls, garble: left == "garbage"}
			r.store.disk = d
			_, cut := r.store.Grow(MinStoreBytes + more)
			if cut != nil && !errors.Is(cut, syscall.EIO) {
				t.Fatal(cut)
			}
			if failed := r.store.Info().Failed; failed != (cut != nil) {
				t.Errorf("failed: %v after %v", failed, cut)
			}
			r.abandon()
			keep := left != "nothing"
			after, err := r.disk.CrashWith(func(int, int) bool { return keep })
			if err != nil {
				t.Fatal(err)
			}
			r.disk.Close()
			r.disk = after
			r.reboot()
			r.open()
			size := r.store.Info().SizeBytes
			if size != MinStoreBytes && size != MinStoreBytes+more || cut == nil && size == MinStoreBytes {
				t.Errorf("%d bytes after %d calls, %s left: %v", size, calls, left, cut)
			}
			o.settle(r, func(s, i int) bool { return i >= o.floor[s] })
			r.end()
			if cut == nil {
				break
			}
		}
	}
}

// TestGrowFile grows a store in a regular file, and one whose file was extended by somebody else.
func TestGrowFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leaf")
	if _, err := Format(path, FormatOptions{SizeBytes: MinStoreBytes}); err != nil {
		t.Fatal(err)
	}
	s, err := OpenStore(path, StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Grow(MinStoreBytes + 8<<20)
	if err != nil || info.SizeBytes != MinStoreBytes+8<<20 {
		t.Errorf("%+v %v", info, err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != info.SizeBytes {
		t.Errorf("the file: %v %v", st, err)
	}
	if err := os.Truncate(path, MinStoreBytes+16<<20); err != nil {
		t.Fatal(err)
	}
	if info, err = s.Grow(0); err != nil || info.SizeBytes != MinStoreBytes+16<<20 {
		t.Errorf("%+v %v", info, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Grow(0); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	s, err = OpenStore(path, StoreOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Grow(0); !errors.Is(err, ErrReadOnly) || s.Info().SizeBytes != info.SizeBytes {
		t.Errorf("read-only: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestQuotaCutAtEachCall stops a change of a quota at each call: the old one or the new one is there afterwards.
func TestQuotaCutAtEachCall(t *testing.T) {
	for calls := 0; ; calls++ {
		r := newRig(t, 1, false)
		if _, err := r.layer.SetQuota(1 << 20); err != nil {
			t.Fatal(err)
		}
		r.mustWrite(3, 4)
		r.store.disk = &faultDisk{Disk: r.disk, left: calls}
		_, cut := r.layer.SetQuota(2 << 20)
		if got := r.layer.Info().QuotaBytes; cut == nil && got != 2<<20 || cut != nil && got != 1<<20 {
			t.Errorf("quota %d, %v", got, cut)
		}
		r.abandon()
		r.open()
		if got := r.layer.Info(); got.QuotaBytes != 1<<20 && got.QuotaBytes != 2<<20 || got.Space == nil || got.DataBytes != blockSize {
			t.Errorf("after %d calls %+v", calls, got)
		}
		r.end()
		if cut == nil {
			if calls < 5 { // a catalog, two superblocks, and the syncs
				t.Errorf("a change of a quota has only %d calls", calls)
			}
			return
		}
	}
}

var _ growable = (*ublktest.Disk)(nil)
