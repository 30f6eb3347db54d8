//go:build vm

package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/vmtests/powercut"
)

// TestFileSystemsOnFullStore fills a mounted file system whose store is much too small. What cannot be stored fails, after a
// while, and what was synced stays; what is discarded can be used again; and what waits goes on when the store grows. The file
// system stays mounted and writable all the time.
func TestFileSystemsOnFullStore(t *testing.T) {
	for _, fs := range filled {
		t.Run(fs, func(t *testing.T) { fillAndGrow(t, fs) })
	}
}

const (
	smallStore = 64 << 20
	grownStore = 256 << 20
	pieceBytes = 1 << 20
)

func fillAndGrow(t *testing.T, fs string) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root.img")
	sh(t, "truncate -s 400M "+root+"; mkfs."+fs+" -q "+root)
	store, grow := growingStore(t, fs)
	coppice(t, "store", "format", "--force", store)
	const wait = 3 * time.Second
	served := startDaemon(t, "--full-wait", wait.String())
	dev := createForTest(t, "full", root, store)
	f := &filler{t: t, dir: mountPoint(t, dev.Path, "-t "+fs), device: dev.Path}

	began, err := f.fill(smallStore / pieceBytes)
	if err == nil {
		t.Fatalf("%d MiB went into a store of %d", f.pieces, smallStore>>20)
	}
	took := time.Since(began)
	t.Logf("after %d MiB: %v, after %.1f s", f.pieces, err, took.Seconds())
	if took < wait {
		t.Errorf("failed after %s, want it to wait for %s", took, wait)
	}
	f.compare()

	// What is discarded is free after the next flush.
	f.remove(f.pieces / 2)
	again := f.pieces / 3
	sh(t, "sync; fstrim "+f.dir+"; sync")
	if _, err := f.fill(again); err != nil {
		t.Errorf("write into discarded space: %v", err)
	}
	f.compare()

	// A daemon that waits for long takes over, and is relieved.
	served.stop(t)
	startDaemon(t, "--full-wait", "5m")
	mark := markKernelLog(t)
	done := make(chan error, 1)
	go func() {
		_, err := f.fill(2 * smallStore / pieceBytes)
		done <- err
	}()
	for began := time.Now(); !strings.Contains(coppice(t, "inspect", "full"), "waiting"); time.Sleep(100 * time.Millisecond) {
		if time.Since(began) > 3*time.Minute {
			t.Fatal("nobody waits for space")
		}
	}
	select {
	case err := <-done:
		t.Fatalf("the writer did not wait: %v", err)
	default:
	}
	grow()
	t.Log(strings.TrimSpace(coppice(t, "store", "grow", store)))
	if err := <-done; err != nil {
		t.Errorf("write while the store grew: %v", err)
	}
	noKernelErrors(t, mark)
	f.compare()
	unmount(t, f.dir)
	sh(t, map[string]string{"ext4": "e2fsck -fn ", "xfs": "xfs_repair -n "}[fs]+dev.Path)
	coppice(t, "delete", "full")
}

// growingStore makes room for a store, and a function that makes it larger: a file for ext4, a device for xfs.
func growingStore(t *testing.T, fs string) (path string, grow func()) {
	t.Helper()
	if fs == "ext4" {
		path = filepath.Join(t.TempDir(), "store")
		sh(t, fmt.Sprintf("truncate -s %d %s", smallStore, path))
		return path, func() { sh(t, fmt.Sprintf("truncate -s %d %s", grownStore, path)) }
	}
	const name = "growing"
	table := func(bytes int) string {
		return fmt.Sprintf("echo 0 %d linear %s 0", bytes/sectorBytes, disk(t, "leaf"))
	}
	sh(t, "modprobe dm-mod; "+table(smallStore)+" | dmsetup create --noudevsync "+name+"; dmsetup mknodes")
	t.Cleanup(func() { sh(t, "dmsetup remove --noudevsync "+name) })
	return "/dev/mapper/" + name, func() {
		sh(t, "dmsetup suspend --noudevsync "+name+"; "+table(grownStore)+" | dmsetup reload "+name+"; dmsetup resume --noudevsync "+name)
	}
}

// filler fills a file system with files of pieceBytes, each synced.
type filler struct {
	t           *testing.T
	dir, device string
	pieces      int
	next        uint64
	kept        []uint64 // contents, which are the files' names, that are there for sure
}

// fill writes pieces until that many are there or one fails, and tells when that one was begun.
func (f *filler) fill(pieces int) (began time.Time, err error) {
	for range pieces {
		f.next++
		began = time.Now()
		if err := f.write(f.next); err != nil {
			_ = os.Remove(f.path(f.next))
			return began, err
		}
		f.kept = append(f.kept, f.next)
		f.pieces = len(f.kept)
	}
	return began, nil
}

func (f *filler) path(id uint64) string { return filepath.Join(f.dir, fmt.Sprint("piece", id)) }

func (f *filler) write(id uint64) error {
	file, err := os.Create(f.path(id))
	if err != nil {
		return err
	}
	defer file.Close()
	p := make([]byte, pieceBytes)
	powercut.Fill(p, id, 0)
	if _, err := file.Write(p); err != nil {
		return err
	}
	return file.Sync()
}

// remove removes the n oldest files.
func (f *filler) remove(n int) {
	f.t.Helper()
	for _, id := range f.kept[:n] {
		if err := os.Remove(f.path(id)); err != nil {
			f.t.Fatal(err)
		}
	}
	f.kept = f.kept[n:]
}

// compare reads all files past the page cache, and wants the file system to be writable.
func (f *filler) compare() {
	f.t.Helper()
	sh(f.t, "echo 3 >/proc/sys/vm/drop_caches")
	for _, id := range f.kept {
		text, err := os.ReadFile(f.path(id))
		if have, valid := powercut.Recognise(text); err != nil || have != id || valid != pieceBytes {
			f.t.Errorf("piece %d: %d bytes of content %d, %v", id, valid, have, err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(f.dir, &st); err != nil || st.Flags&unix.ST_RDONLY != 0 {
		f.t.Errorf("the file system is not writable any more: %v", err)
	}
	sh(f.t, "echo still > "+f.dir+"/note; sync "+f.dir+"/note")
}
