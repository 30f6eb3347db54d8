package union

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// threads is a [ublk.Target] with a goroutine for each queue and one for each target I/O: nothing about its order is
// determined, and the race detector sees what real threads would do.
type threads struct {
	disk  *ublktest.Disk
	queue *ublk.Queue
	calls chan func()
	tags  chan int
	done  []func(errno syscall.Errno, p []byte) // by tag; only its thread uses it
	ios   sync.WaitGroup
	ended chan struct{}
}

const threadDepth = 4

func newThreads(t *testing.T, disk *ublktest.Disk, h ublk.Handler, index int, size int64) *threads {
	t.Helper()
	// Each tag has at most a few calls outstanding: its start, its I/Os and a post. A full channel would stop the queue's thread, which
	// empties it.
	x := &threads{disk: disk, calls: make(chan func(), 1024), tags: make(chan int, threadDepth),
		done: make([]func(syscall.Errno, []byte), threadDepth), ended: make(chan struct{})}
	q, err := ublk.NewQueue(ublk.QueueConfig{Handler: h, Index: index, Depth: threadDepth, MaxIO: 32 << 10, SizeBytes: size}, x)
	if err != nil {
		t.Fatal(err)
	}
	x.queue = q
	if err := h.Attach(q); err != nil {
		t.Fatal(err)
	}
	for tag := range threadDepth {
		x.tags <- tag
	}
	go func() {
		defer close(x.ended)
		for f := range x.calls {
			f()
		}
	}()
	return x
}

// close ends the queue's thread. No request may be in service. Without detach the handler is told nothing, as when the process dies.
func (x *threads) close(h ublk.Handler, detach bool) {
	x.ios.Wait()
	close(x.calls)
	<-x.ended
	if detach {
		h.Detach(x.queue)
	}
	x.queue.Release()
}

// do carries out a request and returns what it read.
func (x *threads) do(d ublk.Descriptor, data []byte) ([]byte, syscall.Errno) {
	type answer struct {
		errno syscall.Errno
		p     []byte
	}
	ch := make(chan answer, 1)
	tag := <-x.tags
	x.calls <- func() {
		x.done[tag] = func(errno syscall.Errno, p []byte) { ch <- answer{errno, slices.Clone(p)} }
		if d.Op == ublk.OpWrite {
			copy(x.queue.Buffer(tag), data)
		}
		x.queue.Start(tag, d)
	}
	a := <-ch
	x.tags <- tag
	return a.p, a.errno
}

func (x *threads) io(r *ublk.Request, cookie uint16, f func() int32) {
	x.ios.Go(func() {
		for range rand.IntN(4) {
			runtime.Gosched()
		}
		res := f()
		x.calls <- func() { x.queue.Resume(r, cookie, res) }
	})
}

func result(n int, err error) int32 {
	if err != nil {
		return -int32(syscall.EIO)
	}
	return int32(n)
}

func (x *threads) RegisterFile(*ublk.Queue, *os.File) (ublk.File, error) { return 0, nil }
func (x *threads) ReleaseFiles(*ublk.Queue)                              {}
func (x *threads) Now() int64                                            { return time.Now().UnixNano() }

func (x *threads) Read(r *ublk.Request, _ ublk.File, p []byte, off int64, cookie uint16) {
	x.io(r, cookie, func() int32 { return result(x.disk.ReadAt(p, off)) })
}

func (x *threads) Write(r *ublk.Request, _ ublk.File, p []byte, off int64, dsync bool, cookie uint16) {
	x.io(r, cookie, func() int32 {
		if dsync {
			return result(len(p), x.disk.WriteDurable(p, off))
		}
		return result(x.disk.WriteAt(p, off))
	})
}

func (x *threads) Fsync(r *ublk.Request, _ ublk.File, cookie uint16) {
	end := x.disk.BeginSync()
	x.io(r, cookie, func() int32 {
		end()
		return 0
	})
}

func (x *threads) Post(r *ublk.Request) {
	x.ios.Go(func() { x.calls <- func() { x.queue.ResumePosted(r) } })
}

func (x *threads) Commit(r *ublk.Request, res int32) {
	var errno syscall.Errno
	if res < 0 {
		errno = syscall.Errno(-res)
	}
	var p []byte
	if r.Op == ublk.OpRead && res > 0 {
		p = r.Buf
	}
	x.done[r.Tag()](errno, p)
}

// crowd is a device with several clients on threads of their own, and what may be found of what they wrote.
type crowd struct {
	t      *testing.T
	base   *simBase
	size   int64
	queues []*threads
	store  *Store
	layer  *Layer

	mu     sync.Mutex
	model  *layerModel
	sealed map[string][]byte // content of layers that must be there
	stamp  uint64
}

// client writes to sectors from first on, which are its own, as are count-1 more.
func (c *crowd) client(seed uint64, first, count, rounds int) {
	rng := rand.New(rand.NewPCG(seed, uint64(first)))
	q := c.queues[first%len(c.queues)]
	for range rounds {
		from := first + rng.IntN(count)
		n := min(1+rng.IntN(16), first+count-from)
		d := ublk.Descriptor{Off: int64(from) * sector, Len: int64(n) * sector}
		switch k := rng.IntN(16); {
		case k < 8:
			d.Op, d.FUA = ublk.OpWrite, k < 2
			c.change(q, d, from, n)
		case k < 10:
			d.Op = ublk.OpDiscard
			c.change(q, d, from, n)
		case k < 13:
			c.flush(q)
		default:
			d.Op = ublk.OpRead
			c.read(q, d, from, n)
		}
	}
}

func (c *crowd) change(q *threads, d ublk.Descriptor, first, count int) {
	data := make([]byte, count*sector)
	at := make([]int, count)
	var req *simRequest
	c.mu.Lock()
	if d.Op == ublk.OpWrite {
		c.stamp++
		req = &simRequest{first, at}
	}
	for i := range count {
		x := &c.model.sectors[first+i]
		p := data[i*sector:][:sector:sector]
		if req != nil {
			fill(p, c.stamp<<16|uint64(first+i))
		}
		at[i] = len(x.history)
		x.history = append(x.history, sectorValue{p, req})
	}
	c.mu.Unlock()
	if d.Op != ublk.OpWrite {
		data = nil
	}
	_, errno := q.do(d, data)
	c.mu.Lock()
	defer c.mu.Unlock()
	if errno != 0 && errno != syscall.ENOSPC {
		c.t.Errorf("write of sectors %d to %d: %v", first, first+count-1, errno)
	}
	for i := range count {
		x := &c.model.sectors[first+i]
		if errno != 0 {
			continue
		}
		x.acked = at[i]
		if d.FUA {
			x.floor = at[i]
		}
	}
}

func (c *crowd) flush(q *threads) {
	covered := make([]int, len(c.model.sectors))
	c.mu.Lock()
	for s := range covered {
		covered[s] = c.model.sectors[s].acked
	}
	c.mu.Unlock()
	if _, errno := q.do(flushDescriptor, nil); errno != 0 {
		c.t.Errorf("flush: %v", errno)
		return
	}
	c.cover(covered)
}

func (c *crowd) cover(covered []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s, at := range covered {
		c.model.sectors[s].floor = max(c.model.sectors[s].floor, at)
	}
}

func (c *crowd) read(q *threads, d ublk.Descriptor, first, count int) {
	c.mu.Lock()
	var want [][]byte
	for s := first; s < first+count; s++ { // nobody else writes them
		x := &c.model.sectors[s]
		want = append(want, x.history[x.acked].p)
	}
	failed := len(c.model.sectors[first].history)-1 != c.model.sectors[first].acked
	c.mu.Unlock()
	p, errno := q.do(d, nil)
	if errno != 0 {
		c.t.Errorf("read of sectors %d to %d: %v", first, first+count-1, errno)
		return
	}
	for i := range want {
		if !failed && string(p[i*sector:][:sector]) != string(want[i]) {
			c.t.Errorf("sector %d is not what was written last", first+i)
			return
		}
	}
}

// manage does the store's background work, and changes its layers.
func (c *crowd) manage(rng *rand.Rand, stop *atomic.Bool) {
	for i := 0; !stop.Load(); i++ {
		select {
		case <-c.store.kick:
			c.store.maintain()
		default:
		}
		switch rng.IntN(4) {
		case 0:
			if err := c.store.Checkpoint(); err != nil {
				c.t.Error(err)
			}
		case 1:
			c.freeze(fmt.Sprintf("sealed%d", i))
		case 2:
			below := c.layer.Info().Parent
			c.mu.Lock()
			delete(c.sealed, below)
			c.mu.Unlock()
			if below == "" {
				continue
			}
			if err := c.layer.Merge(); err != nil {
				c.t.Error(err)
			}
		default:
			runtime.Gosched()
		}
	}
}

func (c *crowd) freeze(name string) {
	if c.layer.Info().Parent != "" {
		return
	}
	f, err := c.layer.PrepareFreeze(name)
	if err == nil {
		_, err = f.Seal()
	}
	if err != nil {
		c.t.Error(err)
		return
	}
	l, err := c.store.OpenSealed(name)
	if err != nil {
		c.t.Error(err)
		return
	}
	defer l.CloseSealed()
	content := make([]byte, c.size)
	if err := l.readAt(c.base, content, 0); err != nil {
		c.t.Error(err)
		return
	}
	c.mu.Lock()
	c.sealed[name] = content
	c.mu.Unlock()
}

// snapshot copies the bounds of the model, has f take its image, and copies what may be found by then.
func (c *crowd) snapshot(f func()) (*layerModel, map[string][]byte) {
	m := &layerModel{name: c.model.name, sectors: make([]sectorModel, len(c.model.sectors))}
	must := map[string][]byte{}
	c.mu.Lock()
	for s := range m.sectors {
		m.sectors[s].floor, m.sectors[s].acked = c.model.sectors[s].floor, c.model.sectors[s].acked
	}
	before := make(map[string][]byte, len(c.sealed))
	for name, p := range c.sealed {
		before[name] = p
	}
	c.mu.Unlock()
	f()
	c.mu.Lock()
	for s := range m.sectors {
		m.sectors[s].history = slices.Clone(c.model.sectors[s].history)
	}
	for name, p := range before {
		if c.sealed[name] != nil {
			must[name] = p
		}
	}
	c.mu.Unlock()
	return m, must
}

// verify recovers a store and compares it with a snapshot.
func (c *crowd) verify(d *ublktest.Disk, o StoreOptions, m *layerModel, must map[string][]byte, what ordeal) {
	s, err := openOn("leaf", keepOpen{d}, o)
	if err != nil {
		c.t.Errorf("after a %v: %v", what, err)
		return
	}
	defer func() { _ = s.pending.close() }()
	got := make([]byte, c.size)
	if err := s.layers[m.name].readAt(c.base, got, 0); err != nil {
		c.t.Errorf("after a %v: %v", what, err)
		return
	}
	if err := m.check(got, nil, what); err != nil {
		c.t.Error(err)
	}
	for name, p := range must {
		l := s.layers[name]
		if l == nil {
			c.t.Errorf("sealed layer %q is gone after a %v", name, what)
			continue
		}
		if err := l.readAt(c.base, got, 0); err != nil || string(got) != string(p) {
			c.t.Errorf("sealed layer %q holds something else after a %v: %v", name, what, err)
		}
	}
}

// TestCrashThreads has clients write through queues that have real threads, beside checkpoints, freezes and merges, takes images of
// what a power cut would leave all the while, and in the end lets the process die.
func TestCrashThreads(t *testing.T) {
	t.Parallel()
	lives, rounds, cuts := 12+*crashStates/20_000, 150, 0
	if testing.Short() {
		lives, rounds = 2, 60
	}
	for seed := range lives {
		cuts += crowdLife(t, seed, rounds)
		if t.Failed() {
			t.Logf("seed %d", seed)
			return
		}
	}
	t.Logf("%d power cuts and %d deaths of the process among threads", cuts, lives)
}

// lottery keeps a random share of the writes that a power cut may lose, some of them torn.
func lottery(rng *rand.Rand) func(i, sector int) bool {
	share := []float64{0, 0.2, 0.5, 0.8, 1}[rng.IntN(5)]
	var kept, torn bool
	return func(_, sector int) bool {
		if sector == 0 {
			kept, torn = rng.Float64() < share, rng.IntN(5) == 0
		}
		if torn {
			return rng.IntN(2) == 0
		}
		return kept
	}
}

func crowdLife(t *testing.T, seed uint64, rounds int) (cuts int) {
	t.Helper()
	g := simGeometry{blocks: 512, logBlocks: 16, logA: 17, gap: 1, deviceBytes: 24*blockSize - 3*sector, rootBytes: 16*blockSize + 99}
	rng := rand.New(rand.NewPCG(seed, 40))
	r := &simRun{cfg: simConfig{geometry: g}, base: &simBase{memBase{content: make([]byte, g.rootBytes)}}}
	for i := range r.base.content {
		r.base.content[i] = byte(rng.Uint32())
	}
	disk, err := ublktest.NewDisk("leaf", int64(g.blocks)<<blockShift)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	shape := layoutOf(g.blocks, g.logBlocks, g.logA, g.gap)
	if _, err := formatDisk("leaf", disk, FormatOptions{UUID: simStore, geometry: &shape}); err != nil {
		t.Fatal(err)
	}
	run, boot := runDir(t), uuid.UUID{9}
	c := &crowd{t: t, base: r.base, size: g.deviceBytes, sealed: map[string][]byte{}}
	if c.store, err = openOn("leaf", keepOpen{disk}, StoreOptions{RunDir: run, boot: boot}); err != nil {
		t.Fatal(err)
	}
	if c.layer, err = c.store.OpenLayer("web", LayerOptions{Create: true, Pin: c.base.Pin(), SizeBytes: g.deviceBytes}); err != nil {
		t.Fatal(err)
	}
	c.model = newStoreModel().add("web", false, r.rootContent())
	dev, err := NewDevice(c.layer, c.base, DeviceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		c.queues = append(c.queues, newThreads(t, disk, dev, i, g.deviceBytes))
	}

	var work, background sync.WaitGroup
	var stop atomic.Bool
	background.Go(func() { c.manage(rand.New(rand.NewPCG(seed, 41)), &stop) })
	background.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 42))
		for !stop.Load() {
			var after *ublktest.Disk
			var err error
			m, must := c.snapshot(func() { after, err = disk.CrashWith(lottery(rng)) })
			if err != nil {
				t.Error(err)
				return
			}
			c.verify(after, StoreOptions{boot: uuid.UUID{3}}, m, must, powerCut)
			after.Close()
			cuts++
		}
	})
	const each = 45 // sectors: blocks at the ends are shared
	for first := 0; first+each <= g.sectors(); first += each {
		work.Go(func() { c.client(seed, first, each, rounds) })
	}
	work.Wait()
	stop.Store(true)
	background.Wait()
	for _, q := range c.queues {
		q.close(dev, false)
	}
	_ = c.store.pending.close()
	m, must := c.snapshot(func() {})
	c.verify(disk, StoreOptions{RunDir: run, boot: boot}, m, must, processDeath)
	return cuts
}
