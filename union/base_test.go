package union

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pinOf(t *testing.T, path string) Pin {
	t.Helper()
	r, err := OpenRaw(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	return r.Pin()
}

func TestOpenRawSizes(t *testing.T) {
	dir := t.TempDir()
	rng := rand.NewChaCha8([32]byte{1})
	for _, size := range []int{1, 511, 512, 4095, 4096, 4097, 1<<20 - 1, 1 << 20, 1<<20 + 1, 5<<20 + 777} {
		path := filepath.Join(dir, fmt.Sprint(size))
		content := make([]byte, size)
		if _, err := rng.Read(content); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o400); err != nil {
			t.Fatal(err)
		}
		r, err := OpenRaw(path)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		pin := r.Pin()
		if r.Size() != int64(size) || pin.Kind != PinRaw || pin.SizeBytes != int64(size) || pin.ModTime != st.ModTime().UnixNano() {
			t.Errorf("%d bytes: size %d, pin %+v", size, r.Size(), pin)
		}
		if pin != pinOf(t, path) {
			t.Errorf("%d bytes: another pin at the second opening", size)
		}
		if flags, err := unix.FcntlInt(r.File().Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY {
			t.Errorf("opened with flags %#x: %v", flags, err)
		}
		got := make([]byte, size-size/3)
		done := make(chan error)
		r.ReadAsync(got, int64(size/3), func(_ Origins, err error) { done <- err })
		if err := <-done; err != nil || !bytes.Equal(got, content[size/3:]) {
			t.Errorf("%d bytes: asynchronous read to the end differs: %v", size, err)
		}
		r.ReadAsync(make([]byte, 1), int64(size), func(_ Origins, err error) { done <- err })
		if err := <-done; err != io.EOF {
			t.Errorf("%d bytes: read beyond the end: %v", size, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenRawRefuses(t *testing.T) {
	dir := t.TempDir()
	empty, fifo := filepath.Join(dir, "empty"), filepath.Join(dir, "fifo")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		want error
		word string
	}{
		{empty, nil, "is empty"},
		{dir, nil, "is a directory"},
		{fifo, nil, "neither a regular file nor a block device"},
		{"/dev/zero", nil, "neither a regular file nor a block device"},
		{filepath.Join(dir, "missing"), os.ErrNotExist, "open root"},
		{filepath.Join(empty, "x"), syscall.ENOTDIR, "open root"},
	} {
		_, err := OpenRaw(c.path)
		wantError(t, err, c.want, c.word, c.path)
	}
}

// TestPinChanges flips one byte at a time: in the first and last MiB and in each sampled block the pin's digest
// changes, elsewhere only the modification time does.
func TestPinChanges(t *testing.T) {
	const size = 64<<20 + 1000
	path := filepath.Join(t.TempDir(), "root")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	truncate(t, path, size)
	at := time.Unix(1700000000, 123456789)
	touch := func(at time.Time) {
		t.Helper()
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	touch(at)
	original := pinOf(t, path)

	sampled := map[int64]bool{}
	rng := rand.New(rand.NewPCG(pinSeed, size))
	for range pinSamples {
		sampled[rng.Int64N((size+blockSize-1)>>blockShift)<<blockShift] = true
	}
	offs := map[int64]bool{ // whether the digest covers the byte
		0: true, 1<<20 - 1: true, size - 1<<20: true, size - 1: true,
	}
	for off := range sampled {
		offs[off] = true
		offs[min(off+blockSize, size)-1] = true
	}
	for off := int64(1 << 20); len(offs) < 4+2*pinSamples+10; off += 5 << 20 {
		offs[off] = sampled[off&^(blockSize-1)] || off >= size-1<<20
	}
	for off, covered := range offs {
		patch(t, path, off, []byte{1})
		touch(at)
		changed := pinOf(t, path)
		if (changed.Digest != original.Digest) != covered {
			t.Errorf("a change of byte %d: digest changed %v, want %v", off, changed.Digest != original.Digest, covered)
		}
		want := ""
		if covered {
			want = fmt.Sprintf("content %x, not %x", changed.Digest[:6], original.Digest[:6])
		}
		if got := original.Difference(changed); got != want {
			t.Errorf("difference %q, want %q", got, want)
		}
		patch(t, path, off, []byte{0})
	}
	touch(at)
	if again := pinOf(t, path); again != original {
		t.Errorf("the same file has another pin: %s", original.Difference(again))
	}
	touch(at.Add(time.Nanosecond))
	if got := original.Difference(pinOf(t, path)); got != "same samples, but modified 2023-11-14T22:13:20.12345679Z, not 2023-11-14T22:13:20.123456789Z" {
		t.Errorf("difference %q", got)
	}
	truncate(t, path, size+1)
	touch(at)
	if got := original.Difference(pinOf(t, path)); got != fmt.Sprintf("%d bytes, not %d", size+1, size) {
		t.Errorf("difference %q", got)
	}
}

// TestPinTimeDoesNotDependOnSize opens a sparse root of 1 TiB and one of 64 MiB: what is read is the same.
func TestPinTimeDoesNotDependOnSize(t *testing.T) {
	dir := t.TempDir()
	best := map[int64]time.Duration{}
	for _, size := range []int64{64 << 20, 1 << 40} {
		path := filepath.Join(dir, fmt.Sprint(size))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		truncate(t, path, size)
		best[size] = time.Hour
		for range 5 {
			began := time.Now()
			if pin := pinOf(t, path); pin.SizeBytes != size {
				t.Errorf("%d bytes, want %d", pin.SizeBytes, size)
			}
			best[size] = min(best[size], time.Since(began))
		}
	}
	t.Logf("64 MiB: %v, 1 TiB: %v", best[64<<20], best[1<<40])
	if best[1<<40] > 3*best[64<<20]+20*time.Millisecond {
		t.Errorf("1 TiB takes %v, 64 MiB %v", best[1<<40], best[64<<20])
	}
}

// TestRootEndsInsideABlock serves a device over a root whose size is no multiple of a sector: what lies beyond its end
// reads as zeros, also after a part of that block was written.
func TestRootEndsInsideABlock(t *testing.T) {
	for _, async := range []bool{false, true} {
		r := newRig(t, 1, async)
		want := make([]byte, r.size)
		copy(want, r.base.content)
		got := make([]byte, r.size)
		compare := func(what string) {
			t.Helper()
			if _, err := r.block.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s, asynchronous %v: content differs", what, async)
			}
		}
		compare("fresh")
		at := int64(rootSize) &^ (blockSize - 1)
		p := bytes.Repeat([]byte{0xcc}, sector)
		for _, off := range []int64{at, at + 3*sector, r.size - sector} {
			if _, err := r.block.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			copy(want[off:], p)
			compare(fmt.Sprintf("after a write at %d", off))
		}
		r.close()
		r.disk.Close()
	}
}

// A pin reads in JSON as people write digests, and comes back as it was.
func TestPinJSON(t *testing.T) {
	pin := Pin{Kind: PinRaw, SizeBytes: 8192, ModTime: 5, Digest: Digest{0xab, 31: 0x01}}
	text, err := json.Marshal(pin)
	want := `{"kind":1,"size_bytes":8192,"mod_time":5,"digest":"ab` + strings.Repeat("00", 30) + `01"}`
	if err != nil || string(text) != want {
		t.Fatalf("%s, %v, want %s", text, err, want)
	}
	var back Pin
	if err := json.Unmarshal(text, &back); err != nil || back != pin {
		t.Errorf("came back as %+v, %v", back, err)
	}
	if text, err = json.Marshal(Pin{}); err != nil || strings.Contains(string(text), "digest") {
		t.Errorf("no root is %s, %v", text, err)
	}
	for _, bad := range []string{`"ab"`, `"` + strings.Repeat("zz", 32) + `"`, `"` + strings.Repeat("00", 33) + `"`} {
		if err := json.Unmarshal([]byte(`{"digest":`+bad+`}`), &back); err == nil {
			t.Errorf("%s was taken for a digest", bad)
		}
	}
}
