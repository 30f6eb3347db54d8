package image

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// buildAs makes an image of some content, and returns its manifest's digest.
func buildAs(t *testing.T, l *Layout, name string, content []byte) (manifest, root Digest) {
	t.Helper()
	if _, err := Build(context.Background(), l, name, bytes.NewReader(content), int64(len(content)), BuildOptions{ChunkSize: 4096}); err != nil {
		t.Fatal(err)
	}
	im, err := Open(context.Background(), l, name)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	manifest, err = ParseDigest(string(im.Manifest().Digest))
	if err != nil {
		t.Fatal(err)
	}
	return manifest, im.ContentRoot()
}

// A pinned reference means its manifest as long as that is there, and what the tag means afterwards.
func TestPinnedReferences(t *testing.T) {
	ctx := context.Background()
	l, err := CreateLayout(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	first, want := buildAs(t, l, "a:1", testContent(1, 50_000))
	ref, err := ParseRef(l.String() + ":a:1")
	if err != nil {
		t.Fatal(err)
	}
	pinned := ref.Pinned(first)
	if pinned.String() != ref.String() || pinned.Pinned(Digest{}) != ref {
		t.Errorf("%s became %s", ref, pinned)
	}
	content := func(r Ref) Digest {
		t.Helper()
		im, src, err := OpenRef(ctx, r, SourceOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = errors.Join(im.Close(), src.Close()) }()
		return im.ContentRoot()
	}
	_, other := buildAs(t, l, "a:1", testContent(2, 50_000))
	if got := content(pinned); got != want {
		t.Errorf("a pinned reference means %s, not %s", got, want)
	}
	if got := content(ref); got != other {
		t.Errorf("one that is not means %s, not %s", got, other)
	}
	if _, err := l.Collect(); err != nil {
		t.Fatal(err)
	}
	if got := content(pinned); got != other {
		t.Errorf("the manifest is gone, and the reference means %s", got)
	}
	// A set follows the pin, tells by which manifest a replica is open, and refuses what the tag means now.
	s, err := OpenSet(ctx, []Ref{ref}, Digest{}, SetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	second, _ := buildAs(t, l, "a:1", testContent(2, 50_000))
	if all := s.Replicas(); all[0].Manifest != second || all[0].Ref != ref.String() {
		t.Errorf("%+v", all)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err = OpenSet(ctx, []Ref{pinned}, want, SetOptions{}); !errors.Is(err, ErrOther) {
		t.Errorf("%v", err)
	}
}

// What cannot be reached when it is added joins when it can.
func TestAddLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b := newBench(t, "x", "y")
		s := b.open(t, "x")
		b.fail("y", errCable)
		if err := s.AddLater(benchRef(t, "y")); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"x", "y"} {
			if err := s.AddLater(benchRef(t, name)); !errors.Is(err, ErrExists) {
				t.Errorf("%s was added twice: %v", name, err)
			}
		}
		time.Sleep(time.Second)
		if st := status(t, s, "y"); st.State != StateDown || st.Failures == 0 || st.Manifest != (Digest{}) {
			t.Errorf("%+v", st)
		}
		b.read(t, s, newRand())
		b.fail("y", nil)
		time.Sleep(time.Minute)
		if st := status(t, s, "y"); st.State != StateReady || st.Manifest == (Digest{}) {
			t.Errorf("%+v", st)
		}
		if err := s.Remove(benchRef(t, "x").String()); err != nil {
			t.Fatal(err)
		}
		b.read(t, s, newRand())
	})
}

// Whoever paces a copy is told of every byte, and can end it.
func TestCopyIsPaced(t *testing.T) {
	ctx := context.Background()
	from, err := CreateLayout(filepath.Join(t.TempDir(), "from"))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	buildAs(t, from, "a:1", testContent(1, 500_000))
	to, err := CreateLayout(filepath.Join(t.TempDir(), "to"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	im := openTest(t, from, "a:1")
	enough := errors.New("enough")
	_, err = Copy(ctx, im, to, "a:1", CopyOptions{Pace: func(context.Context, int) error { return enough }})
	if !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
	if tags, err := to.Tags(ctx); err != nil || len(tags) != 0 {
		t.Errorf("left %v, %v", tags, err)
	}
	var seen atomic.Int64
	report, err := Copy(ctx, im, to, "a:1", CopyOptions{Pace: func(_ context.Context, n int) error { seen.Add(int64(n)); return nil }})
	if err != nil || seen.Load() != report.CopiedBytes || report.CopiedBytes == 0 {
		t.Errorf("%d bytes paced, %+v, %v", seen.Load(), report, err)
	}
}
