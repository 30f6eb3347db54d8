package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// golden unpacks an image of testdata.
func golden(t testing.TB, name string) []byte {
	t.Helper()
	packed, err := os.ReadFile(filepath.Join("testdata", name+".img.zst"))
	if err != nil {
		t.Fatal(err)
	}
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	image, err := decoder.DecodeAll(packed, nil)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// Journals that a kernel left read as e2fsck replays them.
func TestReplayOfKernelsJournals(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]Journal{
		"journal-ordered":               {Replayed: true, Transactions: 3},
		"journal-data":                  {Replayed: true, Transactions: 4},
		"journal-without-checksums":     {Replayed: true, Transactions: 4},
		"journal-with-commit-checksums": {Replayed: true, Transactions: 4},
		"journal-for-fast-commits":      {Replayed: true, Transactions: 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fs, err := Open(bytes.NewReader(golden(t, name)), 8<<20)
			if err != nil {
				t.Fatal(err)
			}
			got := fs.Info().Journal
			// Blocks that the kernel had not yet written to their places.
			image, block, newer := golden(t, name), make([]byte, 1024), 0
			for number := range fs.overlay {
				if err := fs.readBlocks(number, block); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(block, image[number*1024:(number+1)*1024]) {
					newer++
				}
			}
			if newer < 15 {
				t.Errorf("the journal replaces %d blocks, %d with other bytes", got.Blocks, newer)
			}
			if got.Blocks = 0; got != want {
				t.Errorf("journal %+v, want %+v", got, want)
			}
			path := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(path, image, 0o600); err != nil {
				t.Fatal(err)
			}
			tool(t, nil, "e2fsck", "-y", "-E", "journal_only", path)
			compareReplayed(t, fs, openImage(t, path))
			paths := map[string]*Inode{}
			for _, e := range walk(t, fs) {
				paths[e.path] = e.inode
			}
			if len(paths) != 64 || paths["/dir/file2"] != nil || paths["/moved"] == nil || paths["/dir/file6"].Size != 0 || paths["/gone"] != nil {
				t.Errorf("%d paths", len(paths))
			}
			content, err := fs.Content(t.Context(), paths["/magic"])
			if err != nil {
				t.Fatal(err)
			}
			// Where data is not journalled, the file had no blocks yet.
			known := ""
			if want.Transactions == 4 {
				known = "\xc0\x3b\x39\x98magic at the beginning of a block"
			}
			if text, err := io.ReadAll(io.NewSectionReader(content, 0, content.Size())); err != nil || string(text) != known {
				t.Errorf("content %q: %v", text, err)
			}
		})
	}
}

// compareReplayed holds each block, and all that is read, of a file system with its journal replayed in memory against one where e2fsck replayed it.
func compareReplayed(t *testing.T, fs, want *FS) {
	t.Helper()
	if want.Info().Journal.Replayed {
		t.Fatal("e2fsck left the journal as it was")
	}
	inJournal := map[uint64]bool{}
	inode, err := fs.Inode(t.Context(), fs.super.journalIno)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range extentsOf(t, fs, inode) {
		for n := range e.Length {
			inJournal[uint64(e.Physical+n)] = true
		}
	}
	bs := fs.super.blockSize
	a, b := make([]byte, bs), make([]byte, bs)
	compared := 0
	for block := range fs.super.blocks {
		if block == fs.super.superBlock() || inJournal[block] {
			continue
		}
		if err := errors.Join(fs.readBlocks(block, a), want.readBlocks(block, b)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("block %d differs from what e2fsck brings", block)
		}
		compared++
	}
	if compared < int(fs.super.blocks)/2 {
		t.Errorf("%d blocks were compared of %d", compared, fs.super.blocks)
	}
	list := func(fs *FS) []string {
		var all []string
		for _, e := range walk(t, fs) {
			all = append(all, fmt.Sprintf("%q %+v", e.path, describe(t, fs, e.inode)))
		}
		return all
	}
	if got, want := list(fs), list(want); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestFastCommitsAreRefused(t *testing.T) {
	t.Parallel()
	_, err := Open(bytes.NewReader(golden(t, "journal-with-fast-commits")), 8<<20)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "fast commits") {
		t.Fatalf("error %v", err)
	}
}

// Journals that debugfs writes: every format of checksum and number, revocations, transactions that were not completed.
func TestReplayOfWrittenJournals(t *testing.T) {
	t.Parallel()
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "file"), bytes.Repeat([]byte("old "), 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(t.TempDir(), "new")
	content := bytes.Repeat([]byte("new "), 8<<10)
	copy(content[1024:], "\xc0\x3b\x39\x98")
	if err := os.WriteFile(fresh, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ mke2fs, open string }{
		"none-32":    {"^64bit,^metadata_csum", "jo"},
		"none-64":    {"64bit,^metadata_csum", "jo"},
		"csum-v2-32": {"^64bit,metadata_csum", "jo -c -v 2"},
		"csum-v2-64": {"64bit,metadata_csum", "jo -c -v 2"},
		"csum-v3-32": {"^64bit,metadata_csum", "jo -c -v 3"},
		"csum-v3-64": {"64bit,metadata_csum", "jo -c -v 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "image")
			tool(t, nil, "mke2fs", "-q", "-t", "ext4", "-b", "1024", "-J", "size=1", "-O", test.mke2fs, "-d", tree, path, "8M")
			var first int64
			before := openImage(t, path)
			for _, e := range walk(t, before) {
				first = extentsOf(t, before, e.inode)[0].Physical
			}
			blocks := func(from, count int64) string {
				var list []string
				for n := range count {
					list = append(list, fmt.Sprint(first+from+n))
				}
				return strings.Join(list, ",")
			}
			// Of blocks 0 to 9 the last writer wins; 20 to 29 are revoked after they were written, 25 to 27 are written again; 40 to 49 were never committed.
			debugfs(t, path, true, strings.Join([]string{
				test.open,
				fmt.Sprintf("jw -b %s,%s %s", blocks(20, 10), blocks(0, 10), fresh),
				fmt.Sprintf("jw -r %s", blocks(20, 10)),
				fmt.Sprintf("jw -b %s %s", blocks(25, 3), fresh),
				fmt.Sprintf("jw -b %s %s", blocks(5, 10), fresh),
				fmt.Sprintf("jw -c -b %s %s", blocks(40, 10), fresh),
				"jc",
			}, "\n"))
			fs := openImage(t, path)
			if j := fs.Info().Journal; !j.Replayed || j.Transactions != 4 || j.Blocks != 18 {
				t.Errorf("journal %+v", j)
			}
			tool(t, nil, "e2fsck", "-y", "-E", "journal_only", path)
			compareReplayed(t, fs, openImage(t, path))
		})
	}
}

// A wrong byte anywhere in the log of a journal with checksums gives what a shorter log gives, or an error; never other blocks.
func TestWrongByteInJournal(t *testing.T) {
	t.Parallel()
	image := golden(t, "journal-ordered")
	fs, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	inode, err := fs.Inode(t.Context(), fs.super.journalIno)
	if err != nil {
		t.Fatal(err)
	}
	extents := slices.DeleteFunc(extentsOf(t, fs, inode), func(e Extent) bool { return e.Kind != ExtentData })
	refused, shorter, same := 0, 0, 0
	for offset := int64(0); offset < 76*1024; offset += 31 {
		in := extents[slices.IndexFunc(extents, func(e Extent) bool { return e.Logical+e.Length > offset/1024 })]
		at := (in.Physical-in.Logical)*1024 + offset
		image[at] ^= 0x40
		got, err := Open(bytes.NewReader(image), int64(len(image)))
		switch {
		case err != nil:
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Errorf("byte %d of the journal: %v", offset, err)
			}
			refused++
		case got.journal.Transactions < fs.journal.Transactions:
			shorter++
		case got.journal == fs.journal && sameOverlay(got, fs):
			same++ // the superblock's statistics, what is behind the log, and blocks that were revoked
		default:
			t.Errorf("byte %d of the journal: %+v instead of %+v", offset, got.journal, fs.journal)
		}
		image[at] ^= 0x40
	}
	t.Logf("%d refused, %d with a shorter log, %d the same", refused, shorter, same)
	if refused < 100 || shorter < 50 || same > 200 {
		t.Errorf("%d refused, %d with a shorter log, %d the same", refused, shorter, same)
	}
}

func sameOverlay(a, b *FS) bool {
	if len(a.overlay) != len(b.overlay) {
		return false
	}
	for block, from := range a.overlay {
		if b.overlay[block] != from {
			return false
		}
	}
	return true
}
