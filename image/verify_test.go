package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestVerify(t *testing.T) {
	content := testContent(20, 10<<20+5)
	clear(content[5<<20 : 10<<20]) // a whole page of zeros
	s := newMemStore()
	p := cut(content, 4096, 50)
	p.store(t, s, "v1", nil)
	verify := func() VerifyReport {
		t.Helper()
		done := int64(0)
		r, err := Verify(context.Background(), openTest(t, s, "v1"), func(n, total int64) { done = n })
		if err != nil || r.SizeBytes != int64(len(content)) || done > r.SizeBytes {
			t.Fatalf("%+v, %v, %d done", r, err, done)
		}
		return r
	}
	if r := verify(); len(r.Problems) != 0 || r.BadBytes != 0 || r.DataBytes < 2<<20 || r.DataBytes > 6<<20 {
		t.Errorf("%+v", r)
	}
	// A byte in each of two packs, and then a page.
	m, err := decodeManifest(s.tags["v1"])
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 3} {
		b := s.blobs[string(m.Packs[n].Digest)]
		b[len(b)-1] ^= 1
	}
	if r := verify(); len(r.Problems) != 2 || r.BadBytes != 2*4096 || !strings.Contains(r.Problems[0], "chunk") {
		t.Errorf("%+v", r)
	}
	s.blobs[string(m.Table.Digest)][500] ^= 1 // in the first page
	if r := verify(); r.BadBytes != 1024*4096 || !strings.Contains(r.Problems[0], "table page") {
		t.Errorf("%+v", r)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Verify(ctx, openTest(t, s, "v1"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestList(t *testing.T) {
	s := newMemStore()
	cut([]byte("one"), 4096, 1).store(t, s, "a:1", nil)
	cut([]byte("two"), 4096, 1).store(t, s, "a:2", nil)
	s.tags["b:1"] = []byte(`{"schemaVersion":2,"artifactType":"application/x"}`)
	s.tags["b:2"] = []byte(`{"schemaVersion":2,"artifactType":"application/vnd.coppice.image.v7"}`)
	images, others, err := List(context.Background(), s)
	if err != nil || others != 2 || len(images) != 2 || images[1].Name != "a:2" || images[1].SizeBytes != 3 || images[1].Packs != 1 {
		t.Errorf("%+v, %d, %v", images, others, err)
	}
}

func TestQcow2(t *testing.T) {
	dir := t.TempDir()
	content := testContent(21, 1<<20)
	raw := writeFile(t, filepath.Join(dir, "raw"), string(content))
	qemu := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
		}
	}
	qemu("convert", "-O", "qcow2", raw, dir+"/disk.qcow2")
	scratch := t.TempDir()
	f, err := OpenSource(context.Background(), dir+"/disk.qcow2", scratch, false)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, f.Size())
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("other content, %v", err)
	}
	if left, _ := os.ReadDir(scratch); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	f.Close()
	qemu("create", "-f", "qcow2", "-b", raw, "-F", "raw", dir+"/top.qcow2")
	qemu("create", "-f", "qcow2", "-o", "data_file="+dir+"/data", dir+"/data.qcow2", "1M")
	qemu("convert", "-O", "vmdk", raw, dir+"/disk.vmdk")
	writeFile(t, dir+"/empty", "")
	writeFile(t, dir+"/bad.qcow2", "QFI\xfb"+strings.Repeat("\x00", 200))
	for _, name := range []string{"top.qcow2", "data.qcow2", "disk.vmdk", "empty", ".", "nowhere", "bad.qcow2"} {
		if f, err := OpenSource(context.Background(), filepath.Join(dir, name), scratch, false); err == nil {
			f.Close()
			t.Errorf("%s is taken", name)
		}
	}
	if left, _ := os.ReadDir(scratch); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	f, err = OpenSource(context.Background(), dir+"/disk.vmdk", scratch, true)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
