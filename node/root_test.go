package node

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
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
	b.ReadAsync(p, off, func(err error) { done <- err })
	return <-done
}

// Reads wait while the source is gone, and go on when it is back; after the patience they fail, and the next ones do not.
func TestImageRootWaitsForItsSource(t *testing.T) {
	var up atomic.Bool
	up.Store(true)
	ref, content := servedImage(t, &up)
	base, err := new(roots).open(ref)
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
	base.(*imageRoot).patience = 100 * time.Millisecond
	if err := readRoot(base, p, 20_000); !errors.Is(err, image.ErrProtocol) {
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
