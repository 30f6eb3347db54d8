package union

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// client writes and reads sectors of its own, which lie between those of the others, and knows what they hold.
type client struct {
	fake    *ublktest.Fake
	rng     *rand.Rand
	from    int64 // first byte that is its own
	content []byte
	stamp   uint64
}

const (
	clients     = 4
	clientBytes = 600 << 10 // no multiple of a region, and blocks at its ends are shared
	clientGap   = 3 * sector
)

func (c *client) step() error {
	n := len(c.content) / sector
	first := c.rng.IntN(n)
	count := min(1+c.rng.IntN(40), n-first)
	own := c.content[first*sector : (first+count)*sector]
	off := c.from + int64(first)*sector
	switch k := c.rng.IntN(16); {
	case k < 6:
		c.stamp++
		fill(own, c.stamp)
		if k == 0 {
			return c.fake.Do(ublk.Descriptor{Op: ublk.OpWrite, FUA: true, Off: off, Len: int64(len(own))}, own)
		}
		_, err := c.fake.WriteAt(own, off)
		return err
	case k < 8:
		clear(own)
		return c.fake.Discard(off, int64(len(own)))
	case k < 9:
		return c.fake.Flush()
	default:
		return c.compare(first, count)
	}
}

func (c *client) compare(first, count int) error {
	want := c.content[first*sector : (first+count)*sector]
	got := make([]byte, len(want))
	off := c.from + int64(first)*sector
	if _, err := c.fake.ReadAt(got, off); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes at %d differ", len(got), off)
	}
	return nil
}

// TestConcurrentClients has real reactors serve two queues, while checkpoints, commits and changes of layers go on, and the
// store is near full so that slots are reused at once. Every client reads what it wrote last.
func TestConcurrentClients(t *testing.T) {
	const size = clients*(clientBytes+clientGap) + 2<<20
	dir := runDir(t)
	rootPath := filepath.Join(dir, "root")
	root := make([]byte, size*2/3+100)
	for i := range root {
		root[i] = byte(i >> 9)
	}
	if err := os.WriteFile(rootPath, root, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "leaf")
	if _, err := Format(path, FormatOptions{SizeBytes: MinStoreBytes}); err != nil {
		t.Fatal(err)
	}
	rounds := 1500
	if testing.Short() {
		rounds = 300
	}
	all := make([]*client, clients)
	for i := range all {
		all[i] = &client{rng: rand.New(rand.NewPCG(uint64(i), 16)), from: int64(i) * (clientBytes + clientGap),
			content: make([]byte, clientBytes), stamp: uint64(i) << 32}
		if off := int(all[i].from); off < len(root) {
			copy(all[i].content, root[off:])
		}
	}
	for life := range 2 {
		base, err := OpenRaw(rootPath)
		if err != nil {
			t.Fatal(err)
		}
		store, err := OpenStore(path, StoreOptions{RunDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		layer, err := store.OpenLayer("web1", LayerOptions{Create: true, Pin: base.Pin(), SizeBytes: size})
		if err != nil {
			t.Fatal(err)
		}
		dev, err := NewDevice(layer, base, DeviceOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// What is left when these slots are gone is turned over many times.
		taken, _ := store.slots.alloc(nil, int(store.slots.freeSlots()-store.keepFor(classData, 0))-900, 0)
		serve(t, dev, size, func(fake *ublktest.Fake) {
			var work, background sync.WaitGroup
			var done atomic.Bool
			background.Go(func() {
				for i := 0; !done.Load(); i++ {
					if err := store.Checkpoint(); err != nil {
						t.Error(err)
					}
					l, err := store.OpenLayer("other", LayerOptions{Create: true, SizeBytes: 1 << 20})
					if err != nil {
						t.Error(err)
						return
					}
					l.Release()
					if err := store.RemoveLayer("other"); err != nil {
						t.Error(err)
					}
					_, _ = store.Info(), dev.Stats()
				}
			})
			for i, c := range all {
				c.fake = fake
				work.Go(func() {
					for n := range rounds {
						if err := c.step(); err != nil {
							t.Errorf("life %d, client %d, step %d: %v", life, i, n, err)
							return
						}
					}
				})
			}
			work.Wait()
			done.Store(true)
			background.Wait()
			for i, c := range all {
				for first := 0; first < len(c.content)/sector; first += 100 {
					if err := c.compare(first, 100); err != nil {
						t.Errorf("life %d, client %d in the end: %v", life, i, err)
					}
				}
			}
		})
		store.releaseAll(taken)
		layer.Release()
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		if err := base.Close(); err != nil {
			t.Error(err)
		}
		rep, err := Check(path, CheckOptions{})
		if err != nil || len(rep.Problems) != 0 {
			t.Errorf("check: %+v %v", rep, err)
		}
	}
}

// serve has reactors serve the device while f runs.
func serve(t *testing.T, dev *Device, size int64, f func(*ublktest.Fake)) {
	t.Helper()
	rs, err := ublk.NewReactors(ublk.ReactorConfig{})
	if err != nil {
		t.Fatal(err)
	}
	fake, err := ublktest.NewFake(ublktest.FakeConfig{SizeBytes: size, Queues: 2, Depth: 8, MaxIO: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	at, err := fake.Start(rs, dev)
	if err != nil {
		t.Fatal(err)
	}
	f(fake)
	fake.Stop()
	<-at.Ended()
	for _, err := range []error{at.Err(), fake.Err(), fake.Close(), rs.Close()} {
		if err != nil {
			t.Error(err)
		}
	}
}
