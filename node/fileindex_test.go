package node_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"aead.dev/minisign"

	"coppice/image"
	"coppice/image/imagetest"
	"coppice/node"
)

// attachIndex attaches bytes as the index of the image that a reference means, signed where there is a key.
func attachIndex(t *testing.T, dir, ref string, content []byte, key *minisign.PrivateKey) image.IndexStatement {
	t.Helper()
	ctx := context.Background()
	im, src, err := image.OpenRef(ctx, mustRef(t, ref), image.SourceOptions{})
	check(t, err)
	l, err := image.OpenLayout(dir)
	check(t, err)
	r, err := image.AttachIndex(ctx, im, l, image.IndexFile{Root: im.ContentRoot(), Content: bytes.NewReader(content), SizeBytes: int64(len(content))}, image.IndexOptions{})
	check(t, err)
	if key != nil {
		_, err = image.SignIndex(ctx, im, l, *key)
		check(t, err)
	}
	check(t, errors.Join(im.Close(), src.Close(), l.Close()))
	return r.Statement
}

// indexContent is what no image has.
func indexContent(seed byte) []byte {
	p := make([]byte, 1<<20+4096)
	for i := range p {
		p[i] = byte(i>>12)*31 + byte(i) + seed
	}
	return p
}

func (r *imageRig) readIndex(name string, off, n int64) ([]byte, error) {
	r.t.Helper()
	info, err := r.client().Index(context.Background(), name)
	if err != nil {
		return nil, err
	}
	p := make([]byte, n)
	_, err = r.client().IndexReader(context.Background(), info).ReadAt(p, off)
	return p, err
}

// The bytes of an index come from the cache that all devices share, none before it is asked for, and are there while the origin is not.
func TestIndexOfARoot(t *testing.T) {
	r := newCacheRig(t)
	r.cfg.Cache.PrefetchPercent = ptr(0)
	r.start()
	r.create(r.on("web1", r.refA))
	if _, err := r.readIndex("web1", 0, 1); node.CodeOf(err) != node.CodeNotFound || !strings.Contains(node.HintOf(err), "coppice index build") {
		t.Fatalf("no index: %v", err)
	}
	want := indexContent(1)
	st := attachIndex(t, r.a.dir, r.refA, want, nil)
	info, err := r.client().Index(context.Background(), "web1")
	if err != nil || info.Statement != st || info.Image != r.refA || info.Trusted || len(info.Keys) != 0 {
		t.Fatalf("%+v, %v", info, err)
	}
	if s := r.cacheStats(); s.Origin.Bytes != 0 {
		t.Errorf("opening has read %+v", s.Origin)
	}
	p, err := r.readIndex("web1", 70_000, 5000)
	if err != nil || !bytes.Equal(p, want[70_000:75_000]) {
		t.Errorf("%v, or other bytes", err)
	}
	if s := r.cacheStats(); s.Origin.Bytes != 64<<10 {
		t.Errorf("a few bytes have read %+v", s.Origin)
	}
	r.create(r.on("web2", r.refA))
	if p, err = r.readIndex("web2", 0, int64(len(want))); err != nil || !bytes.Equal(p, want) {
		t.Errorf("%v, or other bytes", err)
	}
	if s := r.cacheStats(); s.Origin.Bytes != uint64(len(want)) {
		t.Errorf("all of it has read %+v", s.Origin)
	}
	r.a.up.Store(false)
	wait(t, "reading it without its origin, also when it cannot be looked for another one", func() bool {
		p, err = r.readIndex("web1", 0, int64(len(want)))
		if err != nil || !bytes.Equal(p, want) {
			t.Fatalf("%v, or other bytes", err)
		}
		return strings.Contains(r.log.String(), "not looked for another index")
	})
	r.a.up.Store(true)

	// Another index is noticed, and who reads the one before is told.
	before := r.client().IndexReader(context.Background(), info)
	if n, err := before.ReadAt(make([]byte, 10), st.SizeBytes-4); n != 4 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	want = indexContent(2)
	st = attachIndex(t, r.a.dir, r.refA, want, nil)
	wait(t, "the other index", func() bool {
		info, err = r.client().Index(context.Background(), "web1")
		check(t, err)
		return info.Statement == st
	})
	if p, err = r.readIndex("web1", 0, int64(len(want))); err != nil || !bytes.Equal(p, want) {
		t.Errorf("%v, or other bytes", err)
	}
	if _, err := before.ReadAt(p, 0); node.CodeOf(err) != node.CodeNotFound {
		t.Errorf("the one before: %v", err)
	}
	for _, name := range []string{"web1", "web2"} {
		_, err = r.client().Delete(context.Background(), name)
		check(t, err)
	}
	if _, err := r.readIndex("web1", 0, 1); node.CodeOf(err) != node.CodeNotFound {
		t.Errorf("of a device that is gone: %v", err)
	}
}

// Several read an index at once, while others replace it.
func TestIndexIsReadAtOnce(t *testing.T) {
	r := newImageRig(t) // without a cache
	want := indexContent(1)
	attachIndex(t, r.a.dir, r.refA, want, nil)
	r.start()
	r.create(r.on("web1", r.refA))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for off := int64(i); off < int64(len(want)); off += 100_000 {
				if p, err := r.readIndex("web1", off, 4096); err != nil || !bytes.Equal(p, want[off:][:4096]) {
					t.Errorf("%v, or other bytes", err)
				}
			}
		})
	}
	all.Wait()
}

// A machine that takes only what is signed takes no index that is not signed by itself, and none that is damaged; the device works with either.
func TestIndexThatIsNotTaken(t *testing.T) {
	r := newCacheRig(t)
	key, public := imagetest.Key(t)
	r.cfg.Images.RequireSignature, r.cfg.Images.TrustedKeys, r.cfg.Images.SerialsPath = true, []string{public}, filepath.Join(r.dir, "serials.json")
	ctx := context.Background()
	im, src, err := image.OpenRef(ctx, mustRef(t, r.refA), image.SourceOptions{})
	check(t, err)
	l, err := image.OpenLayout(r.a.dir)
	check(t, err)
	_, err = image.Sign(ctx, im, l, key, image.Statement{Name: mustRef(t, r.refA).Image, Serial: 1})
	check(t, err)
	want := indexContent(1)
	attachIndex(t, r.a.dir, r.refA, want, nil)
	r.start()
	r.create(r.on("web1", r.refA))
	if _, err := r.readIndex("web1", 0, 1); node.CodeOf(err) != node.CodeUntrusted || !strings.Contains(node.HintOf(err), "coppice index share IMAGE --key") {
		t.Errorf("an index that is not signed: %v", err)
	}
	_, other, err := minisign.GenerateKey(nil)
	check(t, err)
	_, err = image.SignIndex(ctx, im, l, other)
	check(t, err)
	if _, err := r.readIndex("web1", 0, 1); node.CodeOf(err) != node.CodeUntrusted {
		t.Errorf("an index that somebody signed: %v", err)
	}
	_, err = image.SignIndex(ctx, im, l, key)
	check(t, err)
	if p, err := r.readIndex("web1", 0, int64(len(want))); err != nil || !bytes.Equal(p, want) {
		t.Errorf("%v, or other bytes", err)
	}
	if info, err := r.client().Index(ctx, "web1"); err != nil || !info.Trusted || len(info.Keys) != 2 {
		t.Errorf("%+v, %v", info, err)
	}
	check(t, errors.Join(im.Close(), src.Close(), l.Close()))
}

// A damaged index is refused, and the device works on. Where the node has what is damaged from before, it does not notice.
func TestDamagedIndex(t *testing.T) {
	for _, before := range []bool{false, true} {
		r := newCacheRig(t)
		attachIndex(t, r.a.dir, r.refA, indexContent(1), nil)
		r.start()
		r.create(r.on("web1", r.refA))
		if before {
			if _, err := r.readIndex("web1", 0, 1); err != nil {
				t.Error(err)
			}
			_, err := r.client().Delete(context.Background(), "web1")
			check(t, err)
		}
		im, src, err := image.OpenRef(context.Background(), mustRef(t, r.refA), image.SourceOptions{})
		check(t, err)
		x, err := image.OpenIndex(context.Background(), im)
		check(t, err)
		check(t, os.WriteFile(filepath.Join(r.a.dir, "blobs", "sha256", x.Manifest().Digest.Encoded()), []byte("{}"), 0o644))
		check(t, errors.Join(x.Close(), im.Close(), src.Close()))
		if before {
			r.create(r.on("web1", r.refA))
		}
		if _, err := r.readIndex("web1", 0, 1); before && err != nil || !before && node.CodeOf(err) != node.CodeCorrupt {
			t.Errorf("read before it was damaged %v: %v", before, err)
		}
		r.same(0, 2*mib)
	}
}

// What one node has read of an index, another one takes from it. One that is asked for a part of it opens it for that.
func TestPeersShareAnIndex(t *testing.T) {
	a, b := newCacheRig(t), newCacheRig(t)
	want := indexContent(1)
	for _, r := range []*imageRig{a, b} { // the same image in two places
		attachIndex(t, r.a.dir, r.refA, want, nil)
	}
	peers := filepath.Join(a.dir, "peers")
	urls := []string{"http://" + freeAddress(t), "http://" + freeAddress(t)}
	check(t, os.WriteFile(peers, []byte(strings.Join(urls, "\n")+"\n"), 0o600))
	for i, r := range []*imageRig{a, b} {
		c := &r.cfg.Cache
		c.Peers, c.Self, c.Listen, c.Insecure, c.PrefetchPercent, c.Patience = peers, urls[i], strings.TrimPrefix(urls[i], "http://"), true, ptr(0), "1m"
		r.start()
		r.create(r.on("web1", r.refA))
	}
	for _, r := range []*imageRig{a, b} {
		if p, err := r.readIndex("web1", 0, int64(len(want))); err != nil || !bytes.Equal(p, want) {
			t.Errorf("%v, or other bytes", err)
		}
	}
	if sum := a.cacheStats().Origin.Bytes + b.cacheStats().Origin.Bytes; sum > uint64(len(want))*11/10 {
		t.Errorf("the origins gave %d bytes of %d", sum, len(want))
	}
}
