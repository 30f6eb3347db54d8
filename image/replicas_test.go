package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// bench is some replicas in memory, in virtual time.
type bench struct {
	content []byte
	stores  map[string]*memStore
	opens   map[string]error  // of opening a store
	others  map[string]Source // that are opened in place of stores
	log     *safeBuffer
	mu      sync.Mutex // guards opens, others and holds
	holds   map[string]func(context.Context, []byte) error
}

// safeBuffer is a log that may be read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var benchContent = sync.OnceValue(func() []byte { return testContent(41, 1<<20) })

// newBench makes stores with one content, each packed in another way.
func newBench(t testing.TB, names ...string) *bench {
	b := &bench{content: benchContent(), stores: map[string]*memStore{}, opens: map[string]error{}, others: map[string]Source{}, log: &safeBuffer{},
		holds: map[string]func(context.Context, []byte) error{}}
	for i, name := range names {
		b.put(t, name, b.content, 20+100*i)
	}
	return b
}

// put makes a store with other content, or packed in another way, for those who open it from now on.
func (b *bench) put(t testing.TB, name string, content []byte, perPack int) {
	t.Helper()
	s := newMemStore()
	cut(content, 4096, perPack).store(t, s, "a:v1", nil)
	s.hold = func(ctx context.Context, p []byte) error {
		b.mu.Lock()
		hold := b.holds[name]
		b.mu.Unlock()
		if hold == nil {
			return nil
		}
		return hold(ctx, p)
	}
	b.mu.Lock()
	b.stores[name] = s
	b.mu.Unlock()
}

// hold lets something happen before a store answers, from now on.
func (b *bench) hold(name string, f func(context.Context, []byte) error) {
	b.mu.Lock()
	b.holds[name] = f
	b.mu.Unlock()
}

// fail makes the opening of a store fail, from now on.
func (b *bench) fail(name string, err error) {
	b.mu.Lock()
	b.opens[name] = err
	b.mu.Unlock()
}

// replace opens something in place of a store, from now on.
func (b *bench) replace(name string, src Source) {
	b.mu.Lock()
	b.others[name] = src
	b.mu.Unlock()
}

func (b *bench) source(r Ref, _ SourceOptions) (Source, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if src := b.others[r.Place]; src != nil {
		return src, nil
	}
	return b.stores[r.Place], b.opens[r.Place]
}

func benchRef(t testing.TB, name string) Ref {
	t.Helper()
	ref, err := ParseRef("oci:" + name + ":a:v1")
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func (b *bench) open(t testing.TB, names ...string) *Set {
	t.Helper()
	s, err := b.tryOpen(t, Digest{}, names...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (b *bench) tryOpen(t testing.TB, want Digest, names ...string) (*Set, error) {
	t.Helper()
	var refs []Ref
	for _, name := range names {
		refs = append(refs, benchRef(t, name))
	}
	return OpenSet(context.Background(), refs, want, SetOptions{source: b.source, Log: slog.New(slog.NewTextHandler(b.log, nil))})
}

// read compares some chunks at a random place, and returns how long that took.
func (b *bench) read(t testing.TB, s *Set, rng *rand.Rand) time.Duration {
	t.Helper()
	off := rng.IntN(len(b.content) - 20000)
	p := make([]byte, 1+rng.IntN(20000))
	began := time.Now()
	if err := s.Read(context.Background(), p, int64(off)); err != nil {
		t.Fatalf("at %d: %v", off, err)
	}
	if !bytes.Equal(p, b.content[off:off+len(p)]) {
		t.Fatalf("wrong bytes at %d", off)
	}
	return time.Since(began)
}

// bubble runs a test in virtual time.
func bubble(t *testing.T, f func(t *testing.T)) {
	decoder() // which belong to no bubble
	testEncoder()
	synctest.Test(t, f)
}

// status returns how a replica does.
func status(t testing.TB, s *Set, name string) ReplicaStatus {
	t.Helper()
	for _, st := range s.Replicas() {
		if st.Ref == benchRef(t, name).String() {
			return st
		}
	}
	t.Fatalf("%s is no replica", name)
	return ReplicaStatus{}
}

func newRand() *rand.Rand { return rand.New(rand.NewPCG(42, 42)) }

// delay answers after a time.
func delay(d time.Duration) func(context.Context, []byte) error {
	return func(ctx context.Context, _ []byte) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// silence answers nothing.
func silence(ctx context.Context, _ []byte) error {
	<-ctx.Done()
	return ctx.Err()
}

var errCable = errors.New("cable cut")

func cutCable(context.Context, []byte) error { return errCable }

func TestSetReadsWhatWentIn(t *testing.T) {
	b := newBench(t, "/a", "/b", "/c")
	s := b.open(t, "/a", "/b", "/c")
	if s.ContentRoot() != naiveRoot(b.content, 4096) || s.Size() != int64(len(b.content)) || s.ChunkSize() != 4096 {
		t.Errorf("content root %s, size %d", s.ContentRoot(), s.Size())
	}
	p := make([]byte, len(b.content))
	if err := s.Read(context.Background(), p, 0); err != nil || !bytes.Equal(p, b.content) {
		t.Fatalf("other content, or %v", err)
	}
	rng := newRand()
	for range 300 {
		b.read(t, s, rng)
	}
	im := s.Images()[0]
	for index := int64(0); index < s.Chunks(); index += 7 {
		got, zeros, err := s.Chunk(context.Background(), index)
		want, wantZeros, wantErr := im.Chunk(context.Background(), index)
		if got != want || zeros != wantZeros || err != nil || wantErr != nil {
			t.Errorf("chunk %d: %s, zeros %v, %v", index, got, zeros, err)
		}
		next, err := s.NextData(context.Background(), index*4096)
		if want, _ := im.NextData(context.Background(), index*4096); next != want || err != nil {
			t.Errorf("data from %d: %d, not %d, %v", index*4096, next, want, err)
		}
	}
	for _, off := range []int64{-1, s.Size(), 1 << 60} {
		if err := s.Read(context.Background(), p[:1], off); err == nil {
			t.Errorf("read at %d", off)
		}
	}
	if next, err := s.NextData(context.Background(), s.Size()); next != s.Size() || err != nil {
		t.Errorf("data from the end: %d, %v", next, err)
	}
	s.mu.Lock()
	for _, r := range s.replicas {
		if r.suspect.to > s.Chunks() {
			t.Errorf("a probe would read chunk %d of %d", r.suspect.to-1, s.Chunks())
		}
	}
	s.mu.Unlock()
	if _, _, err := s.Chunk(context.Background(), s.Chunks()); err == nil {
		t.Error("a chunk beyond the end has a digest")
	}
}

// A set opens when one replica can be opened; the others join when they can.
func TestReplicasJoinLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "/a", "/b")
		b.fail("/a", errCable)
		s := b.open(t, "/a", "/b")
		if st := status(t, s, "/a"); st.State != StateDown || st.Error == "" {
			t.Errorf("%+v", st)
		}
		b.fail("/a", nil)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if st := status(t, s, "/a"); st.State != StateReady {
			t.Errorf("%+v", st)
		}
	})
}

func TestSetRefusesOtherContent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "/a", "/b", "/c")
		b.put(t, "/b", testContent(43, 1<<20), 50)
		s := b.open(t, "/a", "/b", "/c")
		st := status(t, s, "/b")
		if st.State != StateRefused || !strings.Contains(st.Error, s.ContentRoot().String()) {
			t.Errorf("%+v", st)
		}
		if err := s.Add(context.Background(), benchRef(t, "/b")); !errors.Is(err, ErrOther) && !errors.Is(err, ErrExists) {
			t.Errorf("%v", err)
		}
		rng := newRand()
		for range 50 {
			b.read(t, s, rng)
		}
		// The mirror catches up.
		b.put(t, "/b", b.content, 33)
		time.Sleep(2 * refusedLook)
		synctest.Wait()
		if st := status(t, s, "/b"); st.State != StateReady {
			t.Errorf("%+v", st)
		}
		// The content that is asked for decides, wherever it stands.
		b.put(t, "/a", testContent(43, 1<<20), 50)
		again, err := b.tryOpen(t, s.ContentRoot(), "/a", "/b")
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		b.read(t, again, rng)
		if _, err := b.tryOpen(t, Digest{9}, "/a", "/b"); !errors.Is(err, ErrOther) {
			t.Errorf("%v", err)
		}
	})
}

func TestSetOptionsAreChecked(t *testing.T) {
	b := newBench(t, "/a", "/b")
	if _, err := b.tryOpen(t, Digest{}, "/a", "/a"); !errors.Is(err, ErrExists) {
		t.Errorf("%v", err)
	}
	b.fail("/a", errCable)
	if _, err := b.tryOpen(t, Digest{}, "/a"); !errors.Is(err, errCable) {
		t.Errorf("%v", err)
	}
	if _, err := b.tryOpen(t, Digest{}); err == nil {
		t.Error("a set of nothing opens")
	}
}

func TestAddAndRemove(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "/a", "/b", "/c")
		s := b.open(t, "/a")
		ctx, rng := context.Background(), newRand()
		if err := s.Remove(benchRef(t, "/a").String()); !errors.Is(err, ErrLast) {
			t.Errorf("%v", err)
		}
		b.fail("/b", errCable)
		if err := s.Add(ctx, benchRef(t, "/b")); !errors.Is(err, errCable) {
			t.Errorf("%v", err)
		}
		b.fail("/b", nil)
		for _, want := range []error{nil, ErrExists} {
			if err := s.Add(ctx, benchRef(t, "/b")); !errors.Is(err, want) {
				t.Errorf("%v", err)
			}
		}
		if err := s.Remove("nothing"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v", err)
		}
		// One that is removed gets no more reads, and those under way end well.
		b.hold("/a", delay(50*time.Millisecond))
		b.hold("/b", delay(50*time.Millisecond))
		var wg sync.WaitGroup
		for range 20 {
			seed := rng.Uint64()
			wg.Go(func() { b.read(t, s, rand.New(rand.NewPCG(seed, 0))) })
		}
		time.Sleep(10 * time.Millisecond)
		if err := s.Remove(benchRef(t, "/a").String()); err != nil {
			t.Error(err)
		}
		wg.Wait()
		synctest.Wait()
		b.hold("/a", func(context.Context, []byte) error {
			t.Error("a replica that was removed is read")
			return nil
		})
		for range 20 {
			b.read(t, s, rng)
		}
		if got := fmt.Sprint(len(s.Replicas()), len(s.Images())); got != "1 1" {
			t.Errorf("replicas and images: %s", got)
		}
	})
}

// What fails is asked elsewhere at once, is left alone then, and comes back by itself.
func TestFailOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "/a", "/b")
		s := b.open(t, "/a", "/b")
		rng := newRand()
		for range 20 {
			b.read(t, s, rng)
		}
		b.hold("/a", cutCable)
		for range 100 {
			if d := b.read(t, s, rng); d > 0 {
				t.Errorf("a read waited %s", d)
			}
		}
		if st := status(t, s, "/a"); st.State != StateDown || st.Failures < maxFails || st.Failures > maxFails+1 {
			t.Errorf("%+v", st)
		}
		time.Sleep(time.Minute)
		if st := status(t, s, "/a"); st.Failures > 20 {
			t.Errorf("%d probes in a minute", st.Failures)
		}
		b.hold("/a", nil)
		time.Sleep(2 * maxBackOff)
		synctest.Wait()
		if st := status(t, s, "/a"); st.State != StateReady {
			t.Errorf("%+v", st)
		}
	})
}

// A replica that falls silent keeps nobody waiting long: not those who asked it, not those who want the same, and not those who come later.
func TestSilence(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, silent := range [][]string{{"/a"}, {"/a", "/b"}} {
			b := newBench(t, "/a", "/b", "/c")
			s := b.open(t, "/a", "/b", "/c")
			rng := newRand()
			for range 30 {
				b.read(t, s, rng)
			}
			for _, name := range silent {
				b.hold(name, silence)
			}
			b.hold("/c", delay(20*time.Millisecond))
			var longest time.Duration
			var mu sync.Mutex
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(i), 1))
					for range 20 {
						d := b.read(t, s, rng)
						mu.Lock()
						longest = max(longest, d)
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			t.Logf("figure: %d of 3 fall silent, 50 readers, virtual time: longest stall %s", len(silent), longest)
			if longest > time.Duration(len(silent))*(minQuiet+2*hedgeCheck)+100*time.Millisecond {
				t.Errorf("a reader waited %s", longest)
			}
			time.Sleep(2 * time.Second) // by then a probe has ended
			if st := status(t, s, "/a"); st.State != StateDown {
				t.Errorf("%+v", st)
			}
			for _, name := range silent {
				b.hold(name, nil)
			}
			time.Sleep(2 * maxBackOff)
			synctest.Wait()
			if st := status(t, s, "/a"); st.State != StateReady && st.State != StateSlow {
				t.Errorf("%+v", st)
			}
		}
	})
}

// A slow replica gets little to do, costs few requests that are made twice, and gets its share again when it is as fast as the others.
func TestSlowReplica(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "/a", "/b", "/c")
		for _, name := range []string{"/a", "/b", "/c"} {
			b.hold(name, delay(2*time.Millisecond))
		}
		s := b.open(t, "/a", "/b", "/c")
		rng := newRand()
		run := func(n int) (requests, hedged int64) {
			before := status(t, s, "/a")
			for range n {
				b.read(t, s, rng)
			}
			after := status(t, s, "/a")
			return after.Requests - before.Requests, after.Hedged - before.Hedged
		}
		n, _ := run(600)
		t.Logf("figure: of 600 reads of 3 equals, %d requests went to the first", n)
		if n < 100 || n > 400 {
			t.Errorf("%d requests", n)
		}
		b.hold("/a", delay(100*time.Millisecond))
		_, hedged := run(600)
		st := status(t, s, "/a")
		t.Logf("figure: 50 times slower: %d of 600 reads made twice, state %s", hedged, st.State)
		if st.State != StateSlow || hedged < 1 || hedged > 60+hedgeBurst {
			t.Errorf("%d hedged, %+v", hedged, st)
		}
		b.hold("/a", delay(2*time.Millisecond))
		began := time.Now()
		for status(t, s, "/a").State == StateSlow && time.Since(began) < time.Minute {
			run(10)
		}
		t.Logf("figure: as fast as the others again: noticed after %s", time.Since(began))
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("still slow after %s", d)
		}
		if n, _ := run(600); n < 100 {
			t.Errorf("%d requests", n)
		}
	})
}

// Where all are equally slow, whatever that is, a tenth of the requests is made twice at most.
func TestHedgesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "/a", "/b", "/c")
		s := b.open(t, "/a", "/b", "/c")
		rng := newRand()
		var mu sync.Mutex
		for _, name := range []string{"/a", "/b", "/c"} {
			b.hold(name, func(ctx context.Context, p []byte) error {
				mu.Lock()
				d := time.Duration(1+rng.IntN(200)) * time.Millisecond
				mu.Unlock()
				return delay(d)(ctx, p)
			})
		}
		reads := rand.New(rand.NewPCG(1, 1))
		for range 500 {
			b.read(t, s, reads)
		}
		requests, hedged := int64(0), int64(0)
		for _, st := range s.Replicas() {
			requests, hedged = requests+st.Requests, hedged+st.Hedged
			if st.State == StateDown {
				t.Errorf("%+v", st)
			}
		}
		t.Logf("figure: %d requests, %d hedges", requests, hedged)
		if float64(hedged) > hedgeShare*float64(requests)+hedgeBurst || hedged == 0 {
			t.Errorf("%d hedges of %d requests", hedged, requests)
		}
	})
}

// lie makes a store give a wrong bit in every answer about a pack.
func (b *bench) lie(t testing.TB, name string) {
	t.Helper()
	m, err := decodeManifest(b.stores[name].tags["a:v1"])
	if err != nil {
		t.Fatal(err)
	}
	b.stores[name].spoil = func(blob string, _ int64, p []byte) {
		if blob != string(m.Config.Digest) && blob != string(m.Table.Digest) {
			p[0] ^= 1
		}
	}
}

// One bad chunk is enough: a liar is out, and that is told once. It comes back when it was removed and added again, or after a long time.
func TestLiar(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "/a", "/b")
		b.lie(t, "/a")
		s := b.open(t, "/a", "/b")
		rng := newRand()
		for range 200 {
			b.read(t, s, rng)
		}
		before := status(t, s, "/a")
		if before.State != StateLiar || before.Failures != 1 || before.Error == "" {
			t.Errorf("%+v", before)
		}
		time.Sleep(liarRest / 2)
		for range 200 {
			b.read(t, s, rng)
		}
		if after := status(t, s, "/a"); after.Requests != before.Requests {
			t.Errorf("a liar was asked: %+v", after)
		}
		if n := strings.Count(b.log.String(), "wrong bytes"); n != 1 {
			t.Errorf("told %d times:\n%s", n, b.log)
		}
		time.Sleep(liarRest) // and it lies still
		if after := status(t, s, "/a"); after.State != StateLiar || after.Failures != 2 {
			t.Errorf("%+v", after)
		}
		b.put(t, "/a", b.content, 7)
		ref := benchRef(t, "/a")
		if err := errors.Join(s.Remove(ref.String()), s.Add(context.Background(), ref)); err != nil {
			t.Fatal(err)
		}
		for range 200 {
			b.read(t, s, rng)
		}
		if st := status(t, s, "/a"); st.State != StateReady || st.Requests < 20 {
			t.Errorf("%+v", st)
		}
	})
}

// A chunk that is bad wherever it is cannot be read, and all others can.
func TestAChunkThatIsBadEverywhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "/a", "/b")
		bad := sha256.Sum256(b.content[4096*9 : 4096*10])
		for _, name := range []string{"/a", "/b"} {
			p := cut(b.content, 4096, 50)
			ref := p.refs[9]
			if ref.digest != bad {
				t.Fatal("chunk 9 is zeros")
			}
			p.packs[ref.place.pack][ref.place.offset] ^= 1
			fresh := newMemStore()
			p.store(t, fresh, "a:v1", nil)
			b.stores[name] = fresh
		}
		s := b.open(t, "/a", "/b")
		if err := s.Read(context.Background(), make([]byte, 4096), 9*4096); !errors.Is(err, ErrNoReplica) || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%v", err)
		}
		p := make([]byte, 100*4096)
		if err := s.Read(context.Background(), p, 20*4096); err != nil || !bytes.Equal(p, b.content[20*4096:][:len(p)]) {
			t.Errorf("other chunks: %v", err)
		}
	})
}

// While nobody answers reads wait, as long as the patience lasts; they go on a second after somebody is back.
func TestPatience(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for name, fault := range map[string]func(context.Context, []byte) error{"silent": silence, "failing": cutCable} {
			b := newBench(t, "/a", "/b")
			s := b.open(t, "/a", "/b")
			b.hold("/a", fault)
			b.hold("/b", fault)
			began := time.Now()
			err := s.Read(context.Background(), make([]byte, 10), 9*4096)
			if took := time.Since(began); !errors.Is(err, ErrNoReplica) || took != defaultPatience {
				t.Errorf("%s: %v after %s", name, err, took)
			}
			if _, err := s.NextData(context.Background(), 0); !errors.Is(err, ErrNoReplica) {
				t.Errorf("%s: next data: %v", name, err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			if err := s.Read(ctx, make([]byte, 10), 9*4096); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNoReplica) {
				t.Errorf("%s: %v", name, err)
			}
			cancel()
			var readers sync.WaitGroup
			for i := range 4 * lanes { // more than may wait at the replicas themselves
				readers.Go(func() { b.read(t, s, rand.New(rand.NewPCG(uint64(i), 0))) })
			}
			time.Sleep(40*time.Second + 3*time.Millisecond)
			b.hold("/b", nil)
			back := time.Now()
			readers.Wait()
			t.Logf("figure: %s: all gone for 40 s, the last of %d reads ends %s after one is back", name, 4*lanes, time.Since(back))
			if d := time.Since(back); d > probeTime+starvingBackOff || d == 0 {
				t.Errorf("%s: %s", name, d)
			}
		}
	})
}

// Replicas that were packed anew under the same tag are read again.
func TestAReplicaThatWasRepacked(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "/a", "/b")
		s := b.open(t, "/a", "/b")
		old := b.stores["/a"]
		b.put(t, "/a", b.content, 5)
		old.mu.Lock()
		clear(old.blobs)
		old.mu.Unlock()
		rng := newRand()
		for range 100 {
			b.read(t, s, rng)
		}
		time.Sleep(5 * time.Second)
		for range 100 {
			b.read(t, s, rng)
		}
		if st := status(t, s, "/a"); st.State != StateReady || b.stores["/a"].reads < 10 {
			t.Errorf("%d reads of what is there now, %+v", b.stores["/a"].reads, st)
		}
	})
}

// Close ends those who wait, and leaves nothing running: a bubble ends only when all of its goroutines have.
func TestSetCloses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "/a", "/b")
		s, err := b.tryOpen(t, Digest{}, "/a", "/b")
		if err != nil {
			t.Fatal(err)
		}
		b.hold("/a", silence)
		b.hold("/b", silence)
		ended := make(chan error)
		for range 3 {
			go func() { ended <- s.Read(context.Background(), make([]byte, 10), 9*4096) }()
			go func() { _, err := s.NextData(context.Background(), 0); ended <- err }()
		}
		time.Sleep(time.Second)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		for range 6 {
			if err := <-ended; !errors.Is(err, ErrClosed) {
				t.Errorf("%v", err)
			}
		}
	})
}

// A replica is silent when it has something to give, and gives nothing to anybody.
func TestWhoIsSilent(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		reading        int64
		asked, arrived time.Duration // ago
		best           time.Duration
		other          State
		want           bool
	}{
		"asked long ago":                   {1, time.Second / 2, 2 * time.Second, 0, StateReady, true},
		"asked just now":                   {1, time.Millisecond, 2 * time.Second, 0, StateReady, false},
		"answers others":                   {5, time.Second / 2, time.Millisecond, 0, StateReady, false},
		"what it gave is verified":         {0, time.Second / 2, 2 * time.Second, 0, StateReady, false},
		"is far away":                      {1, time.Second, 2 * time.Second, 700 * time.Millisecond, StateReady, false},
		"is far away, and that is too far": {1, 3 * time.Second, 3 * time.Second, 700 * time.Millisecond, StateReady, true},
		"is the last":                      {1, time.Second / 2, 2 * time.Second, 0, StateDown, false},
		"is the last, and takes too long":  {1, time.Second, 2 * time.Second, 0, StateDown, true},
	} {
		var s Set
		r := replica{set: &s}
		s.replicas = []*replica{&r, {set: &s, state: c.other}}
		r.reading.Store(c.reading)
		r.arrived.Store(now.Add(-c.arrived).UnixNano())
		r.recent.best = c.best
		if got := r.silent(now, now.Add(-c.asked)); got != c.want {
			t.Errorf("%s: silent %v", name, got)
		}
	}
}
