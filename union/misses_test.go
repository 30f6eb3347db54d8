package union

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// gatedBase is a root whose answers a test lets through.
type gatedBase struct {
	content []byte
	delay   time.Duration
	memory  int64 // so many bytes from the beginning on are read without waiting

	mu     sync.Mutex
	closed bool
	held   []func()
	under  int
	most   int
	calls  int
}

func (b *gatedBase) Size() int64    { return int64(len(b.content)) }
func (b *gatedBase) Pin() Pin       { return Pin{Kind: PinImage, SizeBytes: b.Size(), Digest: Digest{9}} }
func (b *gatedBase) File() *os.File { return nil }
func (b *gatedBase) Close() error   { return nil }

func (b *gatedBase) TryRead(p []byte, off int64) (Origins, bool) {
	if off < b.memory {
		copy(p, b.content[off:])
	}
	return FromMemory, off+int64(len(p)) <= b.memory
}

func (b *gatedBase) ReadAsync(p []byte, off int64, done func(Origins, error)) {
	answer := func() {
		copy(p, b.content[off:])
		b.mu.Lock()
		b.under--
		b.mu.Unlock()
		done(FromRoot, nil)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	b.under++
	b.most = max(b.most, b.under)
	if b.closed {
		b.held = append(b.held, answer)
		return
	}
	time.AfterFunc(b.delay, answer)
}

func (b *gatedBase) shut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
}

// answerOne lets one answer through, if there is one.
func (b *gatedBase) answerOne() bool {
	b.mu.Lock()
	if len(b.held) == 0 {
		b.mu.Unlock()
		return false
	}
	answer := b.held[0]
	b.held = b.held[1:]
	b.mu.Unlock()
	answer()
	return true
}

func (b *gatedBase) open() {
	b.mu.Lock()
	b.closed = false
	held := b.held
	b.held = nil
	b.mu.Unlock()
	for _, answer := range held {
		answer()
	}
}

const (
	gatedSize = 8 << 20
	gatedLeaf = 1 << 20 // from the beginning on, the leaf holds it all
)

// gatedRig serves a device over a root that stalls, by real reactors, with one queue.
func gatedRig(t *testing.T, depth int, wait time.Duration) (*gatedBase, *Device, *ublktest.Fake) {
	t.Helper()
	dir := runDir(t)
	path := filepath.Join(dir, "leaf")
	if _, err := Format(path, FormatOptions{SizeBytes: MinStoreBytes}); err != nil {
		t.Fatal(err)
	}
	b := &gatedBase{content: make([]byte, gatedSize)}
	for i := range b.content {
		b.content[i] = byte(i>>9) ^ byte(i>>17)
	}
	store, err := OpenStore(path, StoreOptions{RunDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	layer, err := store.OpenLayer("web1", LayerOptions{Create: true, Pin: b.Pin(), SizeBytes: gatedSize})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := NewDevice(layer, b, DeviceOptions{RootWait: wait})
	if err != nil {
		t.Fatal(err)
	}
	rs, err := ublk.NewReactors(ublk.ReactorConfig{})
	if err != nil {
		t.Fatal(err)
	}
	fake, err := ublktest.NewFake(ublktest.FakeConfig{SizeBytes: gatedSize, Depth: depth})
	if err != nil {
		t.Fatal(err)
	}
	at, err := fake.Start(rs, dev)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.open()
		fake.Stop()
		<-at.Ended()
		layer.Release()
		for what, err := range map[string]error{
			"attachment": at.Err(), "reactors": rs.Close(), "driver": fake.Err(), "fake": fake.Close(), "store": store.Close(),
		} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	p := bytes.Repeat([]byte{0xee}, 128<<10)
	for off := int64(0); off < gatedLeaf; off += int64(len(p)) {
		if _, err := fake.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	return b, dev, fake
}

// burst reads n blocks of the root at once.
type burst struct {
	all        sync.WaitGroup
	good, fail atomic.Int64
}

func readMany(t *testing.T, b *gatedBase, fake *ublktest.Fake, n int) *burst {
	t.Helper()
	r := &burst{}
	for i := range n {
		off := int64(gatedLeaf + i*4096)
		r.all.Add(1)
		fake.Submit(ublk.Descriptor{Op: ublk.OpRead, Off: off, Len: 4096}, make([]byte, 4096), func(errno syscall.Errno, data []byte) {
			switch {
			case errno == syscall.EIO:
				r.fail.Add(1)
			case errno != 0 || !bytes.Equal(data, b.content[off:off+4096]):
				t.Errorf("read at %d: errno %d, or other content", off, errno)
			default:
				r.good.Add(1)
			}
			r.all.Done()
		})
	}
	return r
}

// useLeaf writes, overwrites in part, reads and flushes, and returns how long the slowest of it took.
func useLeaf(t *testing.T, fake *ublktest.Fake, rounds int) (slowest time.Duration) {
	t.Helper()
	took := func(what string, do func() error) {
		t.Helper()
		began := time.Now()
		if err := do(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		slowest = max(slowest, time.Since(began))
	}
	got := make([]byte, 4096)
	for i := range rounds {
		off := int64(i*4096) % gatedLeaf
		p := bytes.Repeat([]byte{byte(i)}, 4096)
		took("write", func() error { _, err := fake.WriteAt(p, off); return err })
		took("write in part", func() error { _, err := fake.WriteAt(p[:512], off+512); return err })
		took("first write", func() error { _, err := fake.WriteAt(p, gatedSize-int64(i+1)*4096); return err })
		took("flush", fake.Flush)
		took("read", func() error { _, err := fake.ReadAt(got, off); return err })
		if !bytes.Equal(got, p) {
			t.Errorf("round %d: other content", i)
		}
	}
	return slowest
}

// While a root gives nothing, its reads come to hold three quarters of a queue, and the leaf is served beside them.
func TestStalledRootLeavesTheLeafServed(t *testing.T) {
	const depth, reads, wait = 16, 200, time.Second
	b, dev, fake := gatedRig(t, depth, wait)
	b.shut()
	r := readMany(t, b, fake, reads)
	// All tags are taken at first: the leaf waits until it is known that the root has stalled.
	if slowest := useLeaf(t, fake, 1); slowest > wait+time.Minute {
		t.Errorf("the leaf was not served for %v", slowest)
	}
	slowest := useLeaf(t, fake, 50)
	t.Logf("beside a stalled root, the slowest of 250 requests of the leaf took %v", slowest)
	if slowest > wait {
		t.Errorf("the slowest request of the leaf took %v", slowest)
	}
	want := int64(maxMisses(depth))
	if n := int64(fake.InService()); n != want || int64(b.calls) != want {
		t.Errorf("%d requests in service, %d asked of the root, not %d", n, b.calls, want)
	}
	if n := r.fail.Load(); n != reads-want {
		t.Errorf("%d reads refused, of %d", n, reads)
	}
	// A read that the leaf holds in part, and a write of a part of a block, need the root as well.
	for what, d := range map[string]ublk.Descriptor{
		"read across":    {Op: ublk.OpRead, Off: gatedLeaf - 4096, Len: 8192},
		"write in part":  {Op: ublk.OpWrite, Off: gatedLeaf + 512, Len: 512},
		"discard inside": {Op: ublk.OpDiscard, Off: gatedLeaf + 4096 + 512, Len: 1024},
	} {
		if err := fake.Do(d, make([]byte, d.Len)); err != syscall.EIO {
			t.Errorf("%s: %v", what, err)
		}
	}
	stats := dev.Stats()
	if stats.RootRefused != uint64(reads-want)+3 || stats.RootWaits == 0 {
		t.Errorf("counted %+v", stats)
	}
	b.open()
	r.all.Wait()
	if n := r.good.Load(); n != want {
		t.Errorf("%d reads ended well", n)
	}
	// It has healed by itself.
	r = readMany(t, b, fake, reads)
	r.all.Wait()
	if n := r.good.Load(); n != reads {
		t.Errorf("%d reads of %d ended well when the root was back", n, reads)
	}
}

// What a root has in memory is read while it stalls, by any number of requests, and neither asked for nor counted among those that wait.
func TestRootInMemoryIsReadWithoutWaiting(t *testing.T) {
	const depth, reads = 16, 200
	b, dev, fake := gatedRig(t, depth, time.Minute)
	b.memory = gatedSize - 64<<10
	b.shut()
	// All that may be asked of the root is.
	stuck := burst{}
	for range maxMisses(depth) {
		stuck.all.Add(1)
		fake.Submit(ublk.Descriptor{Op: ublk.OpRead, Off: gatedSize - 4096, Len: 4096}, make([]byte, 4096), func(syscall.Errno, []byte) { stuck.all.Done() })
	}
	r := readMany(t, b, fake, reads)
	r.all.Wait()
	if n := r.good.Load(); n != reads {
		t.Errorf("%d reads of %d ended well beside a root that stalls", n, reads)
	}
	p := make([]byte, 8192)
	if _, err := fake.ReadAt(p, gatedLeaf-4096); err != nil || !bytes.Equal(p[4096:], b.content[gatedLeaf:gatedLeaf+4096]) {
		t.Errorf("read across leaf and root: %v, or other content", err)
	}
	if _, err := fake.WriteAt(p[:512], gatedLeaf+512); err != nil {
		t.Errorf("write in part: %v", err)
	}
	after := dev.Stats()
	if after.RootMemoryBytes != (reads+2)*4096 || after.RootReadBytes != after.RootMemoryBytes+uint64(maxMisses(depth))*4096 || after.RootWaits != 0 {
		t.Errorf("counted %+v", after)
	}
	if b.calls != maxMisses(depth) {
		t.Errorf("the root was asked %d times", b.calls)
	}
	b.open()
	stuck.all.Wait()
	// A range that is not all in memory is asked for as a whole.
	if _, err := fake.ReadAt(p, b.memory-4096); err != nil || !bytes.Equal(p, b.content[b.memory-4096:b.memory+4096]) {
		t.Errorf("read across the end of what is in memory: %v, or other content", err)
	}
	if dev.Stats().RootMemoryBytes != after.RootMemoryBytes || b.calls != maxMisses(depth)+1 {
		t.Errorf("the root was asked %d times, counted %+v", b.calls, dev.Stats())
	}
}

// A root that is slow has not stalled: nothing is refused, however long the line.
func TestSlowRootRefusesNothing(t *testing.T) {
	for _, depth := range []int{1, 2, 3, 4, 64} {
		t.Run(fmt.Sprint(depth), func(t *testing.T) {
			b, dev, fake := gatedRig(t, depth, time.Minute) // which a busy machine does not take for a stall
			b.delay = 5 * time.Millisecond
			n := 4 * depth
			r := readMany(t, b, fake, n)
			useLeaf(t, fake, 3)
			r.all.Wait()
			if got := r.good.Load(); got != int64(n) || dev.Stats().RootRefused != 0 {
				t.Errorf("%d reads of %d ended well, %+v", got, n, dev.Stats())
			}
			if b.most > maxMisses(depth) {
				t.Errorf("%d reads at once", b.most)
			}
		})
	}
}

// A line that moves is no stall, however long somebody is in it.
func TestRootThatAnswersOneAfterTheOther(t *testing.T) {
	const depth, wait, pause = 64, 3 * time.Second, time.Second
	for try := range 5 {
		b, dev, fake := gatedRig(t, depth, wait)
		b.shut()
		r := readMany(t, b, fake, depth-1)
		longest, last := time.Duration(0), time.Now()
		for range 6 {
			time.Sleep(pause)
			for !b.answerOne() { // the first is on its way
				time.Sleep(time.Millisecond)
			}
			longest, last = max(longest, time.Since(last)), time.Now()
		}
		b.open()
		r.all.Wait()
		if longest > wait*2/3 && try < 4 {
			t.Logf("the machine was too busy: %v between two answers", longest)
			continue
		}
		if s := dev.Stats(); r.fail.Load() > 0 || s.RootWaits != depth-1-uint64(maxMisses(depth)) {
			t.Errorf("%d of %d reads refused, %d waited in line", r.fail.Load(), depth-1, s.RootWaits)
		}
		return
	}
}

// Whether the timer or the root is faster, each request ends once, with its content or refused.
func TestRootThatAnswersAtTheLastMoment(t *testing.T) {
	const depth, wait = 8, 2 * time.Millisecond
	b, dev, fake := gatedRig(t, depth, wait)
	for i := range 150 {
		b.shut()
		r := readMany(t, b, fake, 3*depth)
		time.Sleep(wait + time.Duration(i%40-20)*50*time.Microsecond)
		b.open()
		r.all.Wait()
		if n := r.good.Load() + r.fail.Load(); n != 3*depth || r.good.Load() < int64(maxMisses(depth)) {
			t.Fatalf("round %d: %d ended, %d of them well", i, n, r.good.Load())
		}
	}
	s := dev.Stats()
	t.Logf("%d requests waited in line, %d were refused", s.RootWaits, s.RootRefused)
	if s.RootRefused == 0 || s.RootRefused == s.RootWaits {
		t.Errorf("%d of %d refused: not both were tried", s.RootRefused, s.RootWaits)
	}
}
