package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"pgregory.net/rapid"

	"coppice/idxshare"
	"coppice/image"
)

// cmdIndexed is "indexed REF FILE": it writes the file of an index of an image, with files that nobody has made, some of which have names that nobody should give.
func cmdIndexed(ts *testscript.TestScript, _ bool, args []string) {
	ref, err := image.ParseRef(strings.Replace(args[0], "oci:", "oci:"+ts.MkAbs(".")+"/", 1))
	ts.Check(err)
	im, src, err := image.OpenRef(context.Background(), ref, image.SourceOptions{})
	ts.Check(err)
	w, err := idxshare.Create(ts.MkAbs(args[1]), idxshare.Header{Source: im.ContentRoot().String(), Size: im.Size(), Digests: true})
	ts.Check(err)
	defer w.Abort()
	half := im.Size() / 2
	ts.Check(w.AddVolume(idxshare.Volume{ID: 1, Partition: 1, Start: 4096, Length: half - 4096, Type: "ext4", Label: "root", BlockSize: 4096, Mapped: true}))
	ts.Check(w.AddVolume(idxshare.Volume{ID: 2, Partition: 2, Start: half, Length: half, Type: "xfs", BlockSize: 4096}))
	for volume := 1; volume <= 2; volume++ {
		ts.Check(w.AddFile(&idxshare.File{Volume: volume, Inode: 2, Mode: idxshare.ModeDirectory | 0o755, Links: 3}))
		ts.Check(w.AddFile(&idxshare.File{Volume: volume, Inode: 11, Mode: idxshare.ModeDirectory | 0o755, Links: 2}))
		ts.Check(w.AddName(idxshare.Name{Volume: volume, Parent: 2, Name: []byte("etc"), Inode: 11}))
	}
	for i, name := range []string{"passwd", "Passwd.old", "two\nlines", "not\xffutf8", "it's", "link"} {
		f := idxshare.File{Volume: 1, Inode: uint64(12 + i), Mode: idxshare.ModeRegular | 0o644, UID: 1000, GID: 8, Size: int64(i) * 1000, Links: 1, Mtime: 1_700_000_000e9, Digest: bytes.Repeat([]byte{byte(i)}, 32)}
		if name == "link" {
			f.Mode, f.Target, f.Digest = idxshare.ModeSymlink|0o777, []byte("passwd"), nil
		}
		ts.Check(w.AddFile(&f))
		ts.Check(w.AddName(idxshare.Name{Volume: 1, Parent: 11, Name: []byte(name), Inode: f.Inode}))
		if i > 0 && f.Target == nil {
			ts.Check(w.AddExtent(idxshare.Extent{Volume: 1, Inode: f.Inode, Logical: 1, Physical: int64(10 * i), Length: 2}))
		}
	}
	ts.Check(w.AddName(idxshare.Name{Volume: 1, Parent: 2, Name: []byte("second-name"), Inode: 13}))
	ts.Check(w.AddFile(&idxshare.File{Volume: 2, Inode: 12, Mode: idxshare.ModeRegular | 0o600, Size: 5, Links: 1, Digest: bytes.Repeat([]byte{0xee}, 32)}))
	ts.Check(w.AddName(idxshare.Name{Volume: 2, Parent: 11, Name: []byte("passwd"), Inode: 12}))
	ts.Check(w.Finish())
	ts.Check(errors.Join(im.Close(), src.Close()))
}

// What is quoted, a shell reads back as it was, and nothing of it moves the cursor.
func TestQuoteForShell(t *testing.T) {
	for in, want := range map[string]string{
		"": "''", "/etc/passwd": "/etc/passwd", "a b": "'a b'", "a\nb": `$'a\nb'`, "it's": `$'it\'s'`, "\xff": `$'\377'`, "\x1b[2J": `$'\033[2J'`, `a\b`: `'a\b'`, "grün": "grün", "$HOME": "'$HOME'",
		"~": "'~'", "\\'": `$'\\\''`, "\u202e": `$'\342\200\256'`,
	} {
		if got := quoteForShell(in); got != want {
			t.Errorf("%q became %s, not %s", in, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		in := string(rapid.SliceOfN(rapid.ByteRange(1, 255), 0, 40).Draw(t, "name"))
		quoted := quoteForShell(in)
		if strings.ContainsFunc(quoted, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) {
			t.Fatalf("%q became %q", in, quoted)
		}
	})
	var script, want bytes.Buffer
	for i := range 256 {
		name := string([]byte{'a', byte(max(i, 1)), '\'', byte(max(i, 1)), 'b'})
		script.WriteString("printf '%s\\0' " + quoteForShell(name) + "\n")
		want.WriteString(name + "\x00")
	}
	shell := exec.Command("bash", "-s")
	shell.Stdin = &script
	got, err := shell.Output()
	if err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("a shell reads %q, %v", got, err)
	}
}

// A path in JSON tells all of its bytes.
func TestPathInJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "path")
		data, err := json.Marshal(toJSONPath(in))
		if err != nil {
			t.Fatal(err)
		}
		var p jsonPath
		if err := json.Unmarshal(data, &p); err != nil {
			t.Fatal(err)
		}
		out := []byte(p.Path)
		if p.Bytes != "" {
			if out, err = base64.StdEncoding.DecodeString(p.Bytes); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(in, out) {
			t.Fatalf("%q came back as %q: %s", in, out, data)
		}
	})
}

// A line with a digest is what sha256sum prints of a file with that path.
func TestSumLine(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"plain", `back\slash`, "two\nlines", "return\r", "\xff"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		want, err := exec.Command("sha256sum", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := sumLine(fmt.Sprintf("%x", sha256.Sum256([]byte(name))), path) + "\n"; got != string(want) {
			t.Errorf("%q, and sha256sum prints %q", got, want)
		}
	}
}
