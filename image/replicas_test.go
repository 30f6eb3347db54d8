package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// bench is some replicas in memory, in virtual time.
type bench struct {
	content []byte
	stores  map[string]*memStore
	opens   map[string]error // of opening a store
	log     *bytes.Buffer
	mu      sync.Mutex // guards opens and holds
	holds   map[string]func(context.Context, []byte) error
}

var benchContent = sync.OnceValue(func() []byte { return testContent(41, 1<<20) })

// newBench makes stores with one content, each packed in another way.
func newBench(t testing.TB, names ...string) *bench {
	b := &bench{content: benchContent(), stores: map[string]*memStore{}, opens: map[string]error{}, log: &bytes.Buffer{},
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

func (b *bench) source(r Ref, _ SourceOptions) (Source, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
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
		if st.State != StateRefused || !bytes.Contains([]byte(st.Error), []byte(s.ContentRoot().String())) {
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
		if st := status(t, s, "/a"); st.Failures > 15 {
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
