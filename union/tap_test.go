package union

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"coppice/ublk"
)

// tap is a Target that executes everything at once, counts it, and does not keep the data of slots: many times more can be written
// to a store than there is room for, through the very code that serves a device. Logs and maps are kept.
type tap struct {
	files []*os.File
	from  int64 // writes of requests from this byte on go to slots, and nowhere
	sync  bool  // carry flushes out

	q       *ublk.Queue
	idle    []int
	done    []tapDone
	failed  syscall.Errno
	written int64
	flushes int

	mu    sync.Mutex // guards posts
	posts []*ublk.Request
	wake  chan struct{}
}

type tapDone struct {
	r      *ublk.Request
	cookie uint16
	res    int32
}

func newTap(tb testing.TB, h ublk.Handler, size int64, s *Store) *tap {
	tb.Helper()
	t := &tap{from: s.sb.slotOffset(0), wake: make(chan struct{}, 1)}
	var err error
	if t.q, err = ublk.NewQueue(ublk.QueueConfig{Handler: h, Depth: 32, MaxIO: 64 << 10, SizeBytes: size}, t); err != nil {
		tb.Fatal(err)
	}
	if err := h.Attach(t.q); err != nil {
		tb.Fatal(err)
	}
	for tag := range t.q.Depth() {
		t.idle = append(t.idle, tag)
	}
	return t
}

func (t *tap) close() error {
	t.q.Local().(*queue).d.Detach(t.q)
	return t.q.Release()
}

func (t *tap) RegisterFile(_ *ublk.Queue, f *os.File) (ublk.File, error) {
	t.files = append(t.files, f)
	return ublk.File(len(t.files) - 1), nil
}

func (t *tap) ReleaseFiles(*ublk.Queue) { t.files = nil }

func (t *tap) end(r *ublk.Request, cookie uint16, n int, err error) {
	res := int32(n)
	var errno syscall.Errno
	if errors.As(err, &errno) {
		res = -int32(errno)
	}
	t.done = append(t.done, tapDone{r, cookie, res})
}

func (t *tap) Read(r *ublk.Request, f ublk.File, p []byte, off int64, cookie uint16) {
	n, err := t.files[f].ReadAt(p, off)
	t.end(r, cookie, n, err)
}

func (t *tap) Write(r *ublk.Request, f ublk.File, p []byte, off int64, _ bool, cookie uint16) {
	t.written += int64(len(p))
	if off >= t.from {
		t.end(r, cookie, len(p), nil)
		return
	}
	n, err := t.files[f].WriteAt(p, off)
	t.end(r, cookie, n, err)
}

func (t *tap) Fsync(r *ublk.Request, f ublk.File, cookie uint16) {
	t.flushes++
	var err error
	if t.sync {
		err = t.files[f].Sync()
	}
	t.end(r, cookie, 0, err)
}

func (t *tap) Post(r *ublk.Request) {
	t.mu.Lock()
	t.posts = append(t.posts, r)
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *tap) Commit(r *ublk.Request, result int32) {
	if result < 0 {
		t.failed = syscall.Errno(-result)
	}
	t.idle = append(t.idle, r.Tag())
}

func (t *tap) Now() int64 { return time.Now().UnixNano() }

// run has the device carry out n requests, as many at a time as it has tags.
func (t *tap) run(n int, next func(i int) ublk.Descriptor) error {
	for i := 0; ; {
		switch {
		case i < n && len(t.idle) > 0:
			tag := t.idle[len(t.idle)-1]
			t.idle = t.idle[:len(t.idle)-1]
			t.q.Start(tag, next(i))
			i++
		case len(t.done) > 0:
			d := t.done[len(t.done)-1]
			t.done = t.done[:len(t.done)-1]
			d.r.Queue().Resume(d.r, d.cookie, d.res)
		case t.posted():
		case i == n && len(t.idle) == t.q.Depth():
			if t.failed != 0 {
				return t.failed
			}
			return nil
		default:
			<-t.wake
		}
	}
}

func (t *tap) posted() bool {
	t.mu.Lock()
	posts := t.posts
	t.posts = nil
	t.mu.Unlock()
	for _, r := range posts {
		r.Queue().ResumePosted(r)
	}
	return len(posts) > 0
}

// tapDisk counts the blocking calls of a store.
type tapDisk struct {
	disk
	written atomic.Int64
	syncs   atomic.Int64
	waited  atomic.Int64 // nanoseconds in syncs
}

func (d *tapDisk) WriteAt(p []byte, off int64) (int, error) {
	d.written.Add(int64(len(p)))
	return d.disk.WriteAt(p, off)
}

func (d *tapDisk) Sync() error {
	d.syncs.Add(1)
	began := time.Now()
	err := d.disk.Sync()
	d.waited.Add(time.Since(began).Nanoseconds())
	return err
}

// tapped is a device over a store whose data is not kept.
type tapped struct {
	tb    testing.TB
	path  string
	run   string
	size  int64 // of the device
	disk  *tapDisk
	store *Store
	layer *Layer
	tap   *tap
	next  int // block of the permutation that is written next
}

var tapBase = &memBase{content: make([]byte, blockSize)}

// newTapped makes a store and a device of the given sizes in a sparse file. The records that no commit has written lie in run, if
// that is not empty.
func newTapped(tb testing.TB, dir, run string, store, device int64) *tapped {
	tb.Helper()
	d := &tapped{tb: tb, path: filepath.Join(dir, "leaf"), run: run, size: device}
	if _, err := Format(d.path, FormatOptions{SizeBytes: store}); err != nil {
		tb.Fatal(err)
	}
	d.open()
	return d
}

// open opens the store without its background work, and the device.
func (d *tapped) open() {
	d.tb.Helper()
	f, err := openDisk(d.path, false)
	if err != nil {
		d.tb.Fatal(err)
	}
	d.disk = &tapDisk{disk: f}
	if d.store, err = openOn(d.path, d.disk, StoreOptions{RunDir: d.run}); err != nil {
		d.tb.Fatal(err)
	}
	d.layer, err = d.store.OpenLayer("web1", LayerOptions{Create: true, Pin: tapBase.Pin(), SizeBytes: d.size})
	if err != nil {
		d.tb.Fatal(err)
	}
	dev, err := NewDevice(d.layer, tapBase, DeviceOptions{NoVerify: true})
	if err != nil {
		d.tb.Fatal(err)
	}
	d.tap = newTap(d.tb, dev, d.size, d.store)
}

// work starts the background work of the store.
func (d *tapped) work() {
	d.store.stopped = make(chan struct{})
	go d.store.background()
}

// crash gives the store up as a power cut does that loses nothing.
func (d *tapped) crash() {
	d.tb.Helper()
	if err := errors.Join(d.tap.close(), d.store.pending.close(), d.disk.Close()); err != nil {
		d.tb.Fatal(err)
	}
}

func (d *tapped) close() {
	d.tb.Helper()
	err := d.tap.close()
	d.layer.Release()
	if err := errors.Join(err, d.store.Close(), os.Remove(d.path)); err != nil {
		d.tb.Fatal(err)
	}
}

// write writes n blocks of 4 KiB that were not written before, scattered over the device, and flushes.
func (d *tapped) write(n int) {
	d.tb.Helper()
	blocks := d.size >> blockShift
	if int64(d.next+n) > blocks {
		d.tb.Fatalf("a device of %d blocks has no %d to touch first", blocks, d.next+n)
	}
	err := d.tap.run(n, func(i int) ublk.Descriptor {
		return ublk.Descriptor{Op: ublk.OpWrite, Off: d.scattered(d.next+i) << blockShift, Len: blockSize}
	})
	if err == nil {
		err = d.tap.run(1, func(int) ublk.Descriptor { return flushDescriptor })
	}
	if err != nil {
		d.tb.Fatal(err)
	}
	d.next += n
}

// scattered visits every block once: the factor is a prime that no device's number of blocks is a multiple of.
func (d *tapped) scattered(i int) int64 {
	return int64(uint64(i) * 2654435761 % uint64(d.size>>blockShift))
}

// writeMany writes n blocks with a flush after every k.
func (d *tapped) writeMany(n, k int) {
	d.tb.Helper()
	for n > 0 {
		d.write(min(n, k))
		n -= k
	}
}
