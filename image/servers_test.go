package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"coppice/image/imagetest"
)

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func openRegistry(t *testing.T, repository string) *Registry {
	t.Helper()
	r, err := OpenRegistry(repository, SourceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func copyTest(t *testing.T, im *Image, dst Target, tag string) CopyReport {
	t.Helper()
	r, err := Copy(context.Background(), im, dst, tag, CopyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestNginx(t *testing.T) {
	l := testLayout(t)
	content := testContent(12, 2<<20)
	buildTest(t, l, "debian:12", content, small())
	ref, err := ParseRef("http://" + imagetest.Nginx(t, "root "+filepath.Dir(l.dir)+";") + "/images:debian:12")
	if err != nil {
		t.Fatal(err)
	}
	im, src, err := OpenRef(context.Background(), ref, SourceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	defer im.Close()
	if !bytes.Equal(readAll(t, im), content) {
		t.Error("other content")
	}
	other := testLayout(t)
	copyTest(t, im, other, "debian:copy")
	checkBuilt(t, other, "debian:copy", content)
}

// A cache of nginx in front of a registry, which keeps slices of blobs, answers what the registry would.
func TestRegistryBehindACache(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	content := testContent(14, 2<<20)
	l := testLayout(t)
	buildTest(t, l, "debian:1", content, small())
	origin := imagetest.Registry(t, imagetest.RegistryOptions{})
	copyTest(t, openTest(t, l, "debian:1"), openRegistry(t, origin+"/debian"), "1")
	front := imagetest.Nginx(t, "slice 64k; proxy_cache blobs; proxy_cache_key $uri$slice_range; proxy_set_header Range $slice_range; "+
		"proxy_set_header Host $http_host; proxy_http_version 1.1; proxy_cache_valid 200 206 1h; proxy_pass http://"+origin+";")
	for range 2 { // cold, and then warm
		if !bytes.Equal(readAll(t, openTest(t, openRegistry(t, front+"/debian"), "1")), content) {
			t.Error("other content")
		}
	}
}

const (
	testUser, testPassword = "ann", "open sesame"
	testHtpasswd           = "ann:$2b$04$2O6mWkqoynC4QkSnA8.ZDu3qhnpIwDRQ61As70NBNaww9vlo7hVYK\n"
)

// dockerConfig makes a configuration of docker with a password for a registry.
func dockerConfig(t *testing.T, addr, password string) {
	t.Helper()
	dir := t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte(testUser + ":" + password))
	writeFile(t, filepath.Join(dir, "config.json"), fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, addr, auth))
	t.Setenv("DOCKER_CONFIG", dir)
}

// An image goes to a registry; skopeo carries it to a directory and to a second registry, with a password; it is the same
// in all places.
func TestRegistries(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	ctx := context.Background()
	v1 := testContent(13, 2<<20)
	l := testLayout(t)
	buildTest(t, l, "debian:1", v1, small())
	first, second := imagetest.Registry(t, imagetest.RegistryOptions{}), imagetest.Registry(t, imagetest.RegistryOptions{Htpasswd: testHtpasswd})

	a := openRegistry(t, first+"/os/debian")
	r := copyTest(t, openTest(t, l, "debian:1"), a, "1")
	im := openTest(t, a, "1")
	if !bytes.Equal(readAll(t, im), v1) || r.SharedBytes != 0 || r.ContentRoot != im.ContentRoot() {
		t.Errorf("other content, or %+v", r)
	}
	// A second version shares what it can, and what is there is not sent again.
	v2 := bytes.Clone(v1)
	v2[1<<20]++
	buildTest(t, l, "debian:2", v2, BuildOptions{Base: im, packTarget: 64 << 10})
	v2Image := checkBuilt(t, l, "debian:2", v2)
	if r := copyTest(t, v2Image, a, "2"); r.CopiedBytes > r.SharedBytes/4 {
		t.Errorf("%+v", r)
	}
	if r := copyTest(t, v2Image, a, "again"); r.CopiedBytes != 0 {
		t.Errorf("%+v", r)
	}
	if tags, err := a.Tags(ctx); err != nil || !slices.Equal(tags, []string{"1", "2", "again"}) {
		t.Errorf("%v, %v", tags, err)
	}

	// What is damaged does not get there.
	bad := newMemStore()
	p := goodParts()
	p.store(t, bad, "bad", nil)
	bad.blobs[string(descriptor("", p.packs[0]).Digest)] = bytes.ToUpper(p.packs[0])
	if _, err := Copy(ctx, openTest(t, bad, "bad"), a, "bad", CopyOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}

	// skopeo, and passwords.
	dir := filepath.Join(t.TempDir(), "copy")
	imagetest.Skopeo(t, "--src-tls-verify=false", "docker://"+first+"/os/debian:2", "oci:"+dir+":debian:2")
	copied, err := OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	checkBuilt(t, copied, "debian:2", v2)
	imagetest.Skopeo(t, "--dest-tls-verify=false", "--dest-creds", testUser+":"+testPassword, "oci:"+dir+":debian:2", "docker://"+second+"/mirror:two")

	dockerConfig(t, second, testPassword)
	b := openRegistry(t, second+"/mirror")
	im = openTest(t, b, "two")
	if !bytes.Equal(readAll(t, im), v2) || im.ContentRoot() != v2Image.ContentRoot() || im.Manifest().Digest != v2Image.Manifest().Digest {
		t.Error("other content, or another manifest, at the end of the way")
	}
	copyTest(t, openTest(t, l, "debian:1"), b, "one")
	if err := b.Remove(ctx, "one"); err != nil {
		t.Error(err)
	}
	if tags, err := b.Tags(ctx); err != nil || !slices.Equal(tags, []string{"two"}) {
		t.Errorf("%v, %v", tags, err)
	}
	for _, name := range []string{"one", Digest{7}.String()} {
		if _, err := Open(ctx, b, name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := b.Remove(ctx, "one"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}

	// Without, and with a wrong one.
	for _, password := range []string{"", "open barley"} {
		if t.Setenv("DOCKER_CONFIG", t.TempDir()); password != "" {
			dockerConfig(t, second, password)
		}
		c := openRegistry(t, second+"/mirror")
		_, readErr := Open(ctx, c, "two")
		_, writeErr := Copy(ctx, openTest(t, l, "debian:1"), c, "new", CopyOptions{})
		_, listErr := c.Tags(ctx)
		for _, err := range []error{readErr, writeErr, listErr} {
			if !errors.Is(err, ErrRefused) {
				t.Errorf("password %q: %v", password, err)
			}
		}
	}
}
