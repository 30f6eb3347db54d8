package union

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// The region of a cache stays as it is, whatever the store around it goes through: full, grown, checkpointed, cut off and recovered.
func TestCacheRegion(t *testing.T) {
	t.Parallel()
	const cache = MinCacheBytes + 3*blockSize
	for seed := range seeds(4) {
		rng := rand.New(rand.NewPCG(seed, 77))
		r := newRigOf(t, rigConfig{seed: seed, sizeBytes: 64 << 20, storeBytes: MinStoreBytes + cache, cacheBytes: cache})
		r.work()
		f, off, length := r.store.CacheRegion()
		if f != r.disk.File() || length != cache || off%blockSize != 0 {
			t.Fatalf("%d bytes at %d", length, off)
		}
		region := func() []byte { return r.disk.Bytes()[off : off+length] }
		content := bytes.Repeat([]byte{0xc4, byte(seed)}, cache/2)
		copy(region(), content)
		r.disk.Settle()
		whole := r.store.Info()
		n := r.fillUp(0)
		if info := r.store.Info(); info.CacheBytes != cache || info.SizeBytes != MinStoreBytes+cache || info.SlotBytes > MinStoreBytes {
			t.Fatalf("%+v", info)
		}
		info, err := r.store.Grow(whole.SizeBytes + 5<<20)
		if err != nil {
			t.Fatal(err)
		}
		if info.CacheBytes != cache || info.SlotBytes != whole.SlotBytes+5<<20 {
			t.Fatalf("after growing: %+v", info)
		}
		n += r.fillUp(n)
		if err := r.checkpoint(); err != nil {
			t.Fatal(err)
		}
		r.stopWork()
		r.powerCut(rng)
		r.check()
		r.open()
		r.wantBlocks(min(n, 50), func(b int) uint64 { return uint64(b + 1) })
		if _, at, length := r.store.CacheRegion(); at != off || length != cache {
			t.Errorf("%d bytes at %d after a power cut", length, at)
		}
		if !bytes.Equal(region(), content) {
			t.Error("the region was written to")
		}
		r.close()
		r.check()
	}
}

// Who opens a store read-only gets no region, and neither does one of a store that has none.
func TestCacheRegionOfAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leaf")
	for _, o := range []FormatOptions{
		{SizeBytes: 64 << 20, CacheBytes: MinCacheBytes - 1}, {SizeBytes: 64 << 20, CacheBytes: -4096}, {SizeBytes: 64 << 20, CacheBytes: 33 << 20},
		{SizeBytes: 64 << 20, CacheBytes: 1 << 62},
	} {
		if _, err := Format(path, o); !errors.Is(err, ErrTooSmall) {
			t.Errorf("%+v: %v", o, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%+v left something behind: %v", o, err)
		}
	}
	for _, cache := range []int64{0, MinCacheBytes} {
		if _, err := Format(path, FormatOptions{SizeBytes: 64 << 20, CacheBytes: cache, Force: true}); err != nil {
			t.Fatal(err)
		}
		for _, readOnly := range []bool{true, false} {
			s, err := OpenStore(path, StoreOptions{ReadOnly: readOnly, NoLease: true})
			if err != nil {
				t.Fatal(err)
			}
			want := cache
			if readOnly {
				want = 0
			}
			f, _, length := s.CacheRegion()
			if length != want || (f != nil) != (want > 0) || s.Info().CacheBytes != cache {
				t.Errorf("region of %d bytes, read-only %t: %d", cache, readOnly, length)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if rep, err := Check(path, CheckOptions{}); err != nil || len(rep.Problems) > 0 {
			t.Errorf("%v, %v", rep, err)
		}
	}
}
