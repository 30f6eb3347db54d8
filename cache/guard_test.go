package cache

import (
	"sync"
	"testing"
)

// Where there is no disk tier, or none any more, a miss starts no goroutine for one and takes no buffer: it allocates nothing.
func TestNoDiskTierCostsNothing(t *testing.T) {
	o := &fakeOrigin{size: 1 << 20, chunk: 64 * kib}
	all := []*ticket{{Chunk: o.named(0)}, {Chunk: o.named(1)}}
	disk := newFakeTier()
	for name, c := range map[string]*Cache{"never": newCache(t, Options{}), "lost": newCache(t, Options{Disk: disk})} {
		c.SetDisk(nil)
		allocated := testing.AllocsPerRun(1000, func() {
			if rest := c.ask(t.Context(), &c.near, c.disk.Load(), (*guard).get, FromDisk, all); len(rest) != len(all) {
				t.Errorf("%d chunks are to be had elsewhere, not %d", len(rest), len(all))
			}
			if c.disk.Load().get(t.Context(), all[0].Chunk) != nil {
				t.Error("a chunk came from nowhere")
			}
		})
		if s := c.Stats().Disk; allocated != 0 || s != nil || disk.gets != 0 {
			t.Errorf("%s: %v allocations, and the tier counts %+v", name, allocated, s)
		}
	}
}

// A disk tier that comes and goes while images are read gives what it has while it is there, and no read notices more.
func TestDiskTierComesAndGoes(t *testing.T) {
	c := newCache(t, Options{MemoryBytes: MinMemory})
	o := &fakeOrigin{size: 1 << 20, chunk: 64 * kib}
	v := open(t, c, o).Reader()
	lost := make(chan struct{})
	var readers sync.WaitGroup
	for i := range int64(4) {
		readers.Go(func() {
			for n := i; ; n++ {
				select {
				case <-lost:
					return
				default:
				}
				mustRead(t, v, o, n%16*64*kib, 64*kib)
				if err := c.Drop(false); err != nil {
					t.Error(err)
				}
			}
		})
	}
	hits := uint64(0)
	for range 10 {
		disk := newFakeTier()
		c.SetDisk(disk)
		eventually(t, "the tier gives a chunk", func() bool { return c.Stats().Disk.Hits > hits })
		hits = c.Stats().Disk.Hits
		c.SetDisk(nil)
		if s := c.Stats().Disk; s != nil {
			t.Errorf("without a tier: %+v", s)
		}
	}
	close(lost)
	readers.Wait()
	if s := v.Stats(); s.Disk.Chunks == 0 || s.Origin.Chunks == 0 || s.Errors != 0 {
		t.Errorf("%+v", s)
	}
}
