package vmtests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// cpioEntry is one member as an independent reader of the newc format sees it.
type cpioEntry struct {
	mode    uint32
	content string
}

func readArchive(t *testing.T, data string) map[string]cpioEntry {
	t.Helper()
	entries := make(map[string]cpioEntry)
	pos := 0
	align := func() { pos = (pos + 3) &^ 3 }
	for {
		var magic, ino, mode, uid, gid, links, mtime, size, a, b, c, d, nameLen, check uint32
		_, err := fmt.Sscanf(data[pos:pos+110], "%6x%8x%8x%8x%8x%8x%8x%8x%8x%8x%8x%8x%8x%8x",
			&magic, &ino, &mode, &uid, &gid, &links, &mtime, &size, &a, &b, &c, &d, &nameLen, &check)
		if err != nil || magic != 0x070701 {
			t.Fatalf("header at %d: %v, %q", pos, err, data[pos:pos+110])
		}
		name := data[pos+110 : pos+110+int(nameLen)-1]
		pos += 110 + int(nameLen)
		align()
		if name == "TRAILER!!!" {
			return entries
		}
		if _, twice := entries[name]; twice {
			t.Errorf("%s is in the archive twice", name)
		}
		entries[name] = cpioEntry{mode, data[pos : pos+int(size)]}
		pos += int(size)
		align()
	}
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	err := errors.Join(
		os.MkdirAll(filepath.Join(tree, "sub"), 0o755),
		os.WriteFile(filepath.Join(tree, "sub", "program"), []byte("12345"), 0o755),
		os.Symlink("sub/program", filepath.Join(tree, "link")),
	)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "archive")
	err = writeArchive(archive, func(w *cpioWriter) error {
		return errors.Join(
			w.bytes("a/b/empty", 0o600, nil),
			w.bytes("a/b/odd", 0o644, []byte("odd")),
			w.addTree(tree, "t"),
			w.addTree(filepath.Join(tree, "sub", "program"), "single"),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	if len(data)%512 != 0 {
		t.Errorf("archive of %d bytes is not padded to 512: another cannot follow it", len(data))
	}
	want := map[string]cpioEntry{
		"a": {0o040755, ""}, "a/b": {0o040755, ""},
		"a/b/empty": {0o100600, ""}, "a/b/odd": {0o100644, "odd"},
		"t": {0o040755, ""}, "t/sub": {0o040755, ""}, "t/sub/program": {0o100755, "12345"},
		"t/link": {0o120777, "sub/program"}, "single": {0o100755, "12345"},
	}
	got := readArchive(t, string(data))
	for name, entry := range want {
		if got[name] != entry {
			t.Errorf("%s: %o %q, want %o %q", name, got[name].mode, got[name].content, entry.mode, entry.content)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d members, want %d: %v", len(got), len(want), got)
	}
}

func TestArchiveNoticesChangedFile(t *testing.T) {
	err := writeArchive(filepath.Join(t.TempDir(), "archive"), func(w *cpioWriter) error {
		return w.stream("short", 0o644, 10, strings.NewReader("four"))
	})
	if err == nil || !strings.Contains(err.Error(), "short") {
		t.Errorf("error %v, want one that names the file", err)
	}
}
