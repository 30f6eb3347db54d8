package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"coppice/image"
)

const kib = 1 << 10

// A request that is partly cached takes that part from memory, and the origin is asked for just the rest, neighbours in one read.
func TestPartlyCached(t *testing.T) {
	c := newCache(t, Options{})
	o := &fakeOrigin{size: 64*64*kib + 100, chunk: 64 * kib}
	v := open(t, c, o).Reader()
	mustRead(t, v, o, 3*64*kib, 64*kib)
	mustRead(t, v, o, 6*64*kib+5, 10)
	if got, want := o.asked(), []readRange{{3 * 64 * kib, 64 * kib}, {6 * 64 * kib, 64 * kib}}; !slices.Equal(got, want) {
		t.Fatalf("the origin was asked for %v, not %v", got, want)
	}
	before := v.Stats()
	mustRead(t, v, o, 64*kib+1, 8*64*kib)
	got := o.asked()
	slices.SortFunc(got, func(a, b readRange) int { return int(a.off - b.off) })
	want := []readRange{{64 * kib, 2 * 64 * kib}, {4 * 64 * kib, 2 * 64 * kib}, {7 * 64 * kib, 3 * 64 * kib}}
	if !slices.Equal(got, want) {
		t.Fatalf("the origin was asked for %v, not %v", got, want)
	}
	after := v.Stats()
	if n := after.Memory.Bytes - before.Memory.Bytes; n != 2*64*kib {
		t.Errorf("%d bytes came from memory, not those of two chunks", n)
	}
	mustRead(t, v, o, o.size-150, 150)
	o.asked()
	mustRead(t, v, o, 0, 64*kib)
	mustRead(t, v, o, 64*kib, 9*64*kib)
	if got := o.asked(); !slices.Equal(got, []readRange{{0, 64 * kib}}) {
		t.Fatalf("the origin was asked for %v, and all but the first chunk was cached", got)
	}
	for _, p := range [][]byte{make([]byte, 64*kib+17), make([]byte, 150)} {
		off := o.size - 150
		if len(p) > 150 {
			off = 70 * kib
		}
		if !v.TryRead(p, off) || !bytes.Equal(p, o.bytes(off, len(p))) {
			t.Errorf("%d bytes at %d are not in memory, or not right", len(p), off)
		}
	}
	if v.TryRead(make([]byte, 10), 60*64*kib) || v.TryRead(make([]byte, 2), o.size-1) || v.TryRead(make([]byte, 2), -1) {
		t.Error("what is not there was read")
	}
}

// Roots with chunks of other sizes, and of the same content, share one cache. Zeros are nowhere.
func TestSharing(t *testing.T) {
	c := newCache(t, Options{})
	a := &fakeOrigin{size: 1 << 20, chunk: 64 * kib, zeros: func(i int64) bool { return i%2 == 1 }}
	b := &fakeOrigin{size: 1<<20 + 64*kib, chunk: 64 * kib, zeros: a.zeros} // a later version
	small := &fakeOrigin{seed: 1, size: 300 * kib, chunk: 4 * kib}
	v, w, x := open(t, c, a).Reader(), open(t, c, b).Reader(), open(t, c, small).Reader()
	mustRead(t, v, a, 0, 1<<20)
	mustRead(t, w, b, 0, 1<<20)
	mustRead(t, x, small, 0, 300*kib)
	if got := b.asked(); len(got) != 0 {
		t.Errorf("a later version was read at %v, though it has the same chunks", got)
	}
	s := c.Stats()
	if want := 8 + 75; s.Memory.Chunks != want || s.Memory.ContentBytes != 8*64*kib+300*kib {
		t.Errorf("%d chunks of %d bytes are in memory, not %d", s.Memory.Chunks, s.Memory.ContentBytes, want)
	}
	if s.Readers.Zeros.Chunks != 16 || s.Readers.Memory.Chunks != 8 || s.Readers.Origin.Bytes != 8*64*kib+300*kib || s.Images != 3 {
		t.Errorf("stats %+v", s)
	}
	x.Close()
	if got := c.Stats().Readers; got.Origin != s.Readers.Origin {
		t.Errorf("a device went, and what all read is %+v, not %+v", got, s.Readers)
	}
}

// However many want a chunk at once, over whichever roots, the origin is asked once.
func TestSingleFlight(t *testing.T) {
	c := newCache(t, Options{})
	o := &fakeOrigin{size: 1 << 20, chunk: 64 * kib, gate: make(chan struct{})}
	roots := []*Root{open(t, c, o), open(t, c, o)}
	var readers sync.WaitGroup
	for i := range 40 {
		v := roots[i%2].Reader()
		if i%5 == 4 {
			readers.Go(func() {
				p := make([]byte, 64*kib)
				if err := c.Serve(within(t), o.named(1), p); err != nil || !bytes.Equal(p, o.content(1)) {
					t.Errorf("serve: %v", err)
				}
			})
			continue
		}
		readers.Go(func() { mustRead(t, v, o, 64*kib+int64(i), 1000) })
	}
	eventually(t, "the origin was asked", func() bool { o.mu.Lock(); defer o.mu.Unlock(); return len(o.reads) > 0 })
	close(o.gate)
	readers.Wait()
	if got := o.asked(); !slices.Equal(got, []readRange{{64 * kib, 64 * kib}}) {
		t.Errorf("the origin was asked for %v", got)
	}
	if len(o.pages) > 2 {
		t.Errorf("digests of %v were asked for, of two roots with one page each", o.pages)
	}
}

// Tiers are asked in order, for what is missing, and get what those behind them gave.
func TestOrderOfTiers(t *testing.T) {
	disk, peers, appliance := newFakeTier(), newFakeTier(), newFakeTier()
	c := newCache(t, Options{Disk: disk, Peers: peers, Appliance: appliance})
	o := &fakeOrigin{size: 1 << 20, chunk: 64 * kib}
	v := open(t, c, o).Reader()
	disk.Put(o.named(0), o.content(0))
	peers.Put(o.named(1), o.content(1))
	appliance.Put(o.named(2), o.content(2))
	mustRead(t, v, o, 0, 4*64*kib)
	if got := o.asked(); !slices.Equal(got, []readRange{{3 * 64 * kib, 64 * kib}}) {
		t.Errorf("the origin was asked for %v", got)
	}
	v.root.Close() // when all offers are made
	if disk.gets != 4 || peers.gets != 3 || appliance.gets != 2 {
		t.Errorf("disk, peers and appliance were asked %d, %d and %d times", disk.gets, peers.gets, appliance.gets)
	}
	for index := range int64(4) {
		k := o.key(index)
		has := []bool{disk.has(k), peers.has(k), appliance.has(k)}
		if want := []bool{true, index != 0, index > 1}; !slices.Equal(has, want) {
			t.Errorf("chunk %d is in disk, peers, appliance: %v, not %v", index, has, want)
		}
	}
	s := v.Stats()
	one := Part{1, 64 * kib}
	if s.Disk != one || s.Peers != one || s.Appliance != one || s.Origin != one || s.Reads != 1 {
		t.Errorf("stats %+v", s)
	}
}

// What a tier gives that is not the chunk goes nowhere: the next tier is asked.
func TestLyingTiers(t *testing.T) {
	for name, at := range map[string]int{"disk": 0, "peers": 1, "appliance": 2} {
		t.Run(name, func(t *testing.T) {
			tiers := []*fakeTier{newFakeTier(), newFakeTier(), newFakeTier()}
			c := newCache(t, Options{Disk: tiers[0], Peers: tiers[1], Appliance: tiers[2]})
			o := &fakeOrigin{size: 1 << 20, chunk: 64 * kib}
			v := open(t, c, o).Reader()
			tiers[at].lie = true
			mustRead(t, v, o, 5*64*kib, 64*kib)
			p := make([]byte, 64*kib)
			if !v.TryRead(p, 5*64*kib) || !bytes.Equal(p, o.content(5)) {
				t.Error("memory has no chunk, or another")
			}
			v.root.Close() // when all offers are made
			if got := tiers[at].rejected; !slices.Equal(got, []Key{o.key(5)}) {
				t.Errorf("rejected: %v", got)
			}
			for i, tier := range tiers {
				for k, content := range tier.chunks {
					if Key(sha256.Sum256(content)) != k {
						t.Errorf("tier %d was offered a lie", i)
					}
				}
			}
			s := c.Stats()
			if got := []*TierStats{s.Disk, s.Peers, s.Appliance}[at].Rejected; got != 1 {
				t.Errorf("%d rejected", got)
			}
		})
	}
}

// A tier that is lost, in whatever way, costs time and no error, and no read takes two seconds.
func TestLostTiers(t *testing.T) {
	for name, lose := range map[string]func(*fakeTier){
		"fails": func(t *fakeTier) { t.err = errors.New("input/output error") },
		"hangs": func(t *fakeTier) { t.hang = make(chan struct{}) },
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { loseTiers(t, lose, name == "hangs") }) })
	}
}

// loseTiers reads an image while all tiers are lost, in virtual time.
func loseTiers(t *testing.T, lose func(*fakeTier), hang bool) {
	tiers := []*fakeTier{newFakeTier(), newFakeTier(), newFakeTier()}
	c := newCache(t, Options{
		Disk: tiers[0], Peers: fakePeers{tiers[1]}, Appliance: tiers[2], DiskTime: defaultDiskTime, PeersTime: defaultPeersTime, ApplianceTime: defaultApplianceTime,
	})
	o := &fakeOrigin{size: 4 << 20, chunk: 64 * kib}
	v := open(t, c, o).Reader()
	mustRead(t, v, o, 0, 6*64*kib)
	for _, tier := range tiers {
		tier.set(lose)
	}
	longest := time.Duration(0)
	for index := range int64(64) {
		began := time.Now()
		mustRead(t, v, o, index*64*kib, 64*kib)
		longest = max(longest, time.Since(began))
	}
	if longest > 2*time.Second {
		t.Errorf("a read took %s", longest)
	}
	if s := c.Stats(); hang && (!s.Disk.Aside || s.Disk.Skipped < 30) {
		t.Errorf("a tier that hangs is asked again and again: %+v", s.Disk)
	}
	for _, tier := range tiers {
		if hang {
			close(tier.hang)
			tier.set(func(t *fakeTier) { t.hang = nil })
		}
	}
	time.Sleep(mostAside)
	if err := c.Drop(false); err != nil {
		t.Fatal(err)
	}
	before := c.Stats()
	mustRead(t, v, o, 0, 4*64*kib)
	if s := c.Stats(); hang && (s.Disk.Aside || s.Disk.Hits == before.Disk.Hits) {
		t.Errorf("a tier that answers again is not asked: %+v", s.Disk)
	}
}

// A fetch ends when nobody waits for it any more, and one that is left by one of two goes on.
func TestCalledOff(t *testing.T) { synctest.Test(t, callOff) }

func callOff(t *testing.T) {
	c := newCache(t, Options{})
	o := &fakeOrigin{size: 1 << 20, chunk: 64 * kib, gate: make(chan struct{})}
	r := open(t, c, o)
	ctx, cancel := context.WithCancel(within(t))
	first, second := make(chan error), make(chan error)
	go func() { first <- r.Reader().Read(ctx, make([]byte, 10), 0) }()
	eventually(t, "the origin was asked", func() bool { return len(o.asked()) == 1 })
	go func() { second <- r.Reader().Read(within(t), make([]byte, 10), 0) }()
	synctest.Wait() // until both wait
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("one that was called off: %v", err)
	}
	close(o.gate)
	if err := <-second; err != nil {
		t.Error(err)
	}

	o.set(func() { o.gate = make(chan struct{}) })
	ctx, cancel = context.WithCancel(within(t))
	go func() { first <- r.Reader().Read(ctx, make([]byte, 10), 128*kib) }()
	eventually(t, "the origin was asked", func() bool { return len(o.asked()) >= 1 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("one that was called off: %v", err)
	}
	eventually(t, "the origin was called off", func() bool { return c.Stats().Origin.Errors == 1 })
}

// Who waits for a fetch that fails through somebody else's image fetches through their own.
func TestOthersFail(t *testing.T) { synctest.Test(t, failOthers) }

func failOthers(t *testing.T) {
	c := newCache(t, Options{})
	bad := &fakeOrigin{size: 1 << 20, chunk: 64 * kib, gate: make(chan struct{})}
	good := &fakeOrigin{size: 1 << 20, chunk: 64 * kib}
	r := c.Open(bad)
	v := open(t, c, good).Reader()
	first, second := make(chan error), make(chan error)
	go func() { first <- r.Reader().Read(within(t), make([]byte, 10), 0) }()
	eventually(t, "the origin was asked", func() bool { return len(bad.asked()) == 1 })
	go func() { second <- v.Read(within(t), make([]byte, 10), 0) }()
	synctest.Wait() // until both wait
	r.Close()
	if err := <-first; !errors.Is(err, image.ErrClosed) {
		t.Errorf("read of a root that was closed: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("read through another root: %v", err)
	}
	if err := r.Reader().Read(within(t), make([]byte, 10), 128*kib); !errors.Is(err, image.ErrClosed) {
		t.Errorf("read after the close: %v", err)
	}
	good.set(func() { good.err = errors.New("no route to host") })
	if err := v.Read(within(t), make([]byte, 10), 512*kib); err == nil || !strings.Contains(err.Error(), "no route") {
		t.Errorf("an origin that fails: %v", err)
	}
}

// Peers are served what this node has, or can fetch, and never through peers of its own.
func TestServe(t *testing.T) {
	disk, peers, appliance := newFakeTier(), newFakeTier(), newFakeTier()
	c := newCache(t, Options{Disk: disk, Peers: peers, Appliance: appliance})
	o := &fakeOrigin{size: 1<<20 + 10, chunk: 64 * kib}
	serve := func(chunk Chunk, n int) error { return c.Serve(within(t), chunk, make([]byte, n)) }
	if err := serve(o.named(3), 64*kib); !errors.Is(err, ErrMiss) {
		t.Errorf("an image that is not open: %v", err)
	}
	open(t, c, o)
	p := make([]byte, 10)
	if err := c.Serve(within(t), o.named(16), p); err != nil || !bytes.Equal(p, o.content(16)) {
		t.Errorf("the last chunk, from the origin: %v", err)
	}
	disk.Put(o.named(4), o.content(4))
	appliance.Put(o.named(5), o.content(5))
	for index := range int64(8) {
		if err := serve(o.named(index), 64*kib); err != nil {
			t.Errorf("chunk %d: %v", index, err)
		}
	}
	if peers.gets != 0 {
		t.Errorf("peers were asked %d times for a peer", peers.gets)
	}
	if got := len(o.asked()); got != 7 {
		t.Errorf("the origin was asked %d times, not for 7 chunks", got)
	}
	wrong := o.named(9)
	wrong.Index = 10
	for name, chunk := range map[string]Chunk{"other index": wrong, "index beyond the end": {Key: o.key(9), Root: o.ContentRoot(), Index: 1 << 60, Len: 64 * kib},
		"negative index": {Key: o.key(9), Root: o.ContentRoot(), Index: -1, Len: 64 * kib}} {
		if err := serve(chunk, chunk.Len); !errors.Is(err, ErrMiss) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := serve(o.named(0), 5); err == nil {
		t.Error("a chunk was served into too small a buffer")
	}
	s := c.Stats().Served
	if s.Hits != 9 || s.Misses != 5 || s.Bytes != 8*64*kib+10 {
		t.Errorf("stats %+v", s)
	}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{{MemoryBytes: 1 << 20}, {MemoryBytes: -1}, {MemoryBytes: 1 << 60}, {Policy: "mru"}, {PeersTime: -1}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

func TestDrop(t *testing.T) {
	disk := newFakeTier()
	c := newCache(t, Options{Disk: disk})
	o := &fakeOrigin{size: 1 << 20, chunk: 64 * kib}
	v := open(t, c, o).Reader()
	mustRead(t, v, o, 0, 1<<20)
	eventually(t, "the disk was offered all", func() bool { return disk.has(o.key(15)) })
	if err := c.Drop(false); err != nil {
		t.Fatal(err)
	}
	if s := c.Stats().Memory; s.Chunks != 0 || s.ContentBytes != 0 {
		t.Errorf("after drop: %+v", s)
	}
	mustRead(t, v, o, 0, 1<<20)
	if s := v.Stats(); s.Disk.Chunks != 16 {
		t.Errorf("after drop of memory, disk gave %d chunks", s.Disk.Chunks)
	}
	if err := c.Drop(true); err == nil {
		t.Error("a tier that cannot forget did")
	}
}
