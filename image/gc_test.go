package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"

	"coppice/image/imagetest"
)

// leaseOf is a lease of a device on another node.
func leaseOf(t *testing.T, im *Image, name string) Lease {
	t.Helper()
	return Lease{
		Node: "5d1f", Host: "web-3", Device: "web1", Store: "/dev/vdb", Layer: "web1", Name: name,
		Manifest: mustDigest(t, string(im.Manifest().Digest)), ContentRoot: im.ContentRoot(),
	}
}

func mustDigest(t *testing.T, text string) Digest {
	t.Helper()
	d, err := ParseDigest(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func putLease(t *testing.T, l *Layout, lease Lease) {
	t.Helper()
	if err := l.PutLease(lease); err != nil {
		t.Fatal(err)
	}
}

func removeTest(t *testing.T, l *Layout, name string, o RemoveOptions) Removal {
	t.Helper()
	r, err := Remove(context.Background(), l, name, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func gcTest(t *testing.T, l *Layout, o GCOptions) GCReport {
	t.Helper()
	r, err := l.GC(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// What a lease names is not removed, under the name that its holder knows, nor under the last one.
func TestLeasedImagesStay(t *testing.T) {
	ctx := context.Background()
	l := testLayout(t)
	buildTest(t, l, "a:1", testContent(41, 256<<10), small())
	buildTest(t, l, "a:2", testContent(42, 256<<10), small())
	im := openTest(t, l, "a:1")
	lease := leaseOf(t, im, "a:1")
	putLease(t, l, lease)
	_, err := Remove(ctx, l, "a:1", RemoveOptions{})
	if !errors.Is(err, ErrLeased) || !strings.Contains(err.Error(), "image a:1 is in use by device web1 on web-3") {
		t.Errorf("%v", err)
	}
	if _, err := Promote(ctx, im, l, "a:stable"); err != nil {
		t.Fatal(err)
	}
	if _, err := Remove(ctx, l, "a:1", RemoveOptions{}); !errors.Is(err, ErrLeased) {
		t.Errorf("the name that the device has: %v", err)
	}
	removeTest(t, l, "a:stable", RemoveOptions{})
	removeTest(t, l, "a:2", RemoveOptions{})
	if err := l.DropLease(lease); err != nil {
		t.Fatal(err)
	}
	known := lease
	known.Name = ""
	if _, err := Remove(ctx, l, "a:1", RemoveOptions{Leases: []Lease{known}}); !errors.Is(err, ErrLeased) {
		t.Errorf("leases from elsewhere: %v", err)
	}
	if r := removeTest(t, l, "a:1", RemoveOptions{Leases: []Lease{known}, Force: true}); len(r.InUse) != 1 || r.FreedBytes == 0 {
		t.Errorf("%+v", r)
	}
	if names := blobNames(t, l); len(names) > 0 {
		t.Errorf("%v are left", names)
	}
	if err := l.PutLease(lease); !errors.Is(err, ErrNotFound) {
		t.Errorf("a lease of what is gone: %v", err)
	}
	if _, err := Remove(ctx, l, "a:1", RemoveOptions{Force: true}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// Files that are no leases, or are over, keep nothing, and are told.
func TestLeasesThatDoNotCount(t *testing.T) {
	l := testLayout(t)
	buildTest(t, l, "a:1", testContent(43, 64<<10), small())
	lease := leaseOf(t, openTest(t, l, "a:1"), "a:1")
	putLease(t, l, lease)
	path := l.leasePath(lease)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	replace := func(old, new string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, new, 1) }
	}
	date := func(key string, to time.Time) func(string) string {
		return func(s string) string {
			_, rest, _ := strings.Cut(s, `"`+key+`": "`)
			old, _, _ := strings.Cut(rest, `"`)
			return strings.Replace(s, `"`+key+`": "`+old, `"`+key+`": "`+to.Format(time.RFC3339), 1)
		}
	}
	for name, c := range map[string]struct {
		change func(string) string
		told   bool
	}{
		"torn":             {func(s string) string { return s[:len(s)/2] }, true},
		"empty":            {func(string) string { return "" }, true},
		"of another kind":  {func(string) string { return `["lease"]` }, true},
		"version":          {replace(`"version": 1`, `"version": 2`), true},
		"no node":          {replace("5d1f", ""), true},
		"huge":             {replace("5d1f", strings.Repeat("5", maxLeaseFile)), true},
		"from the future":  {date("renewed", now.Add(48*time.Hour)), true},
		"over":             {date("expires", now.Add(-time.Minute)), false},
		"renewed long ago": {date("renewed", now.Add(-LeaseTime-time.Hour)), false}, // whatever it says about its end
	} {
		if err := os.WriteFile(path, []byte(c.change(string(whole))), 0o644); err != nil {
			t.Fatal(err)
		}
		all, bad, err := l.Leases()
		if err != nil || len(all) != 0 || len(bad) > 0 != c.told {
			t.Errorf("%s: %v, %v, %v", name, all, bad, err)
		}
	}
	old := now.Add(-LeaseTime - time.Hour)
	if err := errors.Join(os.WriteFile(path, []byte("torn"), 0o644), os.Chtimes(path, old, old)); err != nil {
		t.Fatal(err)
	}
	gcTest(t, l, GCOptions{})
	if left, _ := filepath.Glob(filepath.Join(l.dir, leasesDir, "*")); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

// A version that a device reads stays readable when its name comes to mean another one, until the device gives it back.
func TestLeasedVersionStaysBehindItsName(t *testing.T) {
	l := testLayout(t)
	content := testContent(44, 256<<10)
	buildTest(t, l, "a:1", content, small())
	lease := leaseOf(t, openTest(t, l, "a:1"), "a:1")
	putLease(t, l, lease)
	buildTest(t, l, "a:1", testContent(45, 256<<10), small())
	if r := gcTest(t, l, GCOptions{}); len(r.Kept) != 1 || len(r.Kept[0].By) != 1 {
		t.Errorf("%+v", r)
	}
	if !bytes.Equal(readAll(t, openTest(t, l, lease.Manifest.String())), content) {
		t.Error("other content")
	}
	if err := l.DropLease(lease); err != nil {
		t.Fatal(err)
	}
	if r := gcTest(t, l, GCOptions{}); len(r.Kept) != 0 || r.FreedBytes == 0 {
		t.Errorf("%+v", r)
	}
	if _, err := Open(context.Background(), l, lease.Manifest.String()); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// A version is stored again where its packs are mostly of versions that are gone: same content, same signatures and trace, all its names; who has it
// open goes on.
func TestRepack(t *testing.T) {
	ctx := context.Background()
	l := testLayout(t)
	old := testContent(46, 1<<20)
	buildTest(t, l, "a:1", old, BuildOptions{ChunkSize: 4096})
	content := bytes.Clone(old)
	copy(content, testContent(47, 400<<10)) // so that three fifths of the only pack are in use
	o := BuildOptions{ChunkSize: 4096, Base: openTest(t, l, "a:1"), Labels: map[string]string{"os": "test"}, Created: time.Unix(1e9, 0).UTC()}
	buildTest(t, l, "a:2", content, o)
	public, key, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	im := openTest(t, l, "a:2")
	if _, err := Sign(ctx, im, l, key, Statement{Name: "a", Serial: 7}); err != nil {
		t.Fatal(err)
	}
	trace := attachTest(t, l, "a:2", "of a:2")
	if _, err := Promote(ctx, im, l, "a:stable"); err != nil {
		t.Fatal(err)
	}
	if r := gcTest(t, l, GCOptions{RepackBelow: 80}); len(r.Repacked) != 0 {
		t.Errorf("a pack that a:1 uses too is stored again: %+v", r)
	}
	removeTest(t, l, "a:1", RemoveOptions{})
	if r := gcTest(t, l, GCOptions{RepackBelow: 50}); len(r.Repacked) != 0 {
		t.Errorf("%+v", r)
	}
	r := gcTest(t, l, GCOptions{RepackBelow: 80, Grace: time.Hour})
	if len(r.Repacked) != 1 || len(r.Repacked[0].Names) != 2 || r.Repacked[0].AfterBytes > r.Repacked[0].BeforeBytes*4/5 || len(r.Kept) != 1 {
		t.Fatalf("%+v", r)
	}
	for _, name := range []string{"a:2", "a:stable"} {
		after := checkBuilt(t, l, name, content)
		c := after.Config()
		if after.Manifest().Digest != r.Repacked[0].After.oci() || c.Parent != o.Base.ContentRoot() || c.Labels["os"] != "test" || !c.Created.Equal(o.Created) {
			t.Errorf("%s: %+v", name, c)
		}
		if s, err := CheckSignature(ctx, after, []minisign.PublicKey{public}, "a", time.Now()); err != nil || s.Serial != 7 {
			t.Errorf("%s: %v", name, err)
		}
		checkTrace(t, l, name, &trace)
	}
	if !bytes.Equal(readAll(t, im), content) {
		t.Error("who has it open reads other content")
	}
	if r := gcTest(t, l, GCOptions{RepackBelow: 80}); len(r.Repacked) != 0 || len(r.Kept) != 1 {
		t.Errorf("once more: %+v", r)
	}
	// The grace is over, but a device reads it.
	index := filepath.Join(l.dir, "index.json")
	data, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), keptUntil+`":"`)
	if err := os.WriteFile(index, []byte(strings.Replace(string(data), rest[:20], "2001"+rest[4:20], 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if r := gcTest(t, l, GCOptions{Leases: []Lease{{ContentRoot: im.ContentRoot()}}}); len(r.Kept) != 1 {
		t.Errorf("%+v", r)
	}
	if r := gcTest(t, l, GCOptions{}); len(r.Kept) != 0 || r.FreedBytes < 200<<10 {
		t.Errorf("%+v", r)
	}
	checkBuilt(t, l, "a:stable", content)
	if tags, err := l.Tags(ctx); err != nil || len(tags) != 4 { // with one list of signatures, and one trace
		t.Errorf("%v, %v", tags, err)
	}
	if _, err := l.GC(ctx, GCOptions{RepackBelow: 101}); !errors.Is(err, ErrBadOption) {
		t.Error(err)
	}
}

func TestPromote(t *testing.T) {
	ctx := context.Background()
	l := testLayout(t)
	first, second := testContent(48, 128<<10), testContent(49, 128<<10)
	buildTest(t, l, "a:1", first, small())
	buildTest(t, l, "a:2", second, small())
	one, two := openTest(t, l, "a:1"), openTest(t, l, "a:2")
	if p, err := Promote(ctx, one, l, "a:stable"); err != nil || p.Before != nil || p.ContentRoot != one.ContentRoot() {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := Promote(ctx, two, l, "a:stable"); err != nil || p.Before == nil || p.Before.oci() != one.Manifest().Digest {
		t.Errorf("%+v, %v", p, err)
	}
	checkBuilt(t, l, "a:stable", second)
	if err := os.Remove(l.blobPath(mustDigest(t, string(one.Packs()[0].Digest)))); err != nil {
		t.Fatal(err)
	}
	if _, err := Promote(ctx, one, l, "a:stable"); !errors.Is(err, ErrNotFound) {
		t.Errorf("one that is not complete: %v", err)
	}
	checkBuilt(t, l, "a:stable", second)
}

func TestPromoteInARegistry(t *testing.T) {
	ctx := context.Background()
	l := testLayout(t)
	content := testContent(50, 128<<10)
	buildTest(t, l, "a:1", content, small())
	r := openRegistry(t, imagetest.Registry(t, imagetest.RegistryOptions{})+"/a")
	copyTest(t, openTest(t, l, "a:1"), r, "1")
	im := openTest(t, r, "1")
	if p, err := Promote(ctx, im, r, "stable"); err != nil || p.Before != nil {
		t.Fatalf("%+v, %v", p, err)
	}
	if after := openTest(t, r, "stable"); after.Manifest().Digest != im.Manifest().Digest || !bytes.Equal(readAll(t, after), content) {
		t.Error("it means something else")
	}
	if _, err := Remove(ctx, r, "1", RemoveOptions{Leases: []Lease{leaseOf(t, im, "")}}); !errors.Is(err, ErrLeased) {
		t.Errorf("%v", err)
	}
	if _, err := Remove(ctx, r, "1", RemoveOptions{}); err != nil {
		t.Error(err)
	}
}
