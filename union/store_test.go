package union

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"coppice/ublk/ublktest"
)

// newStoreFile formats a store of the smallest size in a file.
func newStoreFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "leaf")
	if _, err := Format(path, FormatOptions{SizeBytes: MinStoreBytes}); err != nil {
		t.Fatal(err)
	}
	return path
}

func openStore(t *testing.T, path string) *Store {
	t.Helper()
	s, err := OpenStore(path, StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// untouched demands, at the end of f, that the file holds what it held before.
func untouched(t *testing.T, path string, f func()) {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f()
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Errorf("%s was written to: %d bytes before, %d after", filepath.Base(path), len(before), len(after))
	}
}

// patch changes bytes of a file in place.
func patch(t *testing.T, path string, off int64, p []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// wantError demands an error that is (or is like) want and says each of the words.
func wantError(t *testing.T, err, want error, words ...string) {
	t.Helper()
	if err == nil || want != nil && !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func TestFormatRefusesWhatIsNotEmpty(t *testing.T) {
	const odd = MinStoreBytes + 512 + 100
	for _, c := range []struct {
		name string
		size int64
		at   int64
	}{
		{"first byte", MinStoreBytes, 0},
		{"last byte of the first MiB", MinStoreBytes, 1<<20 - 1},
		{"first byte of the last MiB", MinStoreBytes, MinStoreBytes - 1<<20},
		{"last byte", MinStoreBytes, MinStoreBytes - 1},
		{"last byte of a size that is no multiple of a block", odd, odd - 1},
		{"first byte of the last MiB of such a size", odd, odd - 1<<20},
		{"small", 5000, 4999},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "leaf")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			truncate(t, path, c.size)
			patch(t, path, c.at, []byte{0xee})
			untouched(t, path, func() {
				for _, size := range []int64{0, MinStoreBytes, 2 * MinStoreBytes} {
					if size < MinStoreBytes && c.size < MinStoreBytes {
						continue
					}
					_, err := Format(path, FormatOptions{SizeBytes: size})
					wantError(t, err, ErrNotEmpty, fmt.Sprintf("byte %d is 0xee", c.at), "nothing was written", "--force", path)
				}
			})
			info, err := Format(path, FormatOptions{SizeBytes: MinStoreBytes, Force: true})
			if err != nil {
				t.Fatal(err)
			}
			if info.SizeBytes != max(c.size, MinStoreBytes)&^(blockSize-1) {
				t.Errorf("forced: %d bytes of %d", info.SizeBytes, c.size)
			}
			openStore(t, path)
		})
	}
}

func TestFormatIgnoresTheMiddle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leaf")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	truncate(t, path, MinStoreBytes)
	patch(t, path, MinStoreBytes/2, bytes.Repeat([]byte{7}, 1<<20))
	if _, err := Format(path, FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	openStore(t, path)
}

func TestFormatRefusesOtherTargets(t *testing.T) {
	t.Parallel() // it waits for locks
	dir := t.TempDir()
	small := filepath.Join(dir, "small")
	if err := os.WriteFile(small, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	inUse := newStoreFile(t)
	s := openStore(t, inUse)
	for _, c := range []struct {
		name, path string
		size       int64
		want       error
	}{
		{"missing", filepath.Join(dir, "missing"), 0, os.ErrNotExist},
		{"missing and too small", filepath.Join(dir, "missing"), MinStoreBytes - 1, ErrTooSmall},
		{"missing and negative", filepath.Join(dir, "missing"), -1, ErrTooSmall},
		{"missing directory", filepath.Join(dir, "missing", "leaf"), MinStoreBytes, os.ErrNotExist},
		{"too small", small, 0, ErrTooSmall},
		{"too small, asked for too little", small, MinStoreBytes - 1, ErrTooSmall},
		{"directory", dir, 0, syscall.EISDIR},
		{"directory with size", dir, MinStoreBytes, syscall.EISDIR},
		{"character device", "/dev/null", 0, nil},
		{"character device with size", "/dev/null", MinStoreBytes, nil},
		{"in use", inUse, 0, ErrInUse},
		{"in use, with size", inUse, 2 * MinStoreBytes, ErrInUse},
	} {
		_, err := Format(c.path, FormatOptions{SizeBytes: c.size, Force: true})
		if wantError(t, err, c.want, c.path); t.Failed() {
			t.Fatalf("case %q", c.name)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("files were made: %v %v", entries, err)
	}
	for path, want := range map[string]int64{small: 1 << 20, inUse: MinStoreBytes} {
		if st, err := os.Stat(path); err != nil || st.Size() != want {
			t.Errorf("%s: %d bytes left of %d: %v", path, st.Size(), want, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestFormatSizes(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		have, ask, want int64
	}{
		{-1, MinStoreBytes, MinStoreBytes},
		{0, MinStoreBytes + 4096, MinStoreBytes + 4096},
		{64 << 20, 0, 64 << 20},
		{64 << 20, MinStoreBytes, 64 << 20}, // a bigger file stays as it is
		{MinStoreBytes + 1000, 0, MinStoreBytes},
		{1 << 40, 0, 1 << 40},
	} {
		path := filepath.Join(dir, fmt.Sprintf("leaf-%d-%d", c.have, c.ask))
		if c.have >= 0 {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			truncate(t, path, c.have)
		}
		id := uuid.New()
		info, err := Format(path, FormatOptions{SizeBytes: c.ask, UUID: id})
		if err != nil {
			t.Fatal(err)
		}
		logBytes := min(max(c.want/64, 4<<20), 64<<20) &^ (4<<20 - 1)
		if info.SizeBytes != c.want || info.UUID != id.String() || info.Version != 1 || info.LogBytes != logBytes ||
			info.SlotBytes < c.want-2*logBytes-3<<20 || info.FreeBytes != info.SlotBytes-blockSize || len(info.Layers) != 0 {
			t.Errorf("%+v: %+v", c, info)
		}
		s := openStore(t, path)
		if s.UUID() != id || s.Path() != path {
			t.Errorf("%+v: opened %s of %s", c, s.UUID(), s.Path())
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestFormatForgetsTheOldStore overwrites a store by force: nothing of it comes back.
func TestFormatForgetsTheOldStore(t *testing.T) {
	path := newStoreFile(t)
	s := openStore(t, path)
	layer, err := s.OpenLayer("old", LayerOptions{Create: true, SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	layer.Release()
	old := s.UUID()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	untouched(t, path, func() {
		_, err := Format(path, FormatOptions{Force: true, UUID: old})
		wantError(t, err, nil, old.String(), "another")
	})
	if _, err := Format(path, FormatOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, path)
	if s.UUID() == old || len(s.Info().Layers) != 0 {
		t.Errorf("the old store is still there: %+v", s.Info())
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	build := func(name string, change func(path string)) string {
		path := filepath.Join(dir, name)
		if _, err := Format(path, FormatOptions{SizeBytes: MinStoreBytes}); err != nil {
			t.Fatal(err)
		}
		change(path)
		return path
	}
	zero := func(path string, off, n int64) { patch(t, path, off, bytes.Repeat([]byte{0}, int(n))) }
	super := func(path string, change func(p []byte), blocks ...int64) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range blocks {
			p := b[block<<blockShift:][:blockSize]
			change(p)
			le.PutUint32(p[superSumField:], blockChecksum(p, superSumField))
			patch(t, path, block<<blockShift, p)
		}
	}
	for _, c := range []struct {
		name  string
		path  string
		want  error
		words []string
	}{
		{"directory", dir, syscall.EISDIR, nil},
		{"character device", "/dev/zero", nil, []string{"block device"}},
		{"missing", filepath.Join(dir, "missing"), os.ErrNotExist, nil},
		{"not formatted", build("zeros", func(p string) { zero(p, 0, 1<<20) }), ErrNotFormatted, []string{"store format"}},
		{"short", build("short", func(p string) { truncate(t, p, 1<<20) }), ErrTooSmall, nil},
		{"truncated", build("truncated", func(p string) {
			if _, err := Format(p, FormatOptions{SizeBytes: 64 << 20, Force: true}); err != nil {
				t.Fatal(err)
			}
			truncate(t, p, 40<<20)
		}), ErrTooSmall, []string{"16384", "10240"}},
		{"later version", build("version", func(p string) {
			super(p, func(b []byte) { le.PutUint16(b[8:], 2) }, superBlocks[:]...)
		}), ErrVersion, []string{"version 2"}},
		{"later version in A", build("versionA", func(p string) {
			super(p, func(b []byte) { le.PutUint16(b[8:], 2) }, superABlock)
		}), ErrVersion, []string{"version 2"}},
		{"later version in B", build("versionB", func(p string) {
			super(p, func(b []byte) { le.PutUint16(b[8:], 2) }, superBBlock)
		}), ErrVersion, []string{"version 2"}},
		{"incompatible feature", build("incompat", func(p string) {
			super(p, func(b []byte) { le.PutUint64(b[16:], 1<<40) }, superBlocks[:]...)
		}), ErrVersion, []string{"0x10000000000"}},
		{"incompatible feature in B", build("incompatB", func(p string) {
			super(p, func(b []byte) { le.PutUint64(b[16:], 1) }, superBBlock)
		}), ErrVersion, nil},
		{"both superblocks damaged", build("damaged", func(p string) {
			patch(t, p, 50, []byte{1})
			patch(t, p, superBBlock<<blockShift+4000, []byte{1})
		}), ErrCorrupt, []string{"nothing was written", "byte 0", "byte 65536"}},
		{"one superblock damaged, one gone", build("gone", func(p string) {
			patch(t, p, 50, []byte{1})
			zero(p, superBBlock<<blockShift, blockSize)
		}), ErrCorrupt, []string{"nothing was written"}},
		{"superblocks of two stores", build("two", func(p string) {
			super(p, func(b []byte) { b[40]++ }, superABlock)
		}), ErrCorrupt, []string{"different stores"}},
		{"slots beyond the end", build("slots", func(p string) {
			super(p, func(b []byte) { le.PutUint64(b[96:], le.Uint64(b[96:])+1) }, superBlocks[:]...)
		}), ErrCorrupt, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := func() {
				for _, readOnly := range []bool{false, true} {
					_, err := OpenStore(c.path, StoreOptions{ReadOnly: readOnly})
					wantError(t, err, c.want, append(c.words, c.path)...)
				}
				if rep, err := Check(c.path, CheckOptions{Repair: true}); err == nil && len(rep.Problems) == 0 {
					t.Error("Check finds nothing wrong")
				}
			}
			if st, err := os.Stat(c.path); err == nil && st.Mode().IsRegular() {
				untouched(t, c.path, check)
				return
			}
			check()
		})
	}
}

// TestOpenIsExclusive has a second opener fail, whatever it wants, and readers share.
func TestOpenIsExclusive(t *testing.T) {
	t.Parallel() // it waits for locks
	path := newStoreFile(t)
	s := openStore(t, path)
	attempts := map[string]func() error{
		"open":           func() error { _, err := OpenStore(path, StoreOptions{}); return err },
		"open read-only": func() error { _, err := OpenStore(path, StoreOptions{ReadOnly: true}); return err },
		"check":          func() error { _, err := Check(path, CheckOptions{}); return err },
		"dump":           func() error { return Dump(&bytes.Buffer{}, path) },
		"format":         func() error { _, err := Format(path, FormatOptions{Force: true}); return err },
	}
	var wg sync.WaitGroup
	for name, try := range attempts {
		wg.Go(func() {
			if err := try(); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		reader, err := OpenStore(path, StoreOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close()
	}
	_, err := OpenStore(path, StoreOptions{})
	wantError(t, err, ErrInUse)
}

// TestOpenOfReadOnlyFile has a store in a file that refuses writes: it opens for reading only, and says why.
func TestOpenOfReadOnlyFile(t *testing.T) {
	b, err := os.ReadFile(newStoreFile(t))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("leaf", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "leaf")
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	_, err = OpenStore(path, StoreOptions{})
	wantError(t, err, syscall.EPERM, path)
	s, err := OpenStore(path, StoreOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.OpenLayer("x", LayerOptions{Create: true, SizeBytes: 4096})
	wantError(t, err, ErrReadOnly)
	wantError(t, s.RemoveLayer("x"), ErrReadOnly)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestDamagedSuperblockIsRepaired damages either copy, and has either a check or the next open write it again.
func TestDamagedSuperblockIsRepaired(t *testing.T) {
	for _, block := range superBlocks {
		for _, by := range []string{"check", "open"} {
			t.Run(fmt.Sprintf("block %d by %s", block, by), func(t *testing.T) {
				path := newStoreFile(t)
				patch(t, path, block<<blockShift+60, []byte{0xff})
				untouched(t, path, func() {
					rep, err := Check(path, CheckOptions{})
					if err != nil || len(rep.Problems) != 1 || rep.Problems[0].Structure != "superblock" ||
						!rep.Problems[0].Repairable || rep.Problems[0].Offset != block<<blockShift {
						t.Fatalf("check: %+v %v", rep, err)
					}
				})
				if by == "check" {
					rep, err := Check(path, CheckOptions{Repair: true})
					if err != nil || len(rep.Problems) != 0 || len(rep.Repaired) != 1 {
						t.Fatalf("repair: %+v %v", rep, err)
					}
				} else {
					s := openStore(t, path)
					if got := s.Info().Recovery.Repaired; got != 1 {
						t.Errorf("%d repairs told of", got)
					}
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
				rep, err := Check(path, CheckOptions{})
				if err != nil || len(rep.Problems) != 0 {
					t.Errorf("afterwards: %+v %v", rep, err)
				}
			})
		}
	}
}

// TestRepairLeavesPendingRecordsAlone: a store that a process of this boot had open may have acknowledged writes on tmpfs.
func TestRepairLeavesPendingRecordsAlone(t *testing.T) {
	r := newRig(t, 1, false)
	if _, err := r.block.WriteAt(bytes.Repeat([]byte{5}, 4096), 0); err != nil {
		t.Fatal(err)
	}
	r.abandon()
	r.disk.Bytes()[60] ^= 1
	_, err := Check(r.disk.Path(), CheckOptions{Repair: true})
	wantError(t, err, nil, "daemon")
	r.open()
	got := make([]byte, 4096)
	if _, err := r.block.ReadAt(got, 0); err != nil || got[0] != 5 {
		t.Errorf("the acknowledged write is gone: %v %d", err, got[0])
	}
	r.close()
	r.check()
}

func TestCloseWithOpenLayer(t *testing.T) {
	t.Parallel() // it waits for locks
	path := newStoreFile(t)
	s := openStore(t, path)
	layer, err := s.OpenLayer("web1", LayerOptions{Create: true, SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, s.Close(), ErrLayerInUse, "web1", path)
	_, err = OpenStore(path, StoreOptions{})
	wantError(t, err, ErrInUse)
	layer.Release()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	_, err = s.OpenLayer("web1", LayerOptions{})
	wantError(t, err, ErrClosed)
}

// TestReadOnlyOpenWritesNothing opens a store that needs a recovery: what the log holds is there, and the
// store stays as it was.
func TestReadOnlyOpenWritesNothing(t *testing.T) {
	r := newRig(t, 3, false)
	want := bytes.Repeat([]byte{0xab}, 64<<10)
	if _, err := r.block.WriteAt(want, 8192); err != nil {
		t.Fatal(err)
	}
	if err := r.block.Flush(); err != nil {
		t.Fatal(err)
	}
	r.abandon()
	r.disk.Bytes()[60] ^= 1 // and one superblock is damaged
	before := bytes.Clone(r.disk.Bytes())
	var err error
	if r.store, err = OpenStore(r.disk.Path(), StoreOptions{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	if r.layer, err = r.store.OpenLayer("web1", LayerOptions{Pin: r.base.Pin()}); err != nil {
		t.Fatal(err)
	}
	if _, err = NewDevice(r.layer, r.base, DeviceOptions{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("a writable device on it: %v", err)
	}
	if r.dev, err = NewDevice(r.layer, r.base, DeviceOptions{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	r.serve()
	got := make([]byte, len(want))
	if _, err := r.block.ReadAt(got, 8192); err != nil || !bytes.Equal(got, want) {
		t.Errorf("content differs: %v", err)
	}
	for name, errno := range map[string]error{
		"discard": r.block.Discard(0, 8192),
		"zeroes":  r.block.WriteZeroes(0, 8192, false),
		"FUA":     r.block.WriteFUA(want[:4096], 0),
	} {
		if !errors.Is(errno, syscall.EIO) {
			t.Errorf("%s on a read-only device: %v", name, errno)
		}
	}
	if _, err := r.block.WriteAt(want[:4096], 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("write on a read-only device: %v", err)
	}
	if err := r.block.Flush(); err != nil {
		t.Errorf("flush of a read-only device: %v", err)
	}
	if err := r.block.Close(); err != nil {
		t.Error(err)
	}
	r.layer.Release()
	if err := r.store.Close(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(before, r.disk.Bytes()) {
		t.Error("the store was written to")
	}
}

// TestMissingPendingRecordsAreRefused kills a process and hides its run directory: acknowledged writes would be lost.
func TestMissingPendingRecordsAreRefused(t *testing.T) {
	r := newRig(t, 1, false)
	if _, err := r.block.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	r.abandon()
	for _, dir := range []string{"", t.TempDir()} {
		if _, err := openOn("leaf", r.disk, StoreOptions{RunDir: dir}); !errors.Is(err, ErrPendingLost) {
			t.Errorf("open with run directory %q: %v, want %v", dir, err, ErrPendingLost)
		}
	}
	if _, err := openOn("leaf", r.disk, StoreOptions{ReadOnly: true}); err != nil {
		t.Errorf("open for looking: %v", err)
	}
	r.open()
	r.close()
}

// TestSuperblocksGone tells a store that lost both superblocks from a disk that never was one.
func TestSuperblocksGone(t *testing.T) {
	disk, err := ublktest.NewDisk("leaf", MinStoreBytes)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if _, err := openOn("leaf", disk, StoreOptions{}); !errors.Is(err, ErrNotFormatted) {
		t.Errorf("an empty disk: %v", err)
	}
	p := alignedBuffer(blockSize)
	h := logHeader{UUID: testUUID, Seq: 1029, Durable: 1028}
	h.encode(p)
	sealLogBlock(p)
	if _, err := disk.WriteAt(p, (logABlock+5)<<blockShift); err != nil {
		t.Fatal(err)
	}
	if _, err := openOn("leaf", disk, StoreOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a log without superblocks: %v", err)
	}
}
