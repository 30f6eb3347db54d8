package ext4

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

var writeGolden = flag.Bool("write-golden", false, "make the small images of testdata anew")

// smallImages are the file systems that hostile ones are made from: as small as they can be with every structure in them.
var smallImages = []kind{
	{name: "small-ext4", mke2fs: []string{"-t", "ext4", "-b", "1024", "-N", "96", "-O", "^has_journal,^resize_inode,ea_inode,metadata_csum_seed"}, size: "2M"},
	{name: "small-inline", mke2fs: []string{"-t", "ext4", "-b", "1024", "-N", "96", "-O", "^has_journal,^resize_inode,inline_data"}, size: "2M"},
	{name: "small-ext2", mke2fs: []string{"-t", "ext2", "-b", "1024", "-N", "96", "-I", "128"}, size: "2M"},
	{name: "small-uninit", mke2fs: []string{"-t", "ext4", "-b", "1024", "-N", "96", "-O", "^has_journal,^resize_inode,^metadata_csum,uninit_bg,meta_bg"}, size: "2M"},
}

// TestSmallImages holds the images of testdata, which releases before this one made, against what they hold.
func TestSmallImages(t *testing.T) {
	for _, k := range smallImages {
		if *writeGolden {
			writeSmall(t, k)
		}
		image := golden(t, k.name)
		fs, err := Open(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			t.Fatal(err)
		}
		text, err := dump(t.Context(), fs)
		if err != nil {
			t.Fatalf("%s: %v", k.name, err)
		}
		for _, part := range []string{`"a name of its own 019"`, `"new\nline"`, "user.short=5", "trusted.long=900", `-> "` + strings.Repeat("t", 100), "crc e07db2ac"} {
			if !strings.Contains(text, part) {
				t.Errorf("%s lacks %q:\n%s", k.name, part, text)
			}
		}
		if k.name == "small-ext4" && (!strings.Contains(text, "{tree") || !strings.Contains(text, "{xattr") || !strings.Contains(text, "trusted.inode=1024")) {
			t.Errorf("%s has no block of extents or of attributes, or no attribute with an inode of its own:\n%s", k.name, text)
		}
	}
}

func writeSmall(t *testing.T, k kind) {
	t.Helper()
	tree := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(tree, "names"), 0o755))
	must(os.Mkdir(filepath.Join(tree, "few"), 0o755))
	for n := range 45 {
		must(os.WriteFile(filepath.Join(tree, "names", fmt.Sprintf("a name of its own %03d", n)), nil, 0o644))
	}
	must(os.WriteFile(filepath.Join(tree, "few", "new\nline"), []byte("content"), 0o644))
	must(os.Symlink(strings.Repeat("t", 100), filepath.Join(tree, "few", "long")))
	must(os.Symlink("short", filepath.Join(tree, "few", "short")))
	must(os.WriteFile(filepath.Join(tree, "inline"), bytes.Repeat([]byte("0123456789"), 11), 0o644))
	sparse, err := os.Create(filepath.Join(tree, "sparse"))
	must(err)
	defer sparse.Close()
	for n := range 12 {
		_, err := sparse.WriteAt(bytes.Repeat([]byte{byte(n + 1)}, 1024), int64(n*n)*4096)
		must(err)
	}
	value := filepath.Join(t.TempDir(), "value")
	must(os.WriteFile(value, bytes.Repeat([]byte("v"), 900), 0o644))
	k.after = "ea_set inline user.short value\nea_set -f " + value + " sparse trusted.long\n"
	if k.name == "small-ext4" {
		long := filepath.Join(t.TempDir(), "long")
		must(os.WriteFile(long, bytes.Repeat([]byte("w"), 1024), 0o644))
		k.after += "ea_set -f " + long + " few/short trusted.inode\n"
	}
	image, err := os.ReadFile(makeImage(t, k, tree))
	must(err)
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	must(err)
	must(os.WriteFile(filepath.Join("testdata", k.name+".img.zst"), encoder.EncodeAll(image, nil), 0o644))
}

// dump tells everything that can be read of a file system, within bounds that a hostile one does not move.
func dump(ctx context.Context, fs *FS) (string, error) {
	var b strings.Builder
	err := fs.Scan(ctx, func(i *Inode) error {
		fmt.Fprintf(&b, "%d %o %d:%d size %d links %d blocks %d rdev %d times %v %v %v %v flags %#x generation %d %s\n",
			i.Number, i.Mode, i.UID, i.GID, i.Size, i.Links, i.Blocks, i.Rdev, i.Atime, i.Mtime, i.Ctime, i.Crtime, i.Flags, i.Generation, fs.Internal(i))
		if err := fs.Extents(ctx, i, func(e Extent) error { fmt.Fprintf(&b, " %v", e); return nil }); err != nil {
			return err
		}
		err := fs.XAttrs(ctx, i, func(name string, value []byte) error { fmt.Fprintf(&b, " %s=%d", name, len(value)); return nil })
		if err != nil {
			return err
		}
		switch i.Type() {
		case ModeDir:
			err = fs.ReadDir(ctx, i, func(d DirEntry) error { fmt.Fprintf(&b, " %q:%d", d.Name, d.Inode); return nil })
		case ModeSymlink:
			var target []byte
			target, err = fs.Readlink(ctx, i)
			fmt.Fprintf(&b, " -> %q", target)
		case ModeRegular:
			err = dumpContent(ctx, &b, fs, i)
		}
		if errors.Is(err, ErrEncrypted) {
			err = nil
		}
		fmt.Fprintln(&b)
		return err
	})
	return b.String(), err
}

func dumpContent(ctx context.Context, b *strings.Builder, fs *FS, i *Inode) error {
	content, err := fs.Content(ctx, i)
	if err != nil {
		return err
	}
	sum := uint32(0)
	buffer := make([]byte, 64<<10)
	for offset := int64(0); offset < 1<<20; offset += int64(len(buffer)) {
		n, err := content.ReadAt(buffer, offset)
		sum = crc32c(sum, buffer[:n])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	fmt.Fprintf(b, " crc %08x", sum)
	return nil
}

// judged refuses errors of no kind that callers know.
func judged(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrUnsupported) || errors.Is(err, ErrNotExt4)
}

// With checksums, no wrong byte of what describes files changes what is told of them.
func TestWrongByteInMetadata(t *testing.T) {
	t.Parallel()
	image := golden(t, "small-ext4")
	fs, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	want, err := dump(t.Context(), fs)
	if err != nil {
		t.Fatal(err)
	}
	info := fs.Info()
	var blocks []int64
	for block := range int64(fs.super.blocks) {
		if kind := fs.Place(uint64(block)).Kind; kind == PlaceInodeTable || block <= 2 {
			blocks = append(blocks, block)
		}
	}
	for _, i := range scanAll(t, fs) {
		for _, e := range extentsOf(t, fs, i) {
			for n := range e.Length {
				if e.Kind != ExtentData || i.Type() == ModeDir {
					blocks = append(blocks, e.Physical+n)
				}
			}
		}
	}
	refused, same, step := 0, 0, 19
	if testing.Short() {
		step = 97
	}
	for _, block := range blocks {
		for at := block * 1024; at < (block+1)*1024; at += int64(step) {
			image[at] ^= 0x10
			text := ""
			got, err := Open(bytes.NewReader(image), int64(len(image)))
			if err == nil {
				text, err = dump(t.Context(), got)
			}
			switch {
			case err != nil && !judged(err):
				t.Errorf("byte %d of block %d: %v", at%1024, block, err)
			case err != nil:
				refused++
			case text != want:
				t.Errorf("byte %d of block %d changes what is told, and nothing notices", at%1024, block)
			default:
				same++
				if info.String() != got.Info().String() {
					t.Errorf("byte %d of block %d changes what is told of the file system, and nothing notices", at%1024, block)
				}
			}
			image[at] ^= 0x10
		}
	}
	t.Logf("%d blocks: %d refused, %d the same", len(blocks), refused, same)
	// Bytes that may be wrong are inodes that are not in use, the boot block, and what is between blocks of attributes.
	if refused < 2*same {
		t.Errorf("%d blocks: %d refused, %d the same", len(blocks), refused, same)
	}
}

// damage changes an image without checksums, or one of which they are not compared, and returns what reading it says.
func damage(t *testing.T, name string, change func(fs *FS, image []byte)) error {
	t.Helper()
	image := golden(t, name)
	fs, err := open(bytes.NewReader(image), int64(len(image)), true)
	if err != nil {
		t.Fatal(err)
	}
	change(fs, image)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	fs, err = open(bytes.NewReader(image), int64(len(image)), true)
	if err == nil {
		_, err = dump(ctx, fs)
	}
	return err
}

// Each kind of damage is told by structure and place.
func TestDamageIsTold(t *testing.T) {
	t.Parallel()
	// find returns the only inode that want holds for, and its bytes.
	find := func(fs *FS, image []byte, want func(*Inode) bool) (*Inode, []byte) {
		t.Helper()
		for _, i := range scanAll(t, fs) {
			if want(i) {
				s := fs.super
				at := int(fs.groups[(i.Number-1)/s.inodesPerGroup].inodeTable)*s.blockSize + int((i.Number-1)%s.inodesPerGroup)*s.inodeSize
				return i, image[at : at+s.inodeSize]
			}
		}
		t.Fatal("no such inode")
		return nil, nil
	}
	sparse := func(i *Inode) bool { return i.Size == 121*4096+1024 }
	tree := func(fs *FS, i *Inode, image []byte) (block int64, b []byte) {
		for _, e := range extentsOf(t, fs, i) {
			if e.Kind == ExtentTree {
				return e.Physical, image[e.Physical*1024 : (e.Physical+1)*1024]
			}
		}
		t.Fatal("no block of a map")
		return 0, nil
	}
	directory := func(fs *FS, image []byte) []byte {
		i, _ := find(fs, image, func(i *Inode) bool { return i.Number == rootInode })
		for _, e := range extentsOf(t, fs, i) {
			if e.Kind == ExtentData {
				return image[e.Physical*1024 : (e.Physical+1)*1024]
			}
		}
		t.Fatal("no block of names")
		return nil
	}
	for name, test := range map[string]struct {
		image string
		do    func(fs *FS, image []byte)
		kind  error
		want  string
	}{
		"cyclic extent tree": {"small-ext4", func(fs *FS, image []byte) {
			i, _ := find(fs, image, sparse)
			block, b := tree(fs, i, image)
			// The block becomes a node that leads to itself, as deep as its parent says, and to itself again.
			le.PutUint16(b[2:], 2)
			le.PutUint16(b[6:], 0)
			_, raw := find(fs, image, sparse)
			le.PutUint16(raw[0x28+6:], 2)
			le.PutUint16(b[6:], 1)
			for n, logical := range []uint32{0, 100} {
				le.PutUint32(b[12+12*n:], logical)
				le.PutUint32(b[16+12*n:], uint32(block))
				le.PutUint32(b[20+12*n:], 0)
			}
		}, ErrCorrupt, "its depth is 1 where 0 belongs"},
		"extent behind the end": {"small-ext4", func(fs *FS, image []byte) {
			i, _ := find(fs, image, sparse)
			_, b := tree(fs, i, image)
			le.PutUint32(b[12+8:], 2047)
			le.PutUint16(b[12+4:], 4)
		}, ErrCorrupt, "maps to blocks 2047 to 2050, and the file system ends before 2048"},
		"extents out of order": {"small-ext4", func(fs *FS, image []byte) {
			i, _ := find(fs, image, sparse)
			_, b := tree(fs, i, image)
			le.PutUint32(b[24:], 0)
		}, ErrCorrupt, "entry 1 maps logical block 0, where one from 1"},
		"extent tree of depth 60000": {"small-ext4", func(fs *FS, image []byte) {
			_, raw := find(fs, image, sparse)
			le.PutUint16(raw[0x28+6:], 60000)
		}, ErrCorrupt, "its depth is 60000, and 5 is the most"},
		"cyclic pointers": {"small-ext2", func(fs *FS, image []byte) {
			i, raw := find(fs, image, sparse)
			block, b := tree(fs, i, image)
			le.PutUint32(raw[0x28+4*14:], uint32(block))
			for n := range 256 {
				le.PutUint32(b[4*n:], uint32(block))
			}
		}, ErrCorrupt, "it has more blocks than the file system"},
		"pointer behind the end": {"small-ext2", func(fs *FS, image []byte) {
			_, raw := find(fs, image, sparse)
			le.PutUint32(raw[0x28:], 1<<31)
		}, ErrCorrupt, "logical block 0 is mapped by block 2147483648 of 2048"},
		"entry of no bytes":      {"small-ext2", func(fs *FS, image []byte) { le.PutUint16(directory(fs, image)[12+4:], 0) }, ErrCorrupt, "byte 12: an entry of 0 bytes"},
		"entry behind its block": {"small-ext2", func(fs *FS, image []byte) { le.PutUint16(directory(fs, image)[12+4:], 1020) }, ErrCorrupt, "an entry of 1020 bytes, of 1012 that are left"},
		"name longer than entry": {"small-ext2", func(fs *FS, image []byte) { directory(fs, image)[24+6] = 200 }, ErrCorrupt, "with a name of 200"},
		"name with a slash":      {"small-ext2", func(fs *FS, image []byte) { directory(fs, image)[24+8] = '/' }, ErrCorrupt, `"/ost+found" is no name`},
		"name of no inode":       {"small-ext2", func(fs *FS, image []byte) { le.PutUint32(directory(fs, image)[24:], 97) }, ErrCorrupt, "leads to inode 97 of 96"},
		"directory with a hole": {"small-ext2", func(fs *FS, image []byte) {
			_, raw := find(fs, image, func(i *Inode) bool { return i.Number == rootInode })
			le.PutUint32(raw[0x28:], 0)
		}, ErrCorrupt, "directory inode 2 is corrupt: its block 0 has no content"},
		"directory of a terabyte": {"small-ext4", func(fs *FS, image []byte) {
			_, raw := find(fs, image, func(i *Inode) bool { return i.Number == rootInode })
			le.PutUint32(raw[4:], 0xFFFFFC00)
		}, ErrCorrupt, "its block 1 has no content"},
		"attribute without an end": {"small-inline", func(fs *FS, image []byte) {
			_, raw := find(fs, image, func(i *Inode) bool { return i.Size == 110 })
			at := bytes.Index(raw[goodOldInodeSize:], []byte{0, 0, 2, 0xEA}) + goodOldInodeSize
			raw[at+4] = 250
		}, ErrCorrupt, "a name of 250 bytes"},
		"content longer than its inode": {"small-inline", func(fs *FS, image []byte) {
			_, raw := find(fs, image, func(i *Inode) bool { return i.Size == 110 })
			le.PutUint32(raw[4:], 1<<30)
		}, ErrCorrupt, "it has 1073741824 bytes of content, of which 110 lie in it"},
		"attribute's inode is its own": {"small-ext4", func(fs *FS, image []byte) {
			i, raw := find(fs, image, func(i *Inode) bool { return i.Size == 5 && i.Type() == ModeSymlink })
			at := bytes.Index(raw[goodOldInodeSize:], []byte{0, 0, 2, 0xEA}) + goodOldInodeSize
			le.PutUint32(raw[at+8:], i.Number)
		}, ErrCorrupt, "does not hold a value of 1024 bytes"},
		"target of a gigabyte": {"small-ext4", func(fs *FS, image []byte) {
			_, raw := find(fs, image, func(i *Inode) bool { return i.Size == 100 && i.Type() == ModeSymlink })
			le.PutUint32(raw[4:], 1<<30)
		}, ErrCorrupt, "its target would have 1073741824 bytes"},
		"inode of no kind": {"small-ext2", func(fs *FS, image []byte) {
			_, raw := find(fs, image, sparse)
			le.PutUint16(raw, 0xF1FF)
		}, ErrCorrupt, "mode 0170777 is of no kind of file"},
		"table behind the end":  {"small-ext2", func(fs *FS, image []byte) { le.PutUint32(image[2048+8:], 2040) }, ErrCorrupt, "its inode table has blocks 2040"},
		"billions of inodes":    {"small-ext2", func(fs *FS, image []byte) { le.PutUint32(image[1024:], 1<<31) }, ErrCorrupt, "1 groups of 96 inodes do not make 2147483648"},
		"inodes of a group":     {"small-ext2", func(fs *FS, image []byte) { le.PutUint32(image[1024+0x28:], 1<<31) }, ErrCorrupt, "a group would have 2147483648 inodes"},
		"more than the device":  {"small-ext2", func(fs *FS, image []byte) { le.PutUint32(image[1024+4:], 1<<31) }, ErrCorrupt, "the device has room for 2048"},
		"unknown feature":       {"small-ext4", func(fs *FS, image []byte) { image[1024+0x60+3] |= 0x80 }, ErrUnsupported, "FEATURE_I31"},
		"compression":           {"small-ext4", func(fs *FS, image []byte) { image[1024+0x60] |= 1 }, ErrUnsupported, "features compression,"},
		"journal of another":    {"small-ext4", func(fs *FS, image []byte) { image[1024+0x60] |= 8 }, ErrUnsupported, "the journal of another file system"},
		"no journal to replay":  {"small-ext4", func(fs *FS, image []byte) { image[1024+0x60] |= 4 }, ErrCorrupt, "the file system has none"},
		"journal elsewhere":     {"journal-ordered", func(fs *FS, image []byte) { le.PutUint32(image[1024+0xE0:], 0) }, ErrUnsupported, "the journal lies on another device"},
		"journal of nothing":    {"journal-ordered", func(fs *FS, image []byte) { le.PutUint32(image[1024+0xE0:], 200) }, ErrCorrupt, "inode 200 is corrupt: it is no file"},
		"journal without a log": {"journal-ordered", func(fs *FS, image []byte) { be.PutUint32(image[17*1024+0x10:], 1<<30) }, ErrCorrupt, "the log has blocks 1 to 1073741824"},
		"no file system":        {"small-ext2", func(fs *FS, image []byte) { image[1024+0x38]++ }, ErrNotExt4, "magic number"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := damage(t, test.image, test.do)
			if !errors.Is(err, test.kind) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v; want %q, as %v", err, test.want, test.kind)
			}
		})
	}
}

// A device too short for a superblock, and a reader that fails, are told as such.
func TestReaderFails(t *testing.T) {
	t.Parallel()
	if _, err := Open(bytes.NewReader(make([]byte, 2047)), 2047); !errors.Is(err, ErrNotExt4) {
		t.Errorf("error %v", err)
	}
	image := golden(t, "small-ext4")
	if _, err := Open(bytes.NewReader(image[:2048]), int64(len(image))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
	fs, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("enough")
	err = fs.Scan(ctx, func(*Inode) error { return stop })
	if !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	cancel(stop)
	if _, err := dump(ctx, fs); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
}

// ScanRange finds what Scan finds, wherever it begins and ends.
func TestScanRange(t *testing.T) {
	t.Parallel()
	image := golden(t, "small-ext4")
	fs, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	all := scanAll(t, fs)
	for first := uint32(1); first <= 96; first += 5 {
		for count := uint32(0); first+count <= 97; count += 3 {
			var got, want []uint32
			if err := fs.ScanRange(t.Context(), first, count, func(i *Inode) error { got = append(got, i.Number); return nil }); err != nil {
				t.Fatal(err)
			}
			for _, i := range all {
				if i.Number >= first && i.Number < first+count {
					want = append(want, i.Number)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d inodes from %d on: %d, want %d", count, first, got, want)
			}
		}
	}
	if err := fs.ScanRange(t.Context(), 90, 8, func(*Inode) error { return nil }); !errors.Is(err, ErrCorrupt) {
		t.Errorf("inodes that are not there: %v", err)
	}
}

// patchReader is an image with some bytes changed.
type patchReader struct {
	image []byte
	patch map[int64]byte
}

func (p *patchReader) ReadAt(b []byte, offset int64) (int, error) {
	if offset < 0 || offset >= int64(len(p.image)) {
		return 0, io.EOF
	}
	n := copy(b, p.image[offset:])
	for at, value := range p.patch {
		if at >= offset && at < offset+int64(n) {
			b[at-offset] = value
		}
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// FuzzOpen reads file systems of which some bytes were changed: with their checksums compared, and as if these had been set right.
// A patch is a list of a line's number, a byte's number in it and the byte; lines are the 64 bytes of an image that are not all zeros.
func FuzzOpen(f *testing.F) {
	type seed struct {
		image []byte
		lines []int64
	}
	var seeds []seed
	for _, name := range []string{"small-ext4", "small-inline", "small-ext2", "small-uninit", "journal-ordered", "journal-without-checksums", "journal-with-fast-commits"} {
		s := seed{image: golden(f, name)}
		for at := 0; at < len(s.image); at += 64 {
			if bytes.ContainsFunc(s.image[at:at+64], func(r rune) bool { return r != 0 }) {
				s.lines = append(s.lines, int64(at))
			}
		}
		seeds = append(seeds, s)
		f.Add(uint8(len(seeds)-1), []byte{0, 16, 0, 1})
		f.Add(uint8(len(seeds)-1), []byte{0, 17, 40, 255, 0, 40, 2, 7, 0, 90, 4, 0})
	}
	f.Fuzz(func(t *testing.T, which uint8, patch []byte) {
		s := seeds[int(which)%len(seeds)]
		r := &patchReader{image: s.image, patch: map[int64]byte{}}
		for ; len(patch) >= 4 && len(r.patch) < 64; patch = patch[4:] {
			line := (int(patch[0])<<8 | int(patch[1])) % len(s.lines)
			r.patch[s.lines[line]+int64(patch[2]%64)] = patch[3]
		}
		for _, unchecked := range []bool{false, true} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			fs, err := open(r, int64(len(s.image)), unchecked)
			if err == nil {
				for block := range fs.super.blocks {
					fs.Place(block)
				}
				_, err = dump(ctx, fs)
			}
			cancel()
			if err != nil && !judged(err) && !strings.Contains(err.Error(), io.ErrUnexpectedEOF.Error()) {
				t.Fatalf("unchecked %v: %v", unchecked, err)
			}
		}
	})
}

// What is encrypted is told as such, and its names as they are stored.
func TestEncrypted(t *testing.T) {
	t.Parallel()
	image := golden(t, "small-ext2")
	fs, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range scanAll(t, fs) {
		at := int(fs.groups[0].inodeTable)*1024 + int(i.Number-1)*goodOldInodeSize
		image[at+0x21] |= FlagEncrypt >> 8
	}
	text, err := dump(t.Context(), fs)
	if err != nil || strings.Contains(text, "crc") || !strings.Contains(text, `"sparse"`) {
		t.Errorf("%v:\n%s", err, text)
	}
	for _, i := range scanAll(t, fs) {
		switch i.Type() {
		case ModeRegular:
			_, err = fs.Content(t.Context(), i)
		case ModeSymlink:
			_, err = fs.Readlink(t.Context(), i)
		default:
			continue
		}
		if !errors.Is(err, ErrEncrypted) || !i.Encrypted() {
			t.Errorf("inode %d: %v", i.Number, err)
		}
	}
}

// A file system that two machines may mount, in turns, reads as another. The tools would wait for the other machine.
func TestMultipleMountProtection(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image")
	tool(t, nil, "mke2fs", "-q", "-t", "ext4", "-O", "mmp", path, "16M")
	fs := openImage(t, path)
	if _, err := dump(t.Context(), fs); err != nil || !slices.Contains(fs.Info().Features, "mmp") {
		t.Errorf("%v, features %q", err, fs.Info().Features)
	}
}
