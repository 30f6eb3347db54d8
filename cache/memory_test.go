package cache

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// check compares what memory counts with what there is, and the index with the slots.
func (m *memory) check() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.index.Load()
	chunks, content, slots := 0, int64(0), 0
	for number := range x.segments {
		g := x.segments[number].Load()
		if g == nil {
			continue
		}
		for i := range g.slots {
			s := &g.slots[i]
			slots++
			if pins := s.state.Load() &^ taken; pins != 0 {
				return fmt.Errorf("slot %d of segment %d is pinned %d times", i, number, pins)
			}
			if s.queue == queueFree || s.queue == queueNone {
				continue
			}
			chunks++
			content += int64(s.len)
			found, _, id := x.pin(&s.key)
			if found == nil || id != makeSlotID(number, i) {
				return fmt.Errorf("the chunk in slot %d of segment %d is not found", i, number)
			}
			found.unpin()
		}
	}
	if chunks != m.chunks || content != m.content || slots != m.slots {
		return fmt.Errorf("%d chunks of %d bytes in %d slots, but %d, %d and %d are counted", chunks, content, slots, m.chunks, m.content, m.slots)
	}
	return nil
}

// numbered returns a key and content that follow from a number, and can be compared with each other.
func numbered(n uint64) (k Key) {
	rng := rand.NewPCG(n, 7)
	for i := 0; i < len(k); i += 8 {
		binary.LittleEndian.PutUint64(k[i:], rng.Uint64())
	}
	return k
}

func fillNumbered(p []byte, n uint64) {
	for i := 0; i+8 <= len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], n)
	}
}

// A slot is never filled while somebody reads it: readers find the whole chunk that they asked for, or none, however chunks come and go and the threshold
// changes. The second run has the slab where the race detector looks.
func TestNeverFilledUnderAReader(t *testing.T) {
	rounds := 4000
	if testing.Short() {
		rounds = 400
	}
	for name, o := range map[string]Options{"mapped": {}, "heap": {heap: 16 << 20}, "clock": {Policy: CLOCK}, "lru": {Policy: LRU, heap: 16 << 20}} {
		t.Run(name, func(t *testing.T) {
			o.MemoryBytes = MinMemory
			m := newCache(t, o).memory
			m.use(64*kib, 1)
			const keys = 120 // of which about half have room
			var hits, tried atomic.Int64
			var writers, readers sync.WaitGroup
			stop := make(chan struct{})
			worker := func(seed uint64, do func(rng *rand.Rand, p []byte)) func() {
				return func() {
					rng, p := rand.New(rand.NewPCG(seed, 5)), make([]byte, 64*kib)
					for range rounds {
						do(rng, p)
					}
				}
			}
			for i := range uint64(2) {
				readers.Go(worker(i, func(rng *rand.Rand, p []byte) {
					n := rng.Uint64N(keys)
					k := numbered(n)
					tried.Add(1)
					if !m.read(&k, p, 0, true) {
						fillNumbered(p, n)
						m.insert(&k, p, n%3 == 0)
						return
					}
					hits.Add(1)
					for at := 0; at < len(p); at += 256 {
						if got := binary.LittleEndian.Uint64(p[at:]); got != n {
							t.Errorf("byte %d of chunk %d is of chunk %d", at, n, got)
							return
						}
					}
				}))
			}
			writers.Go(func() {
				const life = 200 // chunks that are tried before all are dropped
				dropped := int64(0)
				for i := int64(0); ; i++ {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
					if err := m.setLimit(MinMemory + i%3<<20); err != nil {
						t.Error(err)
					}
					if n := tried.Load(); n >= dropped+life {
						m.drop()
						dropped = n
					}
				}
			})
			readers.Wait()
			close(stop)
			writers.Wait()
			if err := m.check(); err != nil {
				t.Error(err)
			}
			if hits.Load() < int64(rounds)/20 {
				t.Errorf("%d hits in %d rounds prove nothing", hits.Load(), 2*rounds)
			}
		})
	}
}

// A slot that somebody reads is not taken, even where no other is left.
func TestPinnedSlotsStay(t *testing.T) {
	for _, p := range Policies() {
		m := newCache(t, Options{Policy: p, MemoryBytes: MinMemory, heap: 8 << 20}).memory
		m.use(1<<20, 1)
		var pinned []*slot
		chunk := make([]byte, 1<<20)
		for n := range uint64(20) {
			k := numbered(n)
			m.insert(&k, chunk, false)
			if s, _, _ := m.index.Load().pin(&k); s != nil {
				pinned = append(pinned, s)
			}
		}
		st := m.stats()
		if len(pinned) == 0 || st.Evictions != 0 || int(st.Refused) != 20-len(pinned) {
			t.Errorf("%s: %d slots are pinned, %+v", p, len(pinned), st)
		}
		shrunk := make(chan error)
		go func() { shrunk <- m.setLimit(2 << 20) }()
		select {
		case err := <-shrunk:
			t.Errorf("%s: memory that is read was given back: %v", p, err)
		case <-time.After(5 * time.Millisecond):
		}
		for _, s := range pinned {
			s.unpin()
		}
		if err := <-shrunk; err != nil {
			t.Error(err)
		}
		if st := m.stats(); st.UsedBytes > 2<<20 {
			t.Errorf("%s: %d bytes are used after shrinking to 2 MiB", p, st.UsedBytes)
		}
	}
}

// Chunks of a second size get their share of memory that is full, and that of a size that no open image has goes first.
func TestClassesShare(t *testing.T) {
	c := newCache(t, Options{MemoryBytes: 20 << 20})
	big, small := &keysOrigin{fakeOrigin{size: 24 << 20, chunk: 64 * kib}}, &keysOrigin{fakeOrigin{seed: 9, size: 24 << 20, chunk: 4 * kib}}
	segments := func(slotBytes int) int {
		c.memory.mu.Lock()
		defer c.memory.mu.Unlock()
		return c.memory.classOf(slotBytes).segments
	}
	p := make([]byte, 24<<20)
	r := c.Open(big)
	if err := r.Reader().Read(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	if n := segments(64 * kib); n < 14 {
		t.Errorf("one image in a memory of 20 MiB has %d MiB", n)
	}
	s := open(t, c, small)
	if err := s.Reader().Read(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	if n, o := segments(64*kib), segments(4*kib); n < 6 || o < 6 || n > 8 {
		t.Errorf("two images have %d and %d MiB", n, o)
	}
	r.Close()
	if err := s.Reader().Read(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	if n, o := segments(64*kib), segments(4*kib); n != 0 || o < 12 {
		t.Errorf("after one was closed, they have %d and %d MiB", n, o)
	}
	if err := c.memory.check(); err != nil {
		t.Error(err)
	}
}

func TestHitsDoNotAllocate(t *testing.T) {
	for _, p := range Policies() {
		c := newCache(t, Options{Policy: p})
		o := &fakeOrigin{size: 4 << 20, chunk: 64 * kib, zeros: func(i int64) bool { return i == 1 }}
		v := open(t, c, o).Reader()
		mustRead(t, v, o, 0, 1<<20)
		buf := make([]byte, 192*kib)
		if n := testing.AllocsPerRun(100, func() {
			if !v.TryRead(buf, 1234) {
				t.Fatal("no hit")
			}
		}); n != 0 {
			t.Errorf("%s: a hit takes %v allocations", p, n)
		}
		if n := testing.AllocsPerRun(100, func() {
			if v.TryRead(buf, 3<<20) {
				t.Fatal("a hit of what was never read")
			}
		}); n != 0 {
			t.Errorf("%s: a miss takes %v allocations before it is asked for", p, n)
		}
	}
}

// Pages of digests are bounded, however large the image is, and what went comes again.
func TestDigestsAreBounded(t *testing.T) {
	c := newCache(t, Options{MemoryBytes: MinMemory})
	o := &keysOrigin{fakeOrigin{size: 10 << 40, chunk: 64 * kib}}
	v := open(t, c, o).Reader()
	rng := rand.New(rand.NewPCG(1, 2))
	p, want := make([]byte, 512), make([]byte, 512)
	for range 200 {
		off := rng.Int64N(o.size>>9) << 9
		o.fill(want, off)
		if err := v.Read(within(t), p, off); err != nil || !bytes.Equal(p, want) {
			t.Fatalf("read at %d: other content, or %v", off, err)
		}
	}
	s := c.Stats()
	if s.Pages > leastPages || s.Memory.UsedBytes > s.Memory.ThresholdBytes {
		t.Errorf("%d pages, %+v", s.Pages, s.Memory)
	}
}
