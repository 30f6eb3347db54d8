package image

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
)

// A set that is given the metadata of the last one opens without its servers, and takes nothing that has another digest.
func TestOpenSetKnowing(t *testing.T) {
	dir := t.TempDir()
	layout, err := CreateLayout(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("content"), 1<<17)
	_, err = Build(t.Context(), layout, "a:1", bytes.NewReader(content), int64(len(content)), BuildOptions{})
	if err := errors.Join(err, layout.Close()); err != nil {
		t.Fatal(err)
	}
	var down atomic.Bool
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if down.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		files.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	ref, err := ParseRef(server.URL + "/images:a:1")
	if err != nil {
		t.Fatal(err)
	}
	open := func(ref Ref, known map[Digest][]byte) (*Set, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return OpenSet(ctx, []Ref{ref}, Digest{}, SetOptions{Known: known})
	}
	set, err := open(ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	known, manifest := set.Metadata(), set.Replicas()[0].Manifest
	if err := set.Close(); err != nil {
		t.Fatal(err)
	}
	down.Store(true)
	pinned := ref.Pinned(manifest)
	if set, err := open(pinned, nil); err == nil {
		t.Errorf("opened without a server, knowing nothing: %v", set.Close())
	}
	for digest, data := range known {
		damaged := map[Digest][]byte{}
		for d, all := range known {
			damaged[d] = bytes.Clone(all)
		}
		damaged[digest][len(data)/2]++
		if set, err := open(pinned, damaged); err == nil {
			t.Errorf("opened with other metadata than %s says: %v", digest, set.Close())
		}
	}
	if set, err = open(pinned, known); err != nil {
		t.Fatal(err)
	}
	down.Store(false)
	got := make([]byte, 64<<10)
	if err := set.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, content[:len(got)]) {
		t.Errorf("what the set reads is not the image (%v)", err)
	}
	if err := set.Close(); err != nil {
		t.Error(err)
	}
}
