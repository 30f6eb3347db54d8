package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// faulty is a device that fails, or does not answer, when it is told to.
type faulty struct {
	memory

	mu                sync.Mutex // guards what follows
	readErr, writeErr error
	reads, writes     chan struct{} // nil: goes on; otherwise waits until it is closed
	wrote             int
}

func (f *faulty) set(change func(f *faulty)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *faulty) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	wait, err := f.reads, f.readErr
	f.mu.Unlock()
	if wait != nil {
		<-wait
	}
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.memory.ReadAt(p, off)
}

func (f *faulty) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	wait := f.writes
	f.mu.Unlock()
	if wait != nil {
		<-wait
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writeErr != nil {
		return 0, f.writeErr
	}
	f.wrote++
	return f.memory.WriteAt(p, off)
}

// live opens a cache that works in the background, in a bubble where time passes by itself.
func live(t *testing.T, test func(d *Disk, f *faulty)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o := quiet()
		o.inline, o.ReadTimeout = false, 0
		f := &faulty{memory: make(memory, o.geometry.Blocks<<blockShift)}
		d := openTest(t, f, o)
		d.start()
		test(d, f)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		checkTable(t, d.table)
	})
}

// put waits until the chunk is written.
func put(d *Disk, n int) {
	d.Put(testChunk(n))
	synctest.Wait()
}

func has(t *testing.T, d *Disk, n int) bool {
	t.Helper()
	c, content := testChunk(n)
	return get(t, d, c, content)
}

func expect(t *testing.T, d *Disk, want State) {
	t.Helper()
	if s := d.Stats(); s.State != want {
		t.Fatalf("state %s (%s), not %s", s.State, s.Why, want)
	}
}

// A disk that does not answer holds one read up for half a second, and then nobody until it answers again.
func TestHangingReads(t *testing.T) {
	live(t, func(d *Disk, f *faulty) {
		put(d, 1)
		hang := make(chan struct{})
		f.set(func(f *faulty) { f.reads = hang })
		began := time.Now()
		if has(t, d, 1) || time.Since(began) != defaultRead {
			t.Fatalf("after %s", time.Since(began))
		}
		expect(t, d, StateOff)
		began = time.Now()
		put(d, 2)
		if has(t, d, 1) || has(t, d, 2) || time.Since(began) != 0 {
			t.Fatalf("a Get of a cache that is off took %s", time.Since(began))
		}
		time.Sleep(time.Minute)
		expect(t, d, StateOff)
		f.set(func(f *faulty) { f.reads = nil })
		close(hang)
		time.Sleep(lastRetry + time.Second)
		expect(t, d, StateOn)
		if !has(t, d, 1) {
			t.Fatal("what was there is lost")
		}
	})
}

// Who reads with little patience does not keep the disk from being found out.
func TestHangingReadsOfTheImpatient(t *testing.T) {
	live(t, func(d *Disk, f *faulty) {
		put(d, 1)
		hang := make(chan struct{})
		f.set(func(f *faulty) { f.reads = hang })
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		c, content := testChunk(1)
		if err := d.Get(ctx, c, content); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		expect(t, d, StateOn)
		time.Sleep(defaultRead)
		expect(t, d, StateOff)
		close(hang)
	})
}

// So many reads that hang do not hold others up for longer than twice the time that one may take.
func TestManyHangingReads(t *testing.T) {
	live(t, func(d *Disk, f *faulty) {
		put(d, 1)
		hang := make(chan struct{})
		f.set(func(f *faulty) { f.reads = hang })
		var all sync.WaitGroup
		for range 3 * maxReads {
			all.Go(func() {
				began := time.Now()
				if has(t, d, 1) || time.Since(began) > 2*defaultRead {
					t.Errorf("after %s", time.Since(began))
				}
			})
		}
		all.Wait()
		close(hang)
	})
}

// A place that cannot be read is one slot lost; three in a row are a broken disk.
func TestReadErrors(t *testing.T) {
	live(t, func(d *Disk, f *faulty) {
		for n := range 5 {
			put(d, n)
		}
		f.set(func(f *faulty) { f.readErr = syscall.EIO })
		if has(t, d, 0) {
			t.Fatal("read")
		}
		f.set(func(f *faulty) { f.readErr = nil })
		expect(t, d, StateOn)
		if has(t, d, 0) || !has(t, d, 1) {
			t.Fatal("one slot is lost, and not another")
		}
		f.set(func(f *faulty) { f.readErr = syscall.EIO })
		for n := range 4 {
			has(t, d, n+1)
		}
		expect(t, d, StateOff)
		f.set(func(f *faulty) { f.readErr = nil })
		time.Sleep(firstRetry + time.Second)
		expect(t, d, StateOn)
		if !has(t, d, 4) {
			t.Fatal("what was not asked for is lost")
		}
		if s := d.Stats(); s.ReadErrors != 4 || s.TurnedOff != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// A full or write-protected disk takes no chunks, and gives what it has.
func TestWriteErrors(t *testing.T) {
	live(t, func(d *Disk, f *faulty) {
		put(d, 1)
		f.set(func(f *faulty) { f.writeErr = syscall.ENOSPC })
		put(d, 2)
		expect(t, d, StateReadOnly)
		if !has(t, d, 1) || has(t, d, 2) {
			t.Fatal("what was there stays there, and nothing else comes")
		}
		time.Sleep(time.Minute) // the index cannot be written either
		f.set(func(f *faulty) { f.writeErr = nil })
		time.Sleep(lastRetry)
		put(d, 2)
		expect(t, d, StateOn)
		if !has(t, d, 1) || !has(t, d, 2) {
			t.Fatal("it does not go on")
		}
	})
}

// Put never waits: what there is no room for is dropped. Close does not wait for ever.
func TestHangingWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := quiet()
		o.inline, o.ReadTimeout, o.QueueBytes = false, 0, 100_000
		f := &faulty{memory: make(memory, o.geometry.Blocks<<blockShift)}
		d := openTest(t, f, o)
		d.start()
		hang := make(chan struct{})
		f.set(func(f *faulty) { f.writes = hang })
		began := time.Now()
		for n := range 100 {
			d.Put(testChunk(n))
		}
		if s := d.Stats(); time.Since(began) != 0 || s.DroppedPuts < 50 || s.QueuedBytes > o.QueueBytes || s.QueuedBytes < o.QueueBytes/2 {
			t.Errorf("after %s: %+v", time.Since(began), s)
		}
		if err := d.Close(); !errors.Is(err, ErrHangs) || time.Since(began) != closePatience {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		expect(t, d, StateClosed)
		if has(t, d, 0) {
			t.Error("read from a closed cache")
		}
		close(hang)
	})
}

// A write waits for the reads that are under way, but not for ever.
func TestWritesYield(t *testing.T) {
	live(t, func(d *Disk, f *faulty) {
		put(d, 1)
		wrote := func() int { f.mu.Lock(); defer f.mu.Unlock(); return f.wrote }
		hold := func() (release func()) {
			held := make(chan struct{})
			f.set(func(f *faulty) { f.reads = held })
			done := make(chan struct{})
			go func() { defer close(done); has(t, d, 1) }()
			synctest.Wait()
			return func() { close(held); <-done; synctest.Wait() }
		}
		before := wrote()
		release := hold()
		put(d, 2)
		time.Sleep(yieldTime / 2)
		if wrote() != before {
			t.Error("a write came before a read that was there first")
		}
		release()
		if wrote() != before+1 {
			t.Error("no write after the read")
		}
		before = wrote()
		release = hold()
		put(d, 3)
		time.Sleep(yieldTime + time.Millisecond)
		if wrote() != before+1 {
			t.Error("reads hold writes up for ever")
		}
		release()
	})
}

// The index is written from time to time, so that a power cut does not lose everything.
func TestIndexIsWritten(t *testing.T) {
	live(t, func(d *Disk, f *faulty) {
		put(d, 1)
		left := func() *Disk {
			f.mu.Lock()
			defer f.mu.Unlock()
			return openTest(t, append(memory(nil), f.memory...), quiet())
		}
		if has(t, left(), 1) {
			t.Fatal("the index is written with each chunk")
		}
		time.Sleep(defaultIndex + time.Second)
		synctest.Wait()
		if !has(t, left(), 1) {
			t.Fatal("the index was not written")
		}
		d.Drop()
		synctest.Wait()
		if has(t, left(), 1) {
			t.Fatal("what was dropped comes back")
		}
	})
}

// Scrubbing finds rot before a read does.
func TestScrub(t *testing.T) {
	live(t, func(d *Disk, f *faulty) {
		for n := range 5 {
			put(d, n)
		}
		r, _ := d.slotAt(0, 0)
		f.set(func(f *faulty) { f.memory[r.off+3]++ })
		time.Sleep(scrubPause + time.Minute)
		s := d.Stats()
		if s.Scrub.Passes < 1 || s.Scrub.BadSlots != 1 || s.BadSlots != 1 || s.Used != 4 || s.Scrub.LastPass == nil {
			t.Errorf("%+v", s)
		}
		time.Sleep(2 * scrubPause)
		if s := d.Stats(); s.Scrub.BadSlots != 1 || s.Scrub.LastBytes != s.Bytes {
			t.Errorf("%+v", s)
		}
	})
}

// Scrubbing reads nothing of a cache that was turned off while it waited for its turn.
func TestScrubLeavesWhatIsOffAlone(t *testing.T) {
	o := quiet()
	f := &faulty{memory: make(memory, o.geometry.Blocks<<blockShift)}
	d := openTest(t, f, o)
	for n := range 5 {
		d.Put(testChunk(n))
	}
	f.set(func(f *faulty) { f.readErr = syscall.EIO })
	asked := 0
	turnOff := func(int) bool {
		asked++
		d.turnOff(syscall.EIO)
		return true
	}
	if !d.scrubPass(context.Background(), turnOff) || asked != 1 {
		t.Errorf("asked %d times whether to go on", asked)
	}
	if s := d.Stats(); s.ReadErrors != 0 || s.Used != 5 || s.Scrub.DoneBytes != 0 {
		t.Errorf("%+v", s)
	}
}

// Whoever comes second finds a cache locked. What holds something else is left as it is.
func TestOpenRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	o := Options{Log: quiet().Log}
	for _, bad := range []Options{{SizeBytes: MinBytes - 1}, {SizeBytes: -1}, {SizeBytes: MinBytes, ReadTimeout: time.Minute}, {SizeBytes: MinBytes, QueueBytes: -1},
		{SizeBytes: MinBytes, IndexEvery: -1}} {
		if _, err := Open(path, bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%+v left something behind: %v", bad, err)
		}
	}
	if _, err := Open(path, o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := Open(filepath.Dir(path), o); err == nil {
		t.Error("a directory was taken")
	}
	foreign := make([]byte, MinBytes)
	foreign[len(foreign)-1] = 1
	if err := os.WriteFile(path, foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, o); !errors.Is(err, ErrForeign) {
		t.Errorf("%v", err)
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != string(foreign) {
		t.Errorf("it was changed: %v", err)
	}
	o.Overwrite = true
	d, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := Open(path, o); !errors.Is(err, ErrInUse) {
		t.Errorf("%v", err)
	}
}
