package union

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/uuid"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

const sector = 512

// memBase is a root in memory: read through a disk's file, or asynchronously.
type memBase struct {
	content []byte
	disk    *ublktest.Disk // nil: asynchronous
	gone    atomic.Bool    // reads fail
}

func (b *memBase) Size() int64 { return int64(len(b.content)) }
func (b *memBase) Pin() Pin    { return Pin{Kind: PinRaw, SizeBytes: b.Size(), Digest: [32]byte{1, 2, 3}} }
func (b *memBase) File() *os.File {
	if b.disk == nil {
		return nil
	}
	return b.disk.File()
}

func (b *memBase) TryRead(p []byte, off int64) (Origins, bool) {
	if b.gone.Load() || off%5 != 0 { // some is in memory
		return 0, false
	}
	copy(p, b.content[off:])
	return FromMemory, true
}

func (b *memBase) ReadAsync(p []byte, off int64, done func(Origins, error)) {
	if b.gone.Load() {
		done(0, syscall.EIO)
		return
	}
	if off%3 == 0 { // some at once
		copy(p, b.content[off:])
		done(FromRoot, nil)
		return
	}
	go func() {
		copy(p, b.content[off:])
		done(FromRoot, nil)
	}()
}
func (b *memBase) Close() error { return nil }

// rig is a device over a store and a root, all simulated.
type rig struct {
	t     testing.TB
	seed  uint64
	disk  *ublktest.Disk
	base  *memBase
	store *Store
	layer *Layer
	dev   *Device
	sim   *ublktest.Sim
	block *ublktest.Device
	run   string
	boot  uuid.UUID // zero: of this machine
	size  int64
	queue int

	noVerify bool
	fullWait time.Duration
	notify   func(SpaceEvent)
	maxIO    int // 0: 64 KiB
	depth    int // 0: 8
}

// The device has more than one region of the sector map, and a last one that is cut short. The root ends
// where most requests go.
const (
	rigSize  = 5<<20 + 3*sector
	rootSize = 4<<20 + 300<<10 + 777
)

// rigConfig says how a rig differs from the usual one.
type rigConfig struct {
	seed       uint64
	asyncRoot  bool
	sizeBytes  int64 // of the device
	storeBytes int64
	cacheBytes int64
	noVerify   bool
	fullWait   time.Duration
	notify     func(SpaceEvent)
	maxIO      int
	depth      int
}

func newRig(t testing.TB, seed uint64, asyncRoot bool) *rig {
	t.Helper()
	return newRigOf(t, rigConfig{seed: seed, asyncRoot: asyncRoot})
}

func newRigOf(t testing.TB, c rigConfig) *rig {
	t.Helper()
	if c.sizeBytes == 0 {
		c.sizeBytes = rigSize
	}
	disk, err := ublktest.NewDisk("leaf", max(c.storeBytes, MinStoreBytes))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := formatDisk("leaf", disk, FormatOptions{CacheBytes: c.cacheBytes}); err != nil {
		t.Fatal(err)
	}
	base := &memBase{content: make([]byte, rootSize)}
	rng := rand.New(rand.NewPCG(c.seed, 99))
	for i := 0; i < len(base.content); i += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], rng.Uint64())
		copy(base.content[i:], word[:])
	}
	if !c.asyncRoot {
		base.disk, err = ublktest.NewDisk("root", rootSize)
		if err != nil {
			t.Fatal(err)
		}
		copy(base.disk.Bytes(), base.content)
		t.Cleanup(func() { base.disk.Close() })
	}
	r := &rig{t: t, seed: c.seed, disk: disk, base: base, run: runDir(t), size: c.sizeBytes, queue: 1 + int(c.seed%2), noVerify: c.noVerify,
		fullWait: c.fullWait, notify: c.notify, maxIO: c.maxIO, depth: c.depth}
	r.open()
	return r
}

// seeds is how many seeds a test tries: fewer in short runs, which the race detector makes slow.
func seeds(n uint64) uint64 {
	if testing.Short() {
		return max(1, n/10)
	}
	return n
}

// mustFlatten builds the views that are missing.
func mustFlatten(t interface{ Fatalf(format string, a ...any) }, s *Store) {
	if err := s.flatten(); err != nil {
		t.Fatalf("flatten: %v", err)
	}
}

// runDir is on tmpfs where there is one, as it is in use.
func runDir(t testing.TB) string {
	t.Helper()
	var st unix.Statfs_t
	if unix.Statfs("/dev/shm", &st) != nil || st.Type != unix.TMPFS_MAGIC {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "coppice-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (r *rig) open() {
	r.t.Helper()
	r.disk.RequireAlignment(sector)
	var err error
	r.store, err = openOn("leaf", r.disk, r.options())
	if err != nil {
		r.t.Fatalf("seed %d: open: %v", r.seed, err)
	}
	base := r.rootOf("web1")
	r.layer, err = r.store.OpenLayer("web1", LayerOptions{Create: true, Pin: rootPin(base), SizeBytes: r.size})
	if err != nil {
		r.t.Fatal(err)
	}
	r.dev, err = NewDevice(r.layer, base, DeviceOptions{NoVerify: r.noVerify})
	if err != nil {
		r.t.Fatal(err)
	}
	r.serve()
}

// rootOf is the root that a layer needs, if any; for a layer that is not there it is the rig's.
func (r *rig) rootOf(layer string) Base {
	if l := r.store.layers[layer]; l != nil && l.entry.Pin.Kind == PinNone {
		return nil
	}
	return r.base
}

// loseRoot makes every later read of the root fail or return something else.
func (r *rig) loseRoot() {
	r.base.gone.Store(true)
	if r.base.disk != nil {
		clear(r.base.disk.Bytes())
	}
}

// serve makes a simulator that serves the device.
func (r *rig) serve() {
	r.t.Helper()
	r.sim = ublktest.NewSim(ublktest.SimConfig{Seed: r.seed})
	r.sim.AddDisk(r.disk)
	if r.base.disk != nil {
		r.sim.AddDisk(r.base.disk)
	}
	var err error
	r.block, err = r.sim.NewDevice(r.dev, ublktest.DeviceConfig{
		SizeBytes: r.size, Queues: r.queue, Depth: max(r.depth, 8), MaxIO: max(r.maxIO, 64<<10),
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// close shuts the store as a daemon does.
func (r *rig) close() {
	r.t.Helper()
	if err := r.block.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.layer.Release()
	if r.store.stopped != nil { // it looks at the disk
		r.stopWork()
	}
	disk := r.store.disk
	r.store.disk = keepOpen{r.disk}
	if err := r.store.Close(); err != nil {
		r.t.Fatalf("seed %d: close store: %v", r.seed, err)
	}
	r.store.disk = disk
}

// keepOpen leaves the disk for the next life of the store.
type keepOpen struct{ *ublktest.Disk }

func (keepOpen) Close() error { return nil }

// abandon forgets the store as the death of a process does; what it had executed stays.
func (r *rig) abandon() {
	r.t.Helper()
	r.sim.Halt()
	if err := r.block.Close(); err != nil {
		r.t.Fatal(err)
	}
	if err := r.store.pending.close(); err != nil {
		r.t.Fatal(err)
	}
}

// powerCut leaves of the disk some of what was not flushed, and forgets the tmpfs.
func (r *rig) powerCut(rng *rand.Rand) {
	r.t.Helper()
	r.abandon()
	r.cutDisk(rng)
}

// cutDisk makes of the disk what a power cut may leave of it, and reboots.
func (r *rig) cutDisk(rng *rand.Rand) {
	r.t.Helper()
	if rng.IntN(4) != 0 {
		r.disk.CutSome(rng)
	} else if err := shear(r.disk, rng); err != nil {
		r.t.Fatal(err)
	}
	r.reboot()
}

// reboot forgets the tmpfs.
func (r *rig) reboot() {
	r.t.Helper()
	r.boot = uuid.New()
	if err := os.RemoveAll(filepath.Join(r.run, "stores")); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) options() StoreOptions {
	return StoreOptions{RunDir: r.run, boot: r.boot, FullWait: r.fullWait, Notify: r.notify}
}

// shear cuts the power of a disk that does not even write sectors whole: of some writes that no flush covered it leaves neither the
// old content nor the new one.
func shear(d *ublktest.Disk, rng *rand.Rand) error {
	writes := d.Volatile()
	d.Cut(func(int, int) bool { return false })
	for _, w := range writes {
		p := w.Data
		switch rng.IntN(3) {
		case 0:
			continue
		case 1:
			p = make([]byte, len(w.Data))
			fill(p, rng.Uint64())
		}
		if _, err := d.WriteAt(p, w.Off); err != nil {
			return err
		}
	}
	return d.Sync()
}

// ending is how the life of a process ends.
type ending int

const (
	endClosed ending = iota // as a daemon ends
	endKilled
	endCut // of the power
	endings
)

// next ends the life of the process, and begins another.
func (r *rig) next(how ending, rng *rand.Rand) {
	r.t.Helper()
	switch how {
	case endClosed:
		r.idle()
		r.close()
		r.check()
	case endKilled:
		r.abandon()
	default:
		r.powerCut(rng)
	}
	r.open()
}

// shut ends it for good.
func (r *rig) shut() {
	r.t.Helper()
	r.close()
	r.check()
	if err := r.disk.Close(); err != nil {
		r.t.Error(err)
	}
}

// committing tells whether a commit is under way.
func committing(s *Store) bool {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return s.log.committing
}

// calm ends the commit that a request leads: a blocking call would wait for it, in the thread that serves it.
func calm(t reporter, s *Store, sim *ublktest.Sim) {
	t.Helper()
	for committing(s) {
		if !sim.Step() {
			t.Fatalf("a commit does not end")
		}
	}
}

// checkpoint makes one beside requests in flight.
func (r *rig) checkpoint() error {
	if r.store.stopped != nil { // which may lead commits too
		return r.beside(r.store.Checkpoint)
	}
	calm(r.t, r.store, r.sim)
	return r.store.Checkpoint()
}

// check runs the checker over the disk as it is.
func (r *rig) check() {
	r.t.Helper()
	rep, err := checkDisk("leaf", r.disk, CheckOptions{})
	if err != nil {
		r.t.Fatalf("seed %d: check: %v", r.seed, err)
	}
	for _, p := range rep.Problems {
		if !p.Repairable {
			r.t.Errorf("seed %d: %v", r.seed, p)
		}
	}
}

// oracle knows the values that each sector may have. Every write stamps its sectors with a number of its
// own; 0 is zeros, and rootStamp+n is sector n of the root.
type oracle struct {
	history [][]uint64 // by sector, in order of submission
	acked   []int      // index in history of the newest value that was acknowledged
	floor   []int      // index of the oldest value that may be found after a power cut
	busy    []bool     // a request that changes the sector is in flight
	stamp   uint64

	failing      bool             // requests may fail
	acknowledged func(flush bool) // a request was that changes content, or, if flush, asked for a flush, if not nil
}

// ended tells whether a request was acknowledged. One that failed may have happened or not.
func (o *oracle) ended(r *rig, errno syscall.Errno, d ublk.Descriptor) bool {
	if errno != 0 {
		if !o.failing {
			r.t.Errorf("seed %d: op %d at %d: %v", r.seed, d.Op, d.Off, errno)
		}
		return false
	}
	if o.acknowledged != nil {
		o.acknowledged(d.FUA || d.Op == ublk.OpFlush)
	}
	return true
}

const rootStamp = 1 << 60

func newOracle(r *rig) *oracle {
	n := int(r.size / sector)
	o := &oracle{history: make([][]uint64, n), acked: make([]int, n), floor: make([]int, n), busy: make([]bool, n)}
	for s := range o.history {
		o.history[s] = []uint64{rootStamp + uint64(s)}
	}
	return o
}

// matches tells whether p is the sector s with the value.
func (o *oracle) matches(r *rig, s int, value uint64, p []byte) bool {
	var want [sector]byte
	switch {
	case value == 0:
	case value >= rootStamp:
		if off := s * sector; off < len(r.base.content) {
			copy(want[:], r.base.content[off:])
		}
	default:
		fill(want[:], value)
	}
	return bytes.Equal(p, want[:])
}

func fill(p []byte, stamp uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], stamp*0x9e3779b97f4a7c15+uint64(i))
	}
}

// settle reads the whole device, demands that each sector has a value of those that legal allows, and makes it the
// only one from then on.
func (o *oracle) settle(r *rig, legal func(s, i int) bool) {
	r.t.Helper()
	got := make([]byte, r.size)
	const step = 64 << 10
	for off := int64(0); off < r.size; off += step {
		end := min(off+step, r.size)
		if _, err := r.block.ReadAt(got[off:end], off); err != nil {
			r.t.Fatalf("seed %d: read at %d: %v", r.seed, off, err)
		}
	}
	for s := range o.history {
		p := got[s*sector : (s+1)*sector]
		found := -1
		for i := len(o.history[s]) - 1; i >= 0; i-- {
			if legal(s, i) && o.matches(r, s, o.history[s][i], p) {
				found = i
				break
			}
		}
		if found < 0 {
			r.t.Fatalf("seed %d: sector %d has none of its legal values; history %v, acknowledged %d, floor %d, begins %x",
				r.seed, s, o.history[s], o.acked[s], o.floor[s], p[:16])
		}
		o.history[s] = []uint64{o.history[s][found]}
		o.acked[s], o.floor[s], o.busy[s] = 0, 0, false
	}
}

// settleAfter is settle with what an end of the process leaves legal.
func (o *oracle) settleAfter(r *rig, how ending) {
	r.t.Helper()
	o.settle(r, func(s, i int) bool {
		switch how {
		case endClosed:
			return i == o.acked[s]
		case endKilled:
			return i >= o.acked[s]
		}
		return i >= o.floor[s]
	})
}

// submit starts a random request that touches no sector that another in flight changes.
func (o *oracle) submit(r *rig, rng *rand.Rand) {
	n := len(o.history)
	first := rng.IntN(n)
	if hot := min(n, 2048); rng.IntN(4) != 0 { // on both sides of the border of two regions
		first = max(0, min(n, 9<<10)-hot) + rng.IntN(hot)
	}
	count := 1 + rng.IntN(24)
	if rng.IntN(2) == 0 { // whole blocks
		first &^= 7
		count = (count + 7) &^ 7
	}
	count = min(count, n-first)
	free := true
	for s := first; s < first+count; s++ {
		free = free && !o.busy[s]
	}
	d := ublk.Descriptor{Off: int64(first) * sector, Len: int64(count) * sector}
	switch k := rng.IntN(20); {
	case k < 11 && free:
		d.Op, d.FUA = ublk.OpWrite, k == 0
		o.stamp++
		o.change(r, d, first, count, o.stamp)
	case k < 14 && free:
		d.Op = ublk.OpDiscard
		if k == 12 {
			d.Op = ublk.OpWriteZeroes
		}
		o.change(r, d, first, count, 0)
	case k < 17:
		o.flush(r)
	default:
		if free {
			o.read(r, d, first)
		}
	}
}

// discardMuch discards several MiB, when nothing is in flight that could overlap.
func (o *oracle) discardMuch(r *rig, rng *rand.Rand) {
	r.t.Helper()
	if err := r.sim.Run(); err != nil {
		r.t.Fatalf("seed %d: %v", r.seed, err)
	}
	n := len(o.history)
	first := rng.IntN(n / 2)
	if rng.IntN(2) == 0 { // whole blocks
		first &^= 7
	}
	if rng.IntN(4) == 0 { // from the first region on
		first = 0
	}
	count := n - first
	if rng.IntN(3) != 0 {
		count = 1 + rng.IntN(count)
	}
	o.change(r, ublk.Descriptor{Op: ublk.OpDiscard, Off: int64(first) * sector, Len: int64(count) * sector}, first, count, 0)
}

func (o *oracle) change(r *rig, d ublk.Descriptor, first, count int, value uint64) {
	var data []byte
	if d.Op == ublk.OpWrite {
		data = make([]byte, d.Len)
		for i := range count {
			fill(data[i*sector:(i+1)*sector], value)
		}
	}
	at := make([]int, count)
	for i := range count {
		s := first + i
		o.busy[s] = true
		at[i] = len(o.history[s])
		o.history[s] = append(o.history[s], value)
	}
	r.block.Submit(d, data, func(errno syscall.Errno, _ []byte) {
		ok := o.ended(r, errno, d)
		for i := range count {
			s := first + i
			o.busy[s] = false
			if !ok {
				continue
			}
			o.acked[s] = at[i]
			if d.FUA {
				o.floor[s] = max(o.floor[s], at[i])
			}
		}
	})
}

func (o *oracle) flush(r *rig) {
	covered := append([]int(nil), o.acked...)
	d := ublk.Descriptor{Op: ublk.OpFlush}
	r.block.Submit(d, nil, func(errno syscall.Errno, _ []byte) {
		if !o.ended(r, errno, d) {
			return
		}
		for s := range covered {
			o.floor[s] = max(o.floor[s], covered[s])
		}
	})
}

func (o *oracle) read(r *rig, d ublk.Descriptor, first int) {
	d.Op = ublk.OpRead
	low := append([]int(nil), o.acked[first:first+int(d.Len/sector)]...)
	r.block.Submit(d, nil, func(errno syscall.Errno, data []byte) {
		if errno != 0 {
			if !o.failing {
				r.t.Errorf("seed %d: read at %d: %v", r.seed, d.Off, errno)
			}
			return
		}
		for i, from := range low {
			s := first + i
			ok := false
			for v := from; v < len(o.history[s]); v++ {
				ok = ok || o.matches(r, s, o.history[s][v], data[i*sector:(i+1)*sector])
			}
			if !ok {
				r.t.Errorf("seed %d: read of sector %d is none of %v", r.seed, s, o.history[s][from:])
				return
			}
		}
	})
}

// Died gives the memory back that a process which ends gives back by itself: the simulator lives on, through a million of them.
func (d *Device) Died(uq *ublk.Queue) {
	if err := unix.Munmap(uq.Local().(*queue).scratch); err != nil {
		panic(err)
	}
}
