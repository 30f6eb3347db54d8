package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"coppice/image"
	"coppice/union"
)

// servedImage serves an image by HTTP, as long as up says so.
func servedImage(t *testing.T, up *atomic.Bool) (ref string, content []byte) {
	t.Helper()
	l, err := image.CreateLayout(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	content = bytes.Repeat([]byte("content of a root "), 20_000)
	clear(content[100_000:250_000])
	_, err = image.Build(context.Background(), l, "a:1", bytes.NewReader(content), int64(len(content)), image.BuildOptions{ChunkSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(l.String()[len("oci:"):]) + "/images"
	files := http.FileServer(http.Dir(dir))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !up.Load() {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL + "/:a:1", content
}

func readRoot(b union.Base, p []byte, off int64) error {
	done := make(chan error, 1)
	b.ReadAsync(p, off, func(_ union.Origins, err error) { done <- err })
	return <-done
}

// Reads wait while the source is gone, and go on when it is back; after the patience they fail, and the next ones do not.
func TestImageRootWaitsForItsSource(t *testing.T) {
	var up atomic.Bool
	up.Store(true)
	ref, content := servedImage(t, &up)
	w, err := wantRoot([]string{ref}, nil)
	if err != nil {
		t.Fatal(err)
	}
	opener := &roots{cfg: ImageConfig{Patience: "5s"}}
	base, err := opener.open(w)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	if base.Size() != int64(len(content)) || base.File() != nil || base.Pin().Kind != union.PinImage {
		t.Errorf("%d bytes, pin %+v", base.Size(), base.Pin())
	}
	p := make([]byte, 10_000)
	if err := readRoot(base, p, 95_000); err != nil || !bytes.Equal(p, content[95_000:105_000]) {
		t.Errorf("%v, or other bytes", err)
	}
	up.Store(false)
	time.AfterFunc(200*time.Millisecond, func() { up.Store(true) })
	if err := readRoot(base, p, 300_000); err != nil || !bytes.Equal(p, content[300_000:310_000]) {
		t.Errorf("%v, or other bytes", err)
	}
	up.Store(false)
	if err := readRoot(base, p, 20_000); !errors.Is(err, image.ErrNoReplica) {
		t.Errorf("%v", err)
	}
	up.Store(true)
	if err := readRoot(base, p, 20_000); err != nil || !bytes.Equal(p, content[20_000:30_000]) {
		t.Errorf("%v, or other bytes", err)
	}
	if next := base.(*imageRoot).NextData(110_000); next != 249_856 {
		t.Errorf("data goes on at %d", next)
	}
}

// The root of all who stand on one content is opened once, and closed with the last of them.
func TestRootsOfOneContentAreShared(t *testing.T) {
	var up atomic.Bool
	up.Store(true)
	ref, _ := servedImage(t, &up)
	a := &roots{cfg: ImageConfig{Patience: "1s"}, log: slog.Default()}
	open := func(w rootWanted) *imageRoot {
		t.Helper()
		base, err := a.open(w)
		if err != nil {
			t.Fatal(err)
		}
		return base.(*imageRoot)
	}
	w, err := wantRoot([]string{ref}, nil)
	if err != nil {
		t.Fatal(err)
	}
	one, two := open(w), open(w)
	up.Store(false)
	w.pin = one.Pin()
	three := open(w) // needs nobody to answer
	w.alone = true
	four := open(w)
	if one.set != two.set || one.set != three.set || one.set != four.set || one.set.users != 4 || len(a.sets) != 1 {
		t.Errorf("%d sets, %d users", len(a.sets), one.set.users)
	}
	for _, r := range []*imageRoot{two, one, four, three} {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(a.sets) != 0 {
		t.Errorf("%d sets are left", len(a.sets))
	}
	up.Store(true)
	// A detach brings a reference of its own, which is nothing to the devices.
	five := open(w)
	if five.set == one.set || len(a.sets) != 0 {
		t.Error("what is opened for one user alone is shared")
	}
	if err := five.Close(); err != nil {
		t.Error(err)
	}
}

// Copies keep behind guests, and get on all the same.
func TestCopiesKeepBehindGuests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g guests
		p := newPacer(&g)
		took := func(n int) time.Duration {
			began := time.Now()
			if err := p.pace(context.Background(), n); err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
		if d := took(1 << 30); d > 0 {
			t.Errorf("held up for %v with nobody there", d)
		}
		g.enter()
		if d := took(leastHydrateRate / 5); (d - 200*time.Millisecond).Abs() > time.Microsecond {
			t.Errorf("a fifth of a second's bytes took %v while a guest reads", d)
		}
		time.AfterFunc(50*time.Millisecond, g.leave)
		if d := took(leastHydrateRate * 60); d < 50*time.Millisecond || d > 50*time.Millisecond+2*guestPause {
			t.Errorf("went on %v after a guest's last read", d)
		}
		g.enter()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		if err := p.pace(ctx, 1<<30); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

func TestCopiesLeaveSpace(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		need, free, total int64
		ok                bool
	}{
		{0, 0, 100 * gib, true}, // all of it is there
		{1 * gib, 2 * gib, 100 * gib, true},
		{1*gib + 1, 2 * gib, 100 * gib, false},
		{1 * gib, 1*gib + gib/2, 10 * gib, true},
		{1*gib + 1, 1*gib + gib/2, 10 * gib, false},
		{2 * gib, 1 * gib, 100 * gib, false},
	} {
		err := fits("/images", c.need, c.free, c.total)
		if (err == nil) != c.ok || err != nil && (CodeOf(err) != CodeNoSpace || HintOf(err) == "") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
