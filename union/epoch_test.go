package union

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

// collector is a release function that remembers.
type collector struct{ slots map[uint64]int }

func (c *collector) release(slot uint64, count uint32) {
	for i := range uint64(count) {
		c.slots[slot+i]++
	}
}

func newCollector() (*collector, *epochs) {
	c := &collector{slots: map[uint64]int{}}
	return c, newEpochs(c.release)
}

func TestEpochsReleaseAtOnceWithoutReaders(t *testing.T) {
	c, e := newCollector()
	e.join()
	for i := range uint64(50) {
		e.retire([]extent{{10 * i, 3}})
		if e.collect() {
			t.Fatalf("round %d: slots wait though nobody reads", i)
		}
		if len(c.slots) != int(i+1)*3 {
			t.Fatalf("round %d: %d slots released, want %d", i, len(c.slots), (i+1)*3)
		}
	}
	for s, n := range c.slots {
		if n != 1 {
			t.Errorf("slot %d released %d times", s, n)
		}
	}
}

// TestEpochsWaitForReaders holds a reader at each position around a retire: what it may have seen stays, and
// goes when it leaves.
func TestEpochsWaitForReaders(t *testing.T) {
	for before := range 5 { // retires before the reader enters
		c, e := newCollector()
		slow, quick := e.join(), e.join()
		for i := range uint64(before) {
			e.retire([]extent{{i, 1}})
		}
		epoch := e.enter(slow)
		released := len(c.slots)
		for i := range uint64(20) {
			e.retire([]extent{{100 + i, 1}})
			quick.exit(e.enter(quick)) // others come and go
			if !e.collect() || len(c.slots) != released {
				t.Fatalf("entered after %d: slots retired later were released while the reader was active", before)
			}
		}
		slow.exit(epoch)
		e.collect()
		if e.collect() {
			t.Fatalf("entered after %d: slots wait though the reader has left", before)
		}
		if len(c.slots) != before+20 {
			t.Errorf("entered after %d: %d slots released, want %d", before, len(c.slots), before+20)
		}
	}
}

// TestEpochsForgetWhoLeft keeps a queue that was detached from standing in the way.
func TestEpochsForgetWhoLeft(t *testing.T) {
	c, e := newCollector()
	a, b := e.join(), e.join()
	e.enter(a)
	e.retire([]extent{{1, 1}})
	if len(c.slots) != 0 {
		t.Fatal("released while a reader was active")
	}
	e.leave(a)
	e.leave(b)
	e.leave(b) // not there any more
	if e.collect() || c.slots[1] != 1 {
		t.Error("not released though no reader is left")
	}
}

// TestEpochsKeepSlotsFromReaders runs readers against a writer that moves blocks from slot to slot. A slot that is
// released is scribbled over at once, and no reader may ever see that.
func TestEpochsKeepSlotsFromReaders(t *testing.T) {
	const (
		blocks  = 8
		slots   = 64
		readers = 3
		moves   = 50000
	)
	var (
		mu    sync.Mutex // the lock of the map
		at    [blocks]uint64
		owner [slots]atomic.Int64 // block whose content the slot has; -1: free
		free  []uint64            // the writer's
		done  atomic.Bool
		wg    sync.WaitGroup
	)
	e := newEpochs(func(slot uint64, count uint32) {
		for i := range uint64(count) {
			owner[slot+i].Store(-1)
			free = append(free, slot+i) // within retire and collect: the writer's goroutine
		}
	})
	for s := range uint64(slots) {
		owner[s].Store(-1)
		if s < blocks {
			at[s] = s
			owner[s].Store(int64(s))
		} else {
			free = append(free, s)
		}
	}
	var reads atomic.Int64
	for i := range readers {
		r := e.join()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for !done.Load() {
				epoch := e.enter(r)
				block := rng.IntN(blocks)
				mu.Lock()
				slot := at[block]
				mu.Unlock()
				for range rng.IntN(20) {
					if got := owner[slot].Load(); got != int64(block) {
						t.Errorf("reader %d: slot %d of block %d holds block %d", i, slot, block, got)
						done.Store(true)
						break
					}
					if rng.IntN(200) == 0 {
						runtime.Gosched()
					}
				}
				r.exit(epoch)
				reads.Add(1)
				runtime.Gosched() // outside, so that few lose the processor inside
			}
		})
	}
	rng := rand.New(rand.NewPCG(99, 1))
	for n := 0; n < moves && !done.Load(); {
		if len(free) == 0 {
			e.collect()
			runtime.Gosched()
			continue
		}
		slot := free[len(free)-1]
		free = free[:len(free)-1]
		block := rng.IntN(blocks)
		owner[slot].Store(int64(block))
		mu.Lock()
		old := at[block]
		at[block] = slot
		mu.Unlock()
		e.retire([]extent{{old, 1}})
		n++
	}
	done.Store(true)
	wg.Wait()
	for e.collect() {
	}
	if len(free) != slots-blocks {
		t.Errorf("%d slots free in the end, want %d", len(free), slots-blocks)
	}
	t.Logf("%d moves beside %d reads", moves, reads.Load())
}

func BenchmarkEpochs(b *testing.B) {
	_, e := newCollector()
	r := e.join()
	b.ReportAllocs()
	for b.Loop() {
		r.exit(e.enter(r))
	}
}
