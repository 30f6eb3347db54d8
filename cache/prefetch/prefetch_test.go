package prefetch

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const chunk = 64 << 10

func TestRecorderNotesEachChunkOnceInOrder(t *testing.T) {
	r := NewRecorder(chunk, 100)
	for _, v := range []Range{{5 * chunk, 1}, {5*chunk + 4096, 4096}, {chunk - 1, 2}, {5*chunk + recorderSeen*chunk, 1}, {5 * chunk, chunk}, {0, 3 * chunk}} {
		r.Note(v.Off, v.Len)
	}
	if got := r.Chunks(); !slices.Equal(got, []int64{5, 0, 1, 5 + recorderSeen, 2}) {
		t.Errorf("noted %v", got)
	}
	r.Note(0, 1000*chunk)
	if got := r.Chunks(); !r.Full() || len(got) > 100 || got[0] != 5 {
		t.Errorf("noted %d chunks, full: %v", len(got), r.Full())
	}
}

// What several threads note at once is all there.
func TestRecorderIsShared(t *testing.T) {
	r := NewRecorder(chunk, 10_000)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for n := range int64(1000) {
				r.Note((n*4+int64(i))*chunk, chunk)
				_ = r.Full()
			}
		})
	}
	for range 10 {
		if n := len(r.Chunks()); n > 4000 {
			t.Errorf("%d chunks", n)
		}
	}
	all.Wait()
	got := r.Chunks()
	slices.Sort(got)
	if len(got) != 4000 || got[0] != 0 || got[3999] != 3999 {
		t.Errorf("noted %d chunks", len(got))
	}
}

func TestNotingMakesNoGarbage(t *testing.T) {
	r, s := NewRecorder(chunk, 1000), NewStreams(1<<40, chunk, 4<<20)
	off := int64(0)
	if n := testing.AllocsPerRun(10_000, func() {
		r.Note(off, 4096)
		s.Note(off, 4096)
		off += 4096
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A stream is read ahead by windows that grow, without gaps, up to the end of the content.
func TestStreamIsReadAhead(t *testing.T) {
	const size, most, step = 16<<20 + 100, 2 << 20, 32 << 10
	s := NewStreams(size, chunk, most)
	end, widest := int64(0), int64(0)
	for off := int64(0); off < size; off += step {
		r, ok := s.Note(off, min(step, size-off))
		if !ok {
			continue
		}
		if end == 0 && (off < chunk || off > 2*chunk) {
			t.Errorf("it begins at %d", off)
		}
		if end != 0 && r.Off != end || r.Off < off {
			t.Errorf("at %d, %+v is read ahead, after %d", off, r, end)
		}
		end = r.Off + r.Len
		widest = max(widest, end-off)
	}
	if end != size || widest < most || widest > most+2*chunk {
		t.Errorf("read ahead up to %d, at most %d bytes", end, widest)
	}
}

func TestRandomReadsAreNotReadAhead(t *testing.T) {
	s := NewStreams(1<<30, chunk, 4<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		if r, ok := s.Note(rng.Int64N(1<<30/4096)*4096, 4096); ok {
			t.Errorf("%+v is read ahead", r)
		}
	}
	never := NewStreams(1<<30, chunk, 0)
	for off := int64(0); off < 1<<20; off += 4096 {
		if _, ok := never.Note(off, 4096); ok {
			t.Error("read ahead though it must not")
		}
	}
}

// Several streams at once are told apart, among other reads, and when reads come out of order.
func TestStreamsAreToldApart(t *testing.T) {
	s := NewStreams(1<<30, chunk, 1<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	ahead := make([]int64, 4)
	for step := range int64(256) {
		for i := range int64(4) {
			at := step ^ 1 // pairs are swapped
			if step < 64 {
				at = step
			}
			if r, ok := s.Note(i<<28+at*4096, 4096); ok {
				ahead[i] = max(ahead[i], r.Off+r.Len)
			}
		}
		s.Note(rng.Int64N(1<<30/4096)*4096, 4096)
	}
	for i, end := range ahead {
		if end < int64(i)<<28+256*4096 {
			t.Errorf("stream %d was read ahead up to %d", i, end-int64(i)<<28)
		}
	}
}

// Windows begin smaller where streams end early.
func TestReadaheadInVainShrinks(t *testing.T) {
	s := NewStreams(1<<40, chunk, 4<<20)
	waste := func(streams int) (total int64) {
		for range streams {
			base := rand.Int64N(1<<20) << 20
			for off := base; off < base+2*chunk; off += 4096 {
				if r, ok := s.Note(off, 4096); ok {
					total += r.Len
				}
			}
		}
		return total
	}
	s.start = 4 << 20
	if waste(100); s.start != chunk {
		t.Errorf("streams begin with %d bytes", s.start)
	}
	if late := waste(10); late > 10*2*chunk {
		t.Errorf("%d bytes in vain", late)
	}
}

// fakeReader has what was read before.
type fakeReader struct {
	mu    sync.Mutex
	have  map[int64]bool
	order []int64
	fail  error
	under atomic.Int64
	most  atomic.Int64
	gate  func()
}

func (f *fakeReader) TryRead(p []byte, off int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.have[off]
}

func (f *fakeReader) Read(_ context.Context, p []byte, off int64) error {
	n := f.under.Add(1)
	defer f.under.Add(-1)
	for m := f.most.Load(); n > m && !f.most.CompareAndSwap(m, n); m = f.most.Load() {
		continue
	}
	if f.gate != nil {
		f.gate()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.have == nil {
		f.have = make(map[int64]bool)
	}
	f.have[off] = true
	f.order = append(f.order, off)
	return f.fail
}

func TestJobReadsWhatIsNotThere(t *testing.T) {
	f := &fakeReader{have: map[int64]bool{0: true, 3 * MaxRange: true}}
	var n, read atomic.Int64
	j := Job{From: f, AtOnce: 3, Done: func(a, b int64) { n.Add(a); read.Add(b) }}
	if err := j.Run(context.Background(), Range{0, 10*MaxRange + 5}.Split(MaxRange)); err != nil {
		t.Fatal(err)
	}
	if n.Load() != 10*MaxRange+5 || read.Load() != 8*MaxRange+5 || len(f.order) != 9 || f.most.Load() > 3 {
		t.Errorf("%d bytes, %d of them read, in %d parts, %d at a time", n.Load(), read.Load(), len(f.order), f.most.Load())
	}
}

// What one has pulled is read, also where another finds at the same moment that there is no more.
func TestJobLeavesOutNothing(t *testing.T) {
	for range 2000 {
		f := &fakeReader{}
		if err := (Job{From: f, AtOnce: 4}).Run(context.Background(), Range{0, 8 * MaxRange}.Split(MaxRange)); err != nil || len(f.order) != 8 {
			t.Fatalf("%d of 8 ranges were read (%v)", len(f.order), err)
		}
	}
}

// While somebody waits for what he reads, one range at a time is read.
func TestJobStaysBehind(t *testing.T) { synctest.Test(t, stayBehind) }

func stayBehind(t *testing.T) {
	var busy atomic.Bool
	busy.Store(true)
	f := &fakeReader{}
	f.gate = func() { time.Sleep(2 * time.Millisecond) }
	j := Job{From: f, AtOnce: 8, Busy: busy.Load}
	if err := j.Run(context.Background(), Range{0, 20 * MaxRange}.Split(MaxRange)); err != nil || f.most.Load() != 1 {
		t.Errorf("%v, %d at a time", err, f.most.Load())
	}
	for i, off := range f.order {
		if off != int64(i)*MaxRange {
			t.Errorf("%d is read as number %d", off, i)
		}
	}
	busy.Store(false)
	f.have = nil
	if err := j.Run(context.Background(), Range{0, 20 * MaxRange}.Split(MaxRange)); err != nil || f.most.Load() < 2 {
		t.Errorf("%v, %d at a time while nobody waits", err, f.most.Load())
	}
}

func TestJobEnds(t *testing.T) {
	lost := errors.New("lost")
	f := &fakeReader{fail: lost}
	if err := (Job{From: f, AtOnce: 4}).Run(context.Background(), Range{0, 100 * MaxRange}.Split(MaxRange)); !errors.Is(err, lost) || len(f.order) > 8 {
		t.Errorf("%v after %d reads", err, len(f.order))
	}
	f = &fakeReader{}
	var left atomic.Int64
	left.Store(5 * MaxRange)
	if err := (Job{From: f, AtOnce: 4, Take: func(n int64) bool { return left.Add(-n) >= 0 }}).Run(context.Background(), Range{0, 100 * MaxRange}.Split(MaxRange)); err != nil || len(f.order) != 5 {
		t.Errorf("%v, %d reads though 5 were allowed", err, len(f.order))
	}
	ctx, cancel := context.WithCancel(context.Background())
	f = &fakeReader{gate: cancel}
	if err := (Job{From: f, AtOnce: 2}).Run(ctx, Range{0, 100 * MaxRange}.Split(MaxRange)); !errors.Is(err, context.Canceled) || len(f.order) > 4 {
		t.Errorf("%v after %d reads", err, len(f.order))
	}
}
