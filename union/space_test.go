package union

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// eventLog collects what a store tells of its space.
type eventLog struct {
	mu   sync.Mutex
	seen []SpaceEvent
}

func (l *eventLog) add(e SpaceEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = append(l.seen, e)
}

// states returns the states of a layer, or of the store, in the order in which they were told.
func (l *eventLog) states(layer string) (all []SpaceState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.seen {
		if e.Layer == layer {
			all = append(all, e.State)
		}
	}
	return all
}

// answer is how a request ended, once it has.
type answer struct {
	done  bool
	errno syscall.Errno
}

// begin submits a request of whole blocks that are filled with a stamp.
func (r *rig) begin(d ublk.Descriptor, stamp uint64) *answer {
	a := new(answer)
	var data []byte
	if d.Op == ublk.OpWrite {
		data = make([]byte, d.Len)
		for i := int64(0); i < d.Len; i += blockSize {
			fill(data[i:i+blockSize], stamp)
		}
	}
	r.block.Submit(d, data, func(errno syscall.Errno, _ []byte) { a.done, a.errno = true, errno })
	return a
}

func writeOf(block, count int) ublk.Descriptor {
	return ublk.Descriptor{Op: ublk.OpWrite, Off: int64(block) << blockShift, Len: int64(count) << blockShift}
}

// steps runs the simulation until nothing moves for a while.
func (r *rig) steps(quiet time.Duration) {
	for last := time.Now(); time.Since(last) < quiet; {
		if r.sim.Step() {
			last = time.Now()
		} else {
			time.Sleep(time.Millisecond)
		}
	}
}

// until runs the simulation until something holds.
func (r *rig) until(what string, holds func() bool) {
	r.t.Helper()
	for began := time.Now(); !holds(); {
		if !r.sim.Step() {
			time.Sleep(100 * time.Microsecond)
		}
		if time.Since(began) > 20*time.Second {
			r.t.Fatalf("seed %d: %s does not come about; %+v", r.seed, what, r.store.Info().Space)
		}
	}
}

// beside calls what blocks while the simulation goes on: the background work may hand the next commit to a request.
func (r *rig) beside(f func() error) error {
	ended := make(chan error)
	go func() { ended <- f() }()
	for {
		select {
		case err := <-ended:
			return err
		default:
			if !r.sim.Step() {
				time.Sleep(50 * time.Microsecond)
			}
		}
	}
}

// stopWork ends the background work, which may wait for a commit that a request leads.
func (r *rig) stopWork() {
	close(r.store.stop)
	for ended := false; !ended; {
		select {
		case <-r.store.stopped:
			ended = true
		case <-time.After(100 * time.Microsecond):
			r.sim.Step()
		}
	}
	r.store.stop, r.store.stopped = make(chan struct{}), nil
}

func (r *rig) mustWrite(block int, stamp uint64) {
	r.t.Helper()
	p := make([]byte, blockSize)
	fill(p, stamp)
	if _, err := r.block.WriteAt(p, int64(block)<<blockShift); err != nil {
		r.t.Fatalf("write block %d: %v", block, err)
	}
}

// fullRig is a store that takes no block more, with n blocks written and flushed, and writes that wait.
func fullRig(t *testing.T, c rigConfig) (r *rig, n int) {
	t.Helper()
	wait := c.fullWait
	c.fullWait = 0
	if c.sizeBytes == 0 {
		c.sizeBytes = 64 << 20
	}
	r = newRigOf(t, c)
	r.work()
	n = r.fillUp(0)
	if err := r.block.Flush(); err != nil {
		t.Fatal(err)
	}
	n += r.fillUp(n)
	r.store.space.mu.Lock()
	r.store.space.store.refused = 0
	r.store.space.fullWait = wait
	r.store.space.mu.Unlock()
	return r, n
}

func (r *rig) end() {
	r.t.Helper()
	r.shut()
}

// TestWaitingEnds has writes wait in a full store, and has each of the things happen that make space.
func TestWaitingEnds(t *testing.T) {
	for what, act := range map[string]func(r *rig, n int) error{
		"grow": func(r *rig, _ int) error {
			_, err := r.store.Grow(MinStoreBytes + 1<<20)
			return err
		},
		"discard": func(r *rig, n int) error {
			a := r.begin(ublk.Descriptor{Op: ublk.OpDiscard, Off: int64(n-8) << blockShift, Len: 8 << blockShift}, 0)
			r.until("discard", func() bool { return a.done })
			r.begin(ublk.Descriptor{Op: ublk.OpFlush}, 0)
			return errnoOf(a.errno)
		},
		"write zeroes": func(r *rig, n int) error {
			a := r.begin(ublk.Descriptor{Op: ublk.OpWriteZeroes, Off: int64(n-8) << blockShift, Len: 8 << blockShift}, 0)
			r.until("write zeroes", func() bool { return a.done })
			return errnoOf(a.errno)
		},
		"remove": func(r *rig, _ int) error { return r.store.RemoveLayer("spare") },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var log eventLog
			r := newRigOf(t, rigConfig{seed: 2, sizeBytes: 64 << 20, notify: log.add})
			r.work()
			if what == "remove" { // a layer that holds something and that nobody uses
				for b := range 32 {
					r.mustWrite(b, 1)
				}
				f, err := r.layer.PrepareFreeze("spare")
				if err == nil {
					_, err = f.Seal()
				}
				if err != nil {
					t.Fatal(err)
				}
				r.detachFromParent()
			}
			n := r.fillUp(100)
			r.store.space.mu.Lock()
			r.store.space.fullWait = time.Minute
			r.store.space.mu.Unlock()
			var order []int
			var waits [4]answer
			for i := range waits {
				r.block.Submit(writeOf(8000+i, 2), make([]byte, 2*blockSize), func(errno syscall.Errno, _ []byte) {
					waits[i] = answer{true, errno}
					order = append(order, i)
				})
				r.steps(5 * time.Millisecond) // in this order
			}
			if len(order) != 0 {
				t.Fatalf("writes %v ended in a full store: %v", order, waits)
			}
			if got := r.store.Info().Space; got.State != SpaceWaiting || got.Waiting != 4 || got.Waits != 4 || got.AvailableBytes > blockSize {
				t.Errorf("space %+v", got)
			}
			r.mustFlushAndOverwrite(100, n)
			if err := act(r, 100+n); err != nil {
				t.Fatal(err)
			}
			r.until("the end of waiting", func() bool { return len(order) == len(waits) })
			for i, a := range waits {
				if a.errno != 0 {
					t.Errorf("write %d ended with %v", i, a.errno)
				}
			}
			r.until("the event", func() bool { return slices.Contains(log.states(""), SpaceWaiting) && r.store.Info().Space.Waiting == 0 })
			info := r.store.Info().Space
			r.until("the last event", func() bool { s := log.states(""); return s[len(s)-1] != SpaceWaiting })
			if s := log.states(""); info.Refused != 1 || s[len(s)-1] == SpaceWaiting {
				t.Errorf("space %+v, states %v", info, s)
			}
			r.end()
		})
	}
}

// TestWaitingInOrder makes space for one write at a time: they go on in the order in which they came, and no later one goes before.
func TestWaitingInOrder(t *testing.T) {
	t.Parallel()
	r, n := fullRig(t, rigConfig{seed: 2, fullWait: time.Minute, depth: 16})
	var order []int
	for i := range 8 {
		count := 1 + (i+1)%3 // a small one does not overtake a large one
		r.block.Submit(writeOf(9000+4*i, count), make([]byte, count<<blockShift), func(errno syscall.Errno, _ []byte) {
			if errno != 0 {
				t.Errorf("write %d: %v", i, errno)
			}
			order = append(order, i)
		})
		r.until("the write in line", func() bool { return r.store.Info().Space.Waiting == i+1 })
	}
	for i := range 40 {
		if len(order) == 8 {
			break
		}
		d := r.begin(ublk.Descriptor{Op: ublk.OpDiscard, Off: int64(i) << blockShift, Len: blockSize}, 0)
		r.until("discard", func() bool { return d.done })
		f := r.begin(ublk.Descriptor{Op: ublk.OpFlush}, 0)
		r.until("flush", func() bool { return f.done })
		r.steps(8 * time.Millisecond)
	}
	if !slices.Equal(order, []int{0, 1, 2, 3, 4, 5, 6, 7}) {
		t.Errorf("%d blocks, order %v", n, order)
	}
	r.end()
}

// detachFromParent makes the layer stand on the root alone, so that the one below can be removed. It belongs to a device that reads
// nothing from below.
func (r *rig) detachFromParent() {
	r.store.mu.Lock()
	r.layer.mu.Lock()
	r.layer.standOn(nil)
	r.layer.mu.Unlock()
	r.store.mu.Unlock()
}

func errnoOf(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// mustFlushAndOverwrite does what must go on in a full store while others wait.
func (r *rig) mustFlushAndOverwrite(first, n int) {
	r.t.Helper()
	for i := range 20 {
		a := r.begin(writeOf(first+i%n, 1), uint64(first+i%n+1))
		f := r.begin(ublk.Descriptor{Op: ublk.OpFlush}, 0)
		r.until("an overwrite and a flush", func() bool { return a.done && f.done })
		if a.errno != 0 || f.errno != 0 {
			r.t.Fatalf("overwrite %v, flush %v", a.errno, f.errno)
		}
	}
}

// TestWaitingTimesOut has nobody make space: after the time, all get ENOSPC, and who comes then gets it at once, until there is space
// again.
func TestWaitingTimesOut(t *testing.T) {
	t.Parallel()
	var log eventLog
	const wait = 200 * time.Millisecond
	r, n := fullRig(t, rigConfig{seed: 3, fullWait: wait, notify: log.add})
	began := time.Now()
	a := r.begin(writeOf(9000, 1), 1)
	r.steps(wait / 2)
	b := r.begin(writeOf(9001, 1), 1)
	r.until("ENOSPC", func() bool { return a.done && b.done })
	took := time.Since(began)
	if a.errno != syscall.ENOSPC || b.errno != syscall.ENOSPC || took < wait || took > 20*wait {
		t.Errorf("%v and %v after %v", a.errno, b.errno, took)
	}
	c := r.begin(writeOf(9002, 1), 1)
	r.until("ENOSPC at once", func() bool { return c.done })
	if got := r.store.Info().Space; c.errno != syscall.ENOSPC || got.Waits != 2 || got.Refused != 3 || got.State != SpaceFull {
		t.Errorf("%v, space %+v", c.errno, got)
	}
	// Space again: and then writes wait again.
	if err := errors.Join(r.block.Discard(0, 4<<blockShift), r.block.Flush()); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		r.mustWrite(9100+i, 1)
	}
	d := r.begin(writeOf(9200, 1), 1)
	r.steps(wait / 4)
	if d.done || r.store.Info().Space.Waiting != 1 {
		t.Errorf("%+v, space %+v", d, r.store.Info().Space)
	}
	r.until("ENOSPC", func() bool { return d.done })
	// Waiting has begun and ended twice; that the store is full may be told together with the first of that.
	r.until("events", func() bool { s := log.states(""); return len(s) >= 4 && s[len(s)-1] == SpaceFull })
	t.Logf("%d blocks, states %v", n, log.states(""))
	r.end()
}

// TestNobodyWaits has no time to wait given: ENOSPC at once.
func TestNobodyWaits(t *testing.T) {
	t.Parallel()
	r, n := fullRig(t, rigConfig{seed: 4})
	a := r.begin(writeOf(n+100, 1), 1)
	if err := r.sim.Run(); err != nil || a.errno != syscall.ENOSPC {
		t.Errorf("%v, run: %v", a.errno, err)
	}
	r.end()
}

// TestWaitingLeavesTags lets more writes wait than may: the others get ENOSPC at once, and flushes, overwrites, discards and
// metadata find a tag.
func TestWaitingLeavesTags(t *testing.T) {
	t.Parallel()
	r, n := fullRig(t, rigConfig{seed: 2, fullWait: time.Minute, depth: 32})
	may := maxWaiting(32)
	var all []*answer
	for i := range 40 {
		all = append(all, r.begin(writeOf(n+200+i, 1), 1))
	}
	r.steps(20 * time.Millisecond)
	refused := 0
	for _, a := range all {
		if a.done {
			refused++
			if a.errno != syscall.ENOSPC {
				t.Errorf("a write in a full store ended with %v", a.errno)
			}
		}
	}
	if got := r.store.Info().Space.Waiting; got != may || refused != 40-may {
		t.Errorf("%d wait, %d were refused, %d may wait", got, refused, may)
	}
	meta := writeOf(n+300, 4)
	meta.Meta = true
	fua := writeOf(n+310, 1)
	fua.FUA = true
	for what, d := range map[string]ublk.Descriptor{
		"flush": {Op: ublk.OpFlush}, "overwrite": writeOf(3, 5), "metadata": meta, "FUA": fua,
		"zeroes of what is not there":  {Op: ublk.OpWriteZeroes, Off: int64(n+400) << blockShift, Len: blockSize},
		"discard of a part of a block": {Op: ublk.OpDiscard, Off: int64(n+500)<<blockShift + sector, Len: sector},
		"read":                         {Op: ublk.OpRead, Off: 0, Len: 8192},
	} {
		a := r.begin(d, 7)
		r.until(what, func() bool { return a.done })
		if a.errno != 0 {
			t.Errorf("%s: %v", what, a.errno)
		}
	}
	if got := r.store.Info().Space.Waiting; got != may {
		t.Errorf("%d wait", got)
	}
	if _, err := r.store.Grow(MinStoreBytes + 4<<20); err != nil {
		t.Fatal(err)
	}
	r.until("the others", func() bool { return r.store.Info().Space.Waiting == 0 })
	if err := r.sim.Run(); err != nil {
		t.Fatal(err)
	}
	r.end()
}

func TestMaxWaiting(t *testing.T) {
	for depth, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 8: 6, 16: 14, 32: 28, 128: 112, 4096: 3584} {
		if got := maxWaiting(depth); got != want {
			t.Errorf("%d of %d tags may wait, want %d", got, depth, want)
		}
	}
}

// TestFullStoreGoesOn does, at 100 %, ten thousand overwrites, discards, zeroes, checkpoints and a freeze; after the freeze, as many
// blocks can be written as were discarded.
func TestFullStoreGoesOn(t *testing.T) {
	t.Parallel()
	r, n := fullRig(t, rigConfig{seed: 5, maxIO: 512 << 10})
	rng := rand.New(rand.NewPCG(5, 9))
	overwrites, discards := 0, 0
	live := make([]uint64, n)
	for b := range live {
		live[b] = uint64(b + 1)
	}
	gone := 0
	for overwrites < 10000 {
		var all []*answer
		from := rng.IntN(n - 16*128)
		for i := range 16 {
			count := 1 + rng.IntN(127)
			b := from + i*128
			if slices.Contains(live[b:b+count], 0) {
				continue
			}
			stamp := uint64(1<<40 + overwrites)
			for k := range count {
				live[b+k] = stamp
			}
			overwrites += count
			all = append(all, r.begin(writeOf(b, count), stamp))
		}
		if rng.IntN(4) == 0 {
			all = append(all, r.begin(ublk.Descriptor{Op: ublk.OpFlush}, 0))
		}
		if err := r.sim.Run(); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(3) == 0 {
			b := rng.IntN(n - 3)
			for k := range 3 {
				if live[b+k] != 0 {
					gone++
				}
				live[b+k] = 0
			}
			discards++
			all = append(all, r.begin(ublk.Descriptor{Op: ublk.OpDiscard, Off: int64(b) << blockShift, Len: 3 << blockShift}, 0))
		}
		if rng.IntN(8) == 0 {
			if err := r.checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.sim.Run(); err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			if a.errno != 0 {
				t.Fatalf("after %d overwrites: %v", overwrites, a.errno)
			}
		}
	}
	if err := r.store.FreezeAllowed(); gone < n/40 && !errors.Is(err, ErrNearlyFull) {
		t.Errorf("freeze in a full store: %v", err)
	}
	if err := errors.Join(r.block.Flush(), r.checkpoint()); err != nil {
		t.Fatal(err)
	}
	before := int(r.store.Info().Space.AvailableBytes >> blockShift)
	if before < gone-8 || before > gone+8 {
		t.Errorf("%d blocks discarded, %d can be written", gone, before)
	}
	f, err := r.layer.PrepareFreeze("cut")
	if err == nil {
		_, err = f.Seal()
	}
	if err != nil {
		t.Fatalf("freeze of a full store: %v", err)
	}
	r.wantBlocks(n, func(b int) uint64 { return live[b] })
	if got := r.fillUp(n + 100); got < before-8 {
		t.Errorf("%d blocks could be written, not %d", got, before)
	}
	t.Logf("%d blocks, %d overwritten, %d discards of %d blocks", n, overwrites, discards, gone)
	r.end()
}

// TestDiscardedIsWritable discards blocks of a full store in every pattern, and writes exactly as many others after the next flush.
func TestDiscardedIsWritable(t *testing.T) {
	t.Parallel()
	r, n := fullRig(t, rigConfig{seed: 6})
	next := n
	for _, count := range []int{1, 7, 64, 500} {
		if err := r.checkpoint(); err != nil {
			t.Fatal(err)
		}
		next += r.fillUp(next)
		if err := r.block.Discard(int64(next-count)<<blockShift, int64(count)<<blockShift); err != nil {
			t.Fatal(err)
		}
		if err := r.block.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := r.fillUp(next - count); got != count {
			t.Errorf("%d blocks discarded, %d writable", count, got)
		}
	}
	r.end()
}

// TestConcurrentLargeOverwrites keeps every tag busy with the largest overwrites there are in a store without a free slot but
// the reserves. None of them gets ENOSPC.
func TestConcurrentLargeOverwrites(t *testing.T) {
	t.Parallel()
	for seed := range seeds(2) + 1 {
		r, n := fullRig(t, rigConfig{seed: seed, maxIO: 512 << 10, depth: 32})
		rng := rand.New(rand.NewPCG(seed, 31))
		failed, done := 0, 0
		version := make([]uint64, n)
		for b := range version {
			version[b] = uint64(b + 1)
		}
		last := make(map[int]uint64)
		for i := range 300 {
			b := rng.IntN(n/128) * 128 // one stamp for each piece: two at a time may be under way
			count := min(128, n-b)
			stamp := uint64(1<<41 + i)
			last[b] = stamp
			p := make([]byte, count<<blockShift)
			for k := range count {
				fill(p[k<<blockShift:(k+1)<<blockShift], stamp)
			}
			r.block.Submit(writeOf(b, count), p, func(errno syscall.Errno, _ []byte) {
				done++
				if errno != 0 {
					failed++
				}
			})
		}
		if err := r.sim.Run(); err != nil {
			t.Fatal(err)
		}
		if failed > 0 || done != 300 {
			t.Fatalf("seed %d: %d of %d overwrites failed", seed, failed, done)
		}
		r.end()
	}
}

// TestQuota fills a layer to its quota, exactly, and has each of the things happen that make space in it.
func TestQuota(t *testing.T) {
	t.Parallel()
	var log eventLog
	r := newRigOf(t, rigConfig{seed: 7, sizeBytes: 32 << 20, notify: log.add})
	r.work()
	if _, err := r.layer.SetQuota(100<<blockShift + 5); err != nil {
		t.Fatal(err)
	}
	if got := r.fillUp(0); got != 100 {
		t.Fatalf("%d blocks in a quota of 100", got)
	}
	info := r.layer.Info()
	if info.QuotaBytes != 100<<blockShift || info.DataBytes != 100<<blockShift || info.Space == nil || info.Space.State != SpaceFull ||
		info.Space.AvailableBytes != 0 || info.Space.UsedPercent != 100 {
		t.Errorf("layer %+v %+v", info, info.Space)
	}
	if got := r.store.Info().Space; got.State != SpaceOK || got.Refused != 0 {
		t.Errorf("store %+v", got)
	}
	meta := writeOf(500, quotaSlackOf(100))
	meta.Meta = true
	for what, d := range map[string]ublk.Descriptor{
		"overwrite": writeOf(40, 16), "metadata": meta, "zeroes": {Op: ublk.OpWriteZeroes, Off: 900 << blockShift, Len: blockSize},
	} {
		a := r.begin(d, 9)
		if err := r.sim.Run(); err != nil || a.errno != 0 {
			t.Errorf("%s at the quota: %v %v", what, a.errno, err)
		}
	}
	if err := r.block.Discard(500<<blockShift, int64(quotaSlackOf(100))<<blockShift); err != nil {
		t.Fatal(err)
	}
	// A write that is new in part takes as much as is new.
	if err := r.block.Discard(50<<blockShift, 1<<blockShift); err != nil {
		t.Fatal(err)
	}
	a, b := r.begin(writeOf(45, 10), 9), new(answer)
	if err := r.sim.Run(); err != nil || a.errno != 0 {
		t.Errorf("write of nine blocks that are there and one new: %v %v", a.errno, err)
	}
	r.store.space.mu.Lock()
	r.store.space.fullWait = time.Minute
	r.store.space.mu.Unlock()
	for what, act := range map[string]func() error{
		"discard": func() error { // no flush is needed
			d := r.begin(ublk.Descriptor{Op: ublk.OpDiscard, Off: 0, Len: 4 << blockShift}, 0)
			r.until("discard", func() bool { return d.done })
			return errnoOf(d.errno)
		},
		"raise":  func() error { _, err := r.layer.SetQuota(r.layer.Info().QuotaBytes + 4<<blockShift); return err },
		"remove": func() error { _, err := r.layer.SetQuota(0); return err },
	} {
		if _, err := r.layer.SetQuota(r.layer.Info().DataBytes); err != nil {
			t.Fatal(err)
		}
		first := 2000 + rand.IntN(1000)
		a, b = r.begin(writeOf(first, 2), 1), r.begin(writeOf(first+8, 2), 1)
		r.steps(10 * time.Millisecond)
		if a.done || b.done || r.layer.Info().Space.State != SpaceWaiting || r.layer.Info().Space.Waiting != 2 {
			t.Fatalf("%s: %+v %+v, space %+v", what, a, b, r.layer.Info().Space)
		}
		if got := r.store.Info().Space; got.Waiting != 0 || got.State != SpaceOK {
			t.Errorf("%s: the store's space: %+v", what, got)
		}
		if err := act(); err != nil {
			t.Fatal(err)
		}
		r.until(what, func() bool { return a.done && b.done })
		if a.errno != 0 || b.errno != 0 {
			t.Errorf("%s: %v %v", what, a.errno, b.errno)
		}
	}
	// Below what is there: overwrites and discards, and nothing else.
	r.store.space.mu.Lock()
	r.store.space.fullWait = 0
	r.store.space.mu.Unlock()
	if _, err := r.layer.SetQuota(10 << blockShift); err != nil {
		t.Fatal(err)
	}
	if got := r.fillUp(4000); got != 0 {
		t.Errorf("%d blocks written above the quota", got)
	}
	r.mustWrite(60, 5)
	if err := r.block.Discard(61<<blockShift, blockSize); err != nil {
		t.Error(err)
	}
	// It survives a restart, and a freeze gives the leaf all of it.
	r.close()
	r.open()
	r.work()
	if got := r.layer.Info(); got.QuotaBytes != 10<<blockShift || got.Space.State != SpaceFull {
		t.Errorf("after a restart %+v %+v", got, got.Space)
	}
	f, err := r.layer.PrepareFreeze("cut")
	if err == nil {
		_, err = f.Seal()
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := r.fillUp(0); got != 10 {
		t.Errorf("%d blocks after a freeze, the quota is 10", got)
	}
	for _, l := range r.store.Info().Layers {
		if l.Sealed && l.QuotaBytes != 0 {
			t.Errorf("sealed layer with a quota: %+v", l)
		}
	}
	for _, bad := range []int64{-1, 1, 4095} {
		if _, err := r.layer.SetQuota(bad); err == nil || r.layer.Info().QuotaBytes != 10<<blockShift {
			t.Errorf("quota of %d bytes: %v", bad, err)
		}
	}
	states := fmt.Sprint(log.states(r.layer.Name()))
	if !strings.Contains(states, "full") || !strings.Contains(states, "waiting") || len(log.states("")) != 0 {
		t.Errorf("states %s; of the store %v", states, log.states(""))
	}
	r.end()
}

func quotaSlackOf(blocks uint64) int { return int(quotaSlack(blocks)) }

// TestQuotaOfOneLayer does not keep the writes of another from going on, while many of its own wait.
func TestQuotaOfOneLayer(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, rigConfig{seed: 2, sizeBytes: 32 << 20, fullWait: time.Minute})
	r.work()
	second, err := r.store.OpenLayer("web2", LayerOptions{Create: true, Pin: r.base.Pin(), SizeBytes: r.size, QuotaBytes: 16 << blockShift})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := NewDevice(second, r.base, DeviceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	block, err := r.sim.NewDevice(dev, ublktest.DeviceConfig{SizeBytes: r.size, Queues: 1, Depth: 8, MaxIO: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	waits := 0
	for i := range 20 {
		block.Submit(writeOf(i, 1), make([]byte, blockSize), func(errno syscall.Errno, _ []byte) {
			waits--
			if errno != 0 {
				t.Errorf("a write ended with %v", errno)
			}
		})
		waits++
	}
	r.until("four to wait", func() bool { return waits == 4 && second.Info().Space.Waiting == 4 })
	for b := range 200 {
		a := r.begin(writeOf(b, 1), 1)
		r.until("a write to the other layer", func() bool { return a.done })
		if a.errno != 0 {
			t.Fatal(a.errno)
		}
	}
	if got := second.Info().Space; got.Waiting != 4 || waits != 4 {
		t.Errorf("%d wait, %+v", waits, got)
	}
	if _, err := second.SetQuota(0); err != nil {
		t.Fatal(err)
	}
	r.until("the others", func() bool { return waits == 0 })
	if err := block.Close(); err != nil {
		t.Fatal(err)
	}
	second.Release()
	r.end()
}

// TestLevels follows a share of used space up and down.
func TestLevels(t *testing.T) {
	level := 0
	for _, c := range []struct {
		percent float64
		want    SpaceState
	}{
		{0, SpaceOK}, {79.9, SpaceOK}, {80, Space80}, {78.1, Space80}, {81, Space80}, {78, SpaceOK}, {90, Space90}, {88.5, Space90}, {95, Space95},
		{93.5, Space95}, {99.99, Space95}, {100, SpaceFull}, {98.5, SpaceFull}, {98, Space95}, {87, Space80}, {100, SpaceFull}, {10, SpaceOK},
	} {
		if level = levelOf(c.percent, level); levels[level].state != c.want {
			t.Errorf("at %.2f%%: %s, want %s", c.percent, levels[level].state, c.want)
		}
	}
}

// TestSpaceEvents fills a store and empties it: each level is told once on the way up, and on the way down.
func TestSpaceEvents(t *testing.T) {
	t.Parallel()
	var log eventLog
	r := newRigOf(t, rigConfig{seed: 8, sizeBytes: 64 << 20, notify: log.add})
	p := make([]byte, 64<<10)
	off := int64(0)
	for ; r.store.Info().Space.State != SpaceFull; off += int64(len(p)) {
		if _, err := r.block.WriteAt(p, off); err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		if off > r.size-1<<20 {
			t.Fatalf("never full: %+v", r.store.Info().Space)
		}
		r.store.maintain()
		if r.store.Info().Space.AvailableBytes < int64(len(p)) {
			p = p[:blockSize]
		}
	}
	for back := off; back > 0; back -= 1 << 20 {
		from := max(0, back-1<<20)
		if err := errors.Join(r.block.Discard(from, back-from), r.block.Flush()); err != nil {
			t.Fatal(err)
		}
		r.store.maintain()
	}
	got := log.states("")
	if !slices.Equal(got, []SpaceState{Space80, Space90, Space95, SpaceFull, Space95, Space90, Space80, SpaceOK}) {
		t.Errorf("states %v", got)
	}
	if info := r.store.Info().Space; info.Events != uint64(len(got)) {
		t.Errorf("space %+v", info)
	}
	r.end()
}

// TestNearlyFullModel does random requests on stores that have hardly any slot free, with writes that wait for a moment and then fail,
// grows them now and then, cuts the power and kills the process. Content is always legal, and no checkpoint lacks a slot.
func TestNearlyFullModel(t *testing.T) {
	t.Parallel()
	acked := 0
	for seed := range seeds(12) {
		rng := rand.New(rand.NewPCG(seed, 41))
		r := newRigOf(t, rigConfig{seed: seed, fullWait: 3 * time.Millisecond})
		r.work()
		o := newOracle(r)
		o.failing = true
		o.acknowledged = func(bool) { acked++ }
		for life := range 3 {
			// Of the slots that a first write may take, a few hundred are left.
			available, _ := r.store.available()
			if take := int(available) - 40 - rng.IntN(300); take > 0 {
				if _, ok := r.store.slots.alloc(nil, take, 0); !ok {
					t.Fatal("no slots")
				}
			}
			for range 600 {
				o.submit(r, rng)
				for range rng.IntN(6) {
					r.sim.Step()
				}
				var call func() error
				switch rng.IntN(200) {
				case 0:
					call = r.store.Checkpoint
				case 1:
					size := r.store.Info().SizeBytes + int64(rng.IntN(200))<<blockShift
					call = func() error { _, err := r.store.Grow(size); return err }
				case 2:
					quota := int64(rng.IntN(1500)) << blockShift
					call = func() error { _, err := r.layer.SetQuota(quota); return err }
				default:
					continue
				}
				if err := r.beside(call); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			if life%2 == 0 {
				if err := r.sim.Run(); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			r.stopWork()
			legal := func(s, i int) bool { return i >= o.floor[s] }
			switch {
			case life%2 == 0 && rng.IntN(2) == 0:
				r.close()
				r.check()
				legal = func(s, i int) bool { return i >= o.acked[s] }
			case rng.IntN(2) == 0:
				r.abandon()
				legal = func(s, i int) bool { return i >= o.acked[s] }
			default:
				r.powerCut(rng)
			}
			r.open()
			o.settle(r, legal)
			r.work()
		}
		if r.store.Info().Failed {
			t.Errorf("seed %d: the store failed", seed)
		}
		r.end()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d requests acknowledged", acked)
}

// TestScatteredFullStore fills a store with blocks as far apart as they can be, and with ranges of zeros between them, so that its
// maps are as long as they can be. A checkpoint always has the slots that it needs.
func TestScatteredFullStore(t *testing.T) {
	t.Parallel()
	r := newRigOf(t, rigConfig{seed: 9, sizeBytes: 1 << 30})
	r.work()
	rng := rand.New(rand.NewPCG(9, 9))
	perm := rng.Perm(int(r.size >> (blockShift + 1)))
	var full bool
	for i := 0; !full; i++ {
		b := int64(perm[i]) * 2
		a := r.begin(writeOf(int(b), 1), 1)
		z := r.begin(ublk.Descriptor{Op: ublk.OpWriteZeroes, Off: (b + 1) << blockShift, Len: blockSize}, 0)
		if i%8 != 0 {
			continue
		}
		if err := r.sim.Run(); err != nil {
			t.Fatal(err)
		}
		full = a.errno == syscall.ENOSPC || z.errno == syscall.ENOSPC
		if i%1600 == 0 {
			if err := r.checkpoint(); err != nil {
				t.Fatalf("after %d blocks: %v", i, err)
			}
		}
	}
	// And many more zeros, until even the reserve takes none.
	for i := 0; i < 20000; i++ {
		b := int64(perm[len(perm)-1-i]) * 2
		r.begin(ublk.Descriptor{Op: ublk.OpWriteZeroes, Off: b << blockShift, Len: blockSize}, 0)
	}
	if err := r.sim.Run(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := errors.Join(r.checkpoint(), r.block.Flush()); err != nil {
			t.Fatal(err)
		}
		r.mustWrite(perm[0]*2, 2)
	}
	got := make([]byte, blockSize)
	want := make([]byte, blockSize)
	fill(want, 2)
	if _, err := r.block.ReadAt(got, int64(perm[0])*2<<blockShift); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v", err)
	}
	r.end()
}
