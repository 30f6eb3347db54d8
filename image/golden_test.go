package image

import (
	"bytes"
	"context"
	"flag"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"aead.dev/minisign"
)

// A golden file of a released version is never written again.
var writeGolden = flag.Bool("write-golden", false, "write testdata anew: only before version 1 is released")

const (
	goldenDir = "testdata/format-v1"
	// The content root of the second version, which follows from the content alone.
	goldenRoot = "sha256:324273c47439a4610a6f125fb0eb9483648c1906fbca001e972e2692238abcc3"
)

// goldenContent has data at both ends of 6 MB of zeros, so that the table has two levels: text, noise, something twice, and a short last chunk.
func goldenContent(version byte) []byte {
	p := make([]byte, 6_000_001)
	copy(p, bytes.Repeat([]byte("coppice "), 3000))
	rng := rand.New(rand.NewPCG(1, 2))
	for i := 30_000; i < 40_000; i++ {
		p[i] = byte(rng.Uint32())
	}
	copy(p[4096*1000:], p[:4096])
	copy(p[4096*1100:], p[4096*7:4096*9])
	p[len(p)-1] = version
	return p
}

func goldenOptions() BuildOptions {
	return BuildOptions{ChunkSize: 4096, packTarget: 4 << 10, Labels: map[string]string{"os": "debian"}, Created: time.Unix(1700000000, 0).UTC()}
}

// Images of version 1 are read, whatever later versions write.
func TestGoldenImage(t *testing.T) {
	if *writeGolden {
		if err := os.RemoveAll(goldenDir); err != nil {
			t.Fatal(err)
		}
		l, err := CreateLayout(goldenDir)
		if err != nil {
			t.Fatal(err)
		}
		buildTest(t, l, "golden:1", goldenContent(1), goldenOptions())
		o := goldenOptions()
		o.Base, o.ChunkSize = openTest(t, l, "golden:1"), 0
		buildTest(t, l, "golden:2", goldenContent(2), o)
		if err := os.RemoveAll(l.path(workDir)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := OpenLayout(goldenDir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for version, tag := range []string{"golden:1", "golden:2"} {
		im := openTest(t, l, tag)
		if !bytes.Equal(readAll(t, im), goldenContent(byte(version+1))) {
			t.Errorf("%s has other content", tag)
		}
	}
	im := openTest(t, l, "golden:2")
	if im.ContentRoot().String() != goldenRoot {
		t.Errorf("content root %s, not %s", im.ContentRoot(), goldenRoot)
	}
	c := im.Config()
	if c.Labels["os"] != "debian" || !c.Created.Equal(time.Unix(1700000000, 0)) || c.Parent != openTest(t, l, "golden:1").ContentRoot() {
		t.Errorf("config %+v", c)
	}
	if len(im.Packs()) < 3 || im.g.levels() != 2 {
		t.Errorf("%d packs, %d levels", len(im.Packs()), im.g.levels())
	}
	if _, zeros, err := im.Chunk(context.Background(), 500); !zeros || err != nil {
		t.Errorf("chunk 500: %v, %v", zeros, err)
	}
}

const (
	goldenIndexDir  = "testdata/index-v1"
	goldenIndexRoot = "sha256:881a53cb1e9ca64982f5c333a55c56275a18cc72c32f335350f9eeded80abb99"
)

// Indexes of version 1 are read, whatever later versions write.
func TestGoldenIndex(t *testing.T) {
	public, key := testKey(t, 1)
	content := goldenContent(3)[:200_001]
	if *writeGolden {
		if err := os.RemoveAll(goldenIndexDir); err != nil {
			t.Fatal(err)
		}
		l, err := CreateLayout(goldenIndexDir)
		if err != nil {
			t.Fatal(err)
		}
		buildTest(t, l, "golden:1", goldenContent(1), goldenOptions())
		im := openTest(t, l, "golden:1")
		file := IndexFile{im.ContentRoot(), bytes.NewReader(content), int64(len(content))}
		if _, err := AttachIndex(context.Background(), im, l, file, IndexOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := SignIndex(context.Background(), im, l, key); err != nil {
			t.Fatal(err)
		}
		if _, err := l.GC(context.Background(), GCOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(l.path(workDir)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := OpenLayout(goldenIndexDir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	checkIndex(t, l, "golden:1", content)
	x := openIndexTest(t, l, "golden:1")
	if err := x.SignedBy([]minisign.PublicKey{public}); err != nil {
		t.Error(err)
	}
	of := openTest(t, l, "golden:1")
	if s := x.Statement; s.Index.String() != goldenIndexRoot || s.Index != naiveRoot(content, 4096) || s.Image != of.ContentRoot() || s.ImageBytes != of.Size() {
		t.Errorf("%+v", s)
	}
}
