package union

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"
)

// work starts the store's background work, which OpenStore starts and a rig does not.
func (r *rig) work() {
	r.store.stopped = make(chan struct{})
	go r.store.background()
}

// fillUp writes 4 KiB blocks from block first on, each with its number, until there is no space, and returns how many.
func (r *rig) fillUp(first int) (blocks int) {
	r.t.Helper()
	p := make([]byte, blockSize)
	for {
		fill(p, uint64(first+blocks+1))
		_, err := r.block.WriteAt(p, int64(first+blocks)<<blockShift)
		if errors.Is(err, syscall.ENOSPC) {
			return blocks
		}
		if err != nil {
			r.t.Fatal(err)
		}
		if blocks++; int64(blocks) > r.size>>blockShift {
			r.t.Fatal("the store does not get full")
		}
	}
}

// wantBlocks demands that the first n blocks have the content that stamp gives.
func (r *rig) wantBlocks(n int, stamp func(block int) uint64) {
	r.t.Helper()
	got := make([]byte, blockSize)
	want := make([]byte, blockSize)
	for b := range n {
		if _, err := r.block.ReadAt(got, int64(b)<<blockShift); err != nil {
			r.t.Fatalf("read block %d: %v", b, err)
		}
		clear(want)
		if s := stamp(b); s != 0 {
			fill(want, s)
		}
		if !bytes.Equal(got, want) {
			r.t.Fatalf("block %d has other content", b)
		}
	}
}

// TestFullStore fills a store with first-touch writes: they end in ENOSPC. Reads, flushes, discards and overwrites
// go on, and what is discarded can be written again.
func TestFullStore(t *testing.T) {
	r := newRigOf(t, rigConfig{seed: 1, sizeBytes: 64 << 20})
	r.work()
	n := r.fillUp(0)
	slots := int(r.store.sb.Slots)
	if reserve := int(r.store.keepFor(classData, 0)); n < slots-reserve-8 || n > slots-reserve {
		t.Errorf("%d of %d slots could be written, %d are in reserve", n, slots, reserve)
	}
	version := func(b int) uint64 { return uint64(b + 1) }
	r.wantBlocks(n, version)
	if err := r.block.Flush(); err != nil {
		t.Fatal(err)
	}

	// Overwrites, more of them than there can be in reserve.
	p := make([]byte, blockSize)
	overwritten := map[int]uint64{}
	rng := rand.New(rand.NewPCG(1, 9))
	for i := range 1000 {
		b := rng.IntN(n)
		stamp := uint64(1<<32 + i)
		fill(p, stamp)
		if _, err := r.block.WriteAt(p, int64(b)<<blockShift); err != nil {
			t.Fatalf("overwrite %d of a full store: %v", i, err)
		}
		overwritten[b] = stamp
	}
	now := func(b int) uint64 {
		if s := overwritten[b]; s != 0 {
			return s
		}
		return version(b)
	}
	r.wantBlocks(n, now)
	if _, err := r.block.WriteAt(p, int64(n+1)<<blockShift); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("first-touch write in a full store: %v", err)
	}

	// Discarded space is there again once a flush has covered the discard.
	const discarded = 500
	if err := r.block.Discard(0, discarded<<blockShift); err != nil {
		t.Fatal(err)
	}
	if err := r.block.Flush(); err != nil {
		t.Fatal(err)
	}
	again := r.fillUp(n)
	if again < discarded-5 {
		t.Errorf("%d blocks discarded, %d writable", discarded, again)
	}
	content := func(b int) uint64 {
		if b < discarded {
			return 0
		}
		return now(b)
	}
	r.wantBlocks(n+again, content)

	// All of it survives an orderly close, and the store can be opened though it is full.
	r.close()
	r.check()
	r.open()
	r.wantBlocks(n+again, content)
	r.close()
	r.disk.Close()
}

// TestFullStoreSurvivesPowerCut fills a store with scattered blocks, so that its runs are as long as they can be,
// and cuts the power: it opens.
func TestFullStoreSurvivesPowerCut(t *testing.T) {
	r := newRigOf(t, rigConfig{seed: 2, sizeBytes: 1 << 30})
	r.work()
	rng := rand.New(rand.NewPCG(2, 9))
	perm := rng.Perm(int(r.size >> blockShift))
	p := make([]byte, blockSize)
	n := 0
	for ; ; n++ {
		fill(p, uint64(n+1))
		_, err := r.block.WriteAt(p, int64(perm[n])<<blockShift)
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := r.block.Flush(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		close(r.store.stop)
		<-r.store.stopped
		r.powerCut(rng)
		r.open()
		r.work()
		got := make([]byte, blockSize)
		for i := range n {
			if _, err := r.block.ReadAt(got, int64(perm[i])<<blockShift); err != nil {
				t.Fatal(err)
			}
			fill(p, uint64(i+1))
			if !bytes.Equal(got, p) {
				t.Fatalf("block %d has other content", perm[i])
			}
		}
		if err := r.checkpoint(); err != nil {
			t.Fatal(err)
		}
	}
	r.shut()
}
