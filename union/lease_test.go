package union

import (
	"bytes"
	"encoding/hex"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

var nodeA, nodeB, nodeC = uuid.UUID{0: 0xa, 15: 1}, uuid.UUID{0: 0xb, 15: 2}, uuid.UUID{0: 0xc, 15: 3}

func exampleLease() lease {
	return lease{
		UUID: testUUID, State: leaseHeld, Generation: 0x0102030405060708, Heartbeat: 0x1112131415161718, Duration: 90 * time.Second,
		Since: 1700000000, Node: nodeA, Boot: nodeB, Token: nodeC, PID: 0x21222324, Host: "store-1.example",
	}
}

// TestLeaseBytes holds the block of a lease to what is written here.
func TestLeaseBytes(t *testing.T) {
	l := exampleLease()
	p := make([]byte, blockSize)
	l.encode(p)
	const want = "434f50504c454153" + "0100" + "01" + "0f"
	if got := hex.EncodeToString(p[:12]); got != want {
		t.Errorf("begins %s, want %s", got, want)
	}
	const rest = "0807060504030201" + "1817161514131211" + "0004246bf4140000" // generation, heartbeat, duration
	if got := hex.EncodeToString(p[32:56]); got[:32] != rest[:32] || le.Uint64(p[48:]) != uint64(l.Duration) {
		t.Errorf("at 32: %s, want %s", got, rest)
	}
	if hex.EncodeToString(p[56:64]) != "00f1536500000000" || hex.EncodeToString(p[112:116]) != "24232221" || string(p[116:131]) != l.Host {
		t.Errorf("at 56: %x; at 112: %x", p[56:64], p[112:140])
	}
	if !bytes.Equal(p[16:32], testUUID[:]) || !bytes.Equal(p[64:80], nodeA[:]) || !bytes.Equal(p[80:96], nodeB[:]) || !bytes.Equal(p[96:112], nodeC[:]) {
		t.Errorf("identities %x", p[16:112])
	}
	var back lease
	if err := back.decode(p, testUUID); err != nil || back != l {
		t.Errorf("decoded %+v %v", back, err)
	}
	if !isZero(p[180:]) {
		t.Error("not zero to the end")
	}
}

// TestLeaseFlips flips each bit: an error, or the same lease.
func TestLeaseFlips(t *testing.T) {
	want := exampleLease()
	p := make([]byte, blockSize)
	want.encode(p)
	for i := range p {
		for bit := range 8 {
			p[i] ^= 1 << bit
			var got lease
			if err := got.decode(p, testUUID); err == nil && got != want {
				t.Errorf("bit %d of byte %d flipped: %+v", bit, i, got)
			}
			p[i] ^= 1 << bit
		}
	}
	var none lease
	if err := none.decode(make([]byte, blockSize), testUUID); err != nil || none.Generation != 0 || none.State != leaseFree {
		t.Errorf("zeros: %+v %v", none, err)
	}
	if err := none.decode(p, otherUUID); err != nil || none.Generation != 0 {
		t.Errorf("the lease of another store: %+v %v", none, err)
	}
}

func FuzzLease(f *testing.F) {
	l := exampleLease()
	p := make([]byte, blockSize)
	l.encode(p)
	f.Add(p)
	f.Fuzz(func(t *testing.T, b []byte) {
		q := make([]byte, blockSize)
		copy(q, b)
		le.PutUint32(q[leaseSumField:], blockChecksum(q, leaseSumField))
		var l lease
		if l.decode(q, testUUID) == nil && (l.State > leaseTaking || len(l.Host) > maxHostName || l.Duration < 0 || l.Duration > maxLease) {
			t.Errorf("%+v", l)
		}
	})
}

// leaseTap counts the writes to everything but the lease, and notes when the last one was.
type leaseTap struct {
	*ublktest.Disk
	writes atomic.Int64
	stuck  atomic.Bool // the lease cannot be read or written
}

func (d *leaseTap) WriteAt(p []byte, off int64) (int, error) {
	if off == leaseBlock<<blockShift {
		if d.stuck.Load() {
			return 0, errStuck
		}
	} else {
		d.writes.Add(1)
	}
	return d.Disk.WriteAt(p, off)
}

func (d *leaseTap) ReadAt(p []byte, off int64) (int, error) {
	if off == leaseBlock<<blockShift && d.stuck.Load() {
		return 0, errStuck
	}
	return d.Disk.ReadAt(p, off)
}

func (*leaseTap) Close() error { return nil }

var errStuck = errors.New("the way to the storage is lost")

const (
	testLease = 600 * time.Millisecond
	testRace  = testLease / leaseSettle
)

func leased(node uuid.UUID) StoreOptions {
	return StoreOptions{claim: true, boot: uuid.New(), Lease: LeaseOptions{Duration: testLease, Node: node, race: testRace}}
}

// claimed opens a store on a disk as a node, with its background work.
func claimed(t *testing.T, d disk, node uuid.UUID) *Store {
	t.Helper()
	return claimedAs(t, d, leased(node))
}

func claimedAs(t *testing.T, d disk, o StoreOptions) *Store {
	t.Helper()
	s, err := openOn("leaf", d, o)
	if err != nil {
		t.Fatal(err)
	}
	s.stopped = make(chan struct{})
	go s.background()
	return s
}

func leaseDisk(t *testing.T) *ublktest.Disk {
	t.Helper()
	disk, err := ublktest.NewDisk("leaf", MinStoreBytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	if _, err := formatDisk("leaf", disk, FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	return disk
}

func giveUp(t *testing.T, s *Store) {
	t.Helper()
	close(s.stop)
	<-s.stopped
	s.fence.end()
	if err := s.pending.close(); err != nil {
		t.Fatal(err)
	}
}

// TestLeaseKeepsOthersOut has two nodes want one store: the second is told who has it, gets it after an orderly close, and each time the
// generation grows. The same node gets it at once after a crash.
func TestLeaseKeepsOthersOut(t *testing.T) {
	t.Parallel()
	disk := leaseDisk(t)
	a := claimed(t, &leaseTap{Disk: disk}, nodeA)
	if _, err := openOn("leaf", disk, leased(nodeB)); !errors.Is(err, ErrLeased) {
		t.Fatalf("second node: %v", err)
	}
	ro, err := openOn("leaf", disk, StoreOptions{ReadOnly: true})
	if err != nil || ro.Info().Lease == nil || ro.Info().Lease.State != "held" || ro.Info().Lease.Node != nodeA.String() {
		t.Errorf("read-only: %v", err)
	}
	time.Sleep(testLease * 3 / 2) // it is renewed
	if info := a.Info(); info.Failed || info.Fenced != "" || info.Lease.Generation != 1 {
		t.Errorf("after a while %+v", info.Lease)
	}
	if _, err := breakLease(disk, LeaseOptions{Node: nodeA}, nil); err != nil {
		t.Errorf("break: %v", err)
	}
	if info := a.Info(); !info.Failed || info.Fenced == "" {
		t.Error("the holder did not notice")
	}
	giveUp(t, a)
	b := claimed(t, &leaseTap{Disk: disk}, nodeB)
	if got := b.Info().Lease; got.Generation != 3 {
		t.Errorf("generation %d", got.Generation)
	}
	giveUp(t, b) // as a crash
	began := time.Now()
	b = claimed(t, &leaseTap{Disk: disk}, nodeB)
	if took := time.Since(began); took > leaseSettle*testRace {
		t.Logf("the same node had to wait for %v", took)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err := readLease(disk, b.UUID()); err != nil || l.State != leaseFree || l.Generation != 4 {
		t.Errorf("after a close %+v %v", l, err)
	}
	if _, err := breakLease(disk, LeaseOptions{}, nil); !errors.Is(err, ErrNotLeased) {
		t.Errorf("break a free lease: %v", err)
	}
	c := claimed(t, &leaseTap{Disk: disk}, nodeC)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// slowLease is a disk that takes long for the lease; once calls what happens before the first write of it.
type slowLease struct {
	*ublktest.Disk
	once func()
}

func (d *slowLease) WriteAt(p []byte, off int64) (int, error) {
	if off == leaseBlock<<blockShift {
		if once := d.once; once != nil {
			d.once = nil
			once()
		}
		time.Sleep(300 * time.Millisecond)
	}
	return d.Disk.WriteAt(p, off)
}

func (*slowLease) Close() error { return nil }

// TestLeaseOnSlowStorage writes the lease too slowly to be sure that no other node took it meanwhile. A node that found it its own goes on at once; one
// that found it free waits until the other has noticed.
func TestLeaseOnSlowStorage(t *testing.T) {
	t.Parallel()
	disk := leaseDisk(t)
	o := LeaseOptions{Duration: 2 * time.Second, Node: nodeA, race: 250 * time.Millisecond}
	crashed, err := takeLease(disk, testUUID, o)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	again, err := takeLease(&slowLease{Disk: disk}, testUUID, o)
	if err != nil || !again.open() || again.mine.Generation != crashed.mine.Generation+1 {
		t.Errorf("the same node after a crash: %v", err)
	}
	if took := time.Since(began); took > o.Duration {
		t.Errorf("the same node had to wait for %v", took)
	}
	if err := crashed.renew(); !errors.Is(err, ErrFenced) {
		t.Errorf("the one that crashed could go on: %v", err)
	}
	if err := again.release(); err != nil {
		t.Fatal(err)
	}
	var other *fence
	slow := &slowLease{Disk: disk, once: func() {
		other, err = takeLease(disk, testUUID, LeaseOptions{Duration: o.Duration, Node: nodeB, race: o.race})
	}}
	mine, slowErr := takeLease(slow, testUUID, o)
	if err != nil || slowErr != nil {
		t.Fatalf("two at the same time: %v, %v", err, slowErr)
	}
	if !mine.open() || other.open() {
		t.Errorf("both hold it: %v, %v", mine.open(), other.open())
	}
}

// deadLease is a slow disk whose process dies when its first write of the lease has arrived.
type deadLease struct {
	slowLease
	arrived chan struct{}
	writes  int
}

func (d *deadLease) WriteAt(p []byte, off int64) (int, error) {
	if d.writes++; d.writes > 1 {
		return 0, errStuck
	}
	n, err := d.slowLease.WriteAt(p, off)
	close(d.arrived)
	return n, err
}

// TestLeaseAfterDeathInTheWait has a node write a free lease so slowly that another node, which has taken it meanwhile, loses it without knowing,
// and die before the other has noticed. Its successor must wait as it would have.
func TestLeaseAfterDeathInTheWait(t *testing.T) {
	t.Parallel()
	disk := leaseDisk(t)
	o := LeaseOptions{Duration: 2 * time.Second, Node: nodeA, race: 250 * time.Millisecond}
	var other *fence
	var err error
	dead := &deadLease{arrived: make(chan struct{}), slowLease: slowLease{Disk: disk, once: func() {
		other, err = takeLease(disk, testUUID, LeaseOptions{Duration: o.Duration, Node: nodeB, race: o.race})
	}}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = takeLease(dead, testUUID, o)
	}()
	<-dead.arrived
	if err != nil || !other.open() {
		t.Fatalf("the other node: %v", err)
	}
	again, err := takeLease(disk, testUUID, o)
	if err != nil || !again.open() || other.open() {
		t.Errorf("the successor: %v; both hold it: %v, %v", err, again != nil && again.open(), other.open())
	}
	if err := other.renew(); !errors.Is(err, ErrFenced) {
		t.Errorf("the other node could go on: %v", err)
	}
	<-ended
}

// TestFencedStoreWritesNothing breaks the lease of a store under load, which may or may not be able to see that. From when the time is over, no
// write of any kind is submitted; the new holder finds everything that was flushed.
func TestFencedStoreWritesNothing(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]bool{"seen": false, "not to be reached": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRigOf(t, rigConfig{seed: 2})
			r.close() // for a store with a lease
			tap := &leaseTap{Disk: r.disk}
			o := leased(nodeA)
			o.RunDir = r.run
			var err error
			if r.store, err = openOn("leaf", tap, o); err != nil {
				t.Fatal(err)
			}
			r.work()
			if r.layer, err = r.store.OpenLayer("web1", LayerOptions{Pin: r.base.Pin(), SizeBytes: r.size}); err != nil {
				t.Fatal(err)
			}
			if r.dev, err = NewDevice(r.layer, r.base, DeviceOptions{}); err != nil {
				t.Fatal(err)
			}
			r.serve()
			var ring atomic.Int64
			r.sim.Hook = func(e ublktest.Event) {
				if e.Kind != ublktest.Read && e.Disk == r.disk && !e.After {
					ring.Add(1)
				}
			}
			for b := range 20 {
				r.mustWrite(b, uint64(b+1))
			}
			if err := r.block.Flush(); err != nil {
				t.Fatal(err)
			}
			tap.stuck.Store(cut)
			broken := make(chan error, 1)
			go func() { _, err := breakLease(r.disk, LeaseOptions{Node: nodeB}, nil); broken <- err }()
			wrote := 0
			for done := false; !done; {
				select {
				case err := <-broken:
					if err != nil {
						t.Fatal(err)
					}
					done = true
				default:
					a := r.begin(writeOf(100+wrote%50, 1), 9)
					f := r.begin(ublk.Descriptor{Op: ublk.OpFlush}, 0)
					r.until("an answer", func() bool { return a.done && f.done })
					if a.errno == 0 && f.errno == 0 {
						wrote++
					}
					time.Sleep(time.Millisecond)
				}
			}
			// From here on the new holder may write.
			before, beforeRing := tap.writes.Load(), ring.Load()
			for what, d := range map[string]ublk.Descriptor{
				"write": writeOf(3, 2), "flush": {Op: ublk.OpFlush}, "discard": {Op: ublk.OpDiscard, Off: 0, Len: blockSize},
				"part": {Op: ublk.OpWrite, Off: sector, Len: sector},
			} {
				a := &answer{}
				r.block.Submit(d, make([]byte, d.Len), func(e syscall.Errno, _ []byte) { a.done, a.errno = true, e })
				r.until(what, func() bool { return a.done })
				if a.errno == 0 {
					t.Errorf("%s of a fenced store was acknowledged", what)
				}
			}
			_, grown := r.store.Grow(MinStoreBytes + 1<<20)
			_, quota := r.layer.SetQuota(1 << 20)
			if r.checkpoint() == nil || grown == nil || quota == nil {
				t.Errorf("checkpoint, grow %v, quota %v", grown, quota)
			}
			if info := r.store.Info(); !info.Failed || info.Fenced == "" {
				t.Errorf("failed %v, fenced %q", info.Failed, info.Fenced)
			}
			b := claimed(t, &leaseTap{Disk: r.disk}, nodeB) // not in order: the first has its run directory, this one none
			time.Sleep(testLease)
			if got := tap.writes.Load() - before; got != 0 {
				t.Errorf("%d writes to the store after it was fenced", got)
			}
			if got := ring.Load() - beforeRing; got != 0 {
				t.Errorf("%d writes and flushes through the ring after it was fenced", got)
			}
			if wrote == 0 {
				t.Error("nothing was written before")
			}
			r.stopWork()
			r.fenceEnd()
			l, err := b.OpenLayer("web1", LayerOptions{Pin: r.base.Pin(), SizeBytes: r.size})
			if err != nil {
				t.Fatal(err)
			}
			maps, sums := make([]mapping, 20), make([]uint32, 20)
			if err := l.resolve(0, maps, sums); err != nil {
				t.Fatal(err)
			}
			p, want := alignedBuffer(blockSize), make([]byte, blockSize)
			for i, m := range maps {
				fill(want, uint64(i+1))
				if _, err := r.disk.ReadAt(p, b.sb.slotOffset(m.slot())); err != nil || !m.isData() || !bytes.Equal(p, want) {
					t.Errorf("block %d: %v %v", i, m, err)
				}
			}
			l.Release()
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func (r *rig) fenceEnd() {
	r.store.fence.end()
	r.sim.Halt()
	if err := errors.Join(r.block.Close(), r.store.pending.close()); err != nil {
		r.t.Error(err)
	}
}

// TestOneTakerWins has many nodes take a free lease at the same moment, and in turn: never do two hold it.
func TestOneTakerWins(t *testing.T) {
	t.Parallel()
	disk := leaseDisk(t)
	sb, err := readSuperblock(disk)
	if err != nil {
		t.Fatal(err)
	}
	id := sb.UUID
	for round := range 3 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []*fence
		for i := range 6 {
			wg.Go(func() {
				time.Sleep(time.Duration(i*round) * 3 * time.Millisecond)
				f, err := takeLease(disk, id, LeaseOptions{Duration: 5 * time.Second, Node: uuid.UUID{0: byte(i + 1)}, race: 250 * time.Millisecond})
				if err == nil {
					mu.Lock()
					won = append(won, f)
					mu.Unlock()
				} else if !errors.Is(err, ErrLeased) && !errors.Is(err, ErrFenced) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		// Who took it as its last owner looks again before the others may go on.
		open := 0
		for _, f := range won {
			if f.renew() == nil && f.open() {
				open++
			}
		}
		if open > 1 {
			t.Fatalf("round %d: %d nodes hold the lease", round, open)
		}
		l, err := readLease(disk, id)
		if err != nil {
			t.Fatal(err)
		}
		l.State = leaseFree
		if err := l.write(disk); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLeaseTimesOut cuts a store off from its lease: it fails by itself when the time is over, and not before.
func TestLeaseTimesOut(t *testing.T) {
	t.Parallel()
	tap := &leaseTap{Disk: leaseDisk(t)}
	synctest.Test(t, func(t *testing.T) {
		const lasts = time.Hour // of the bubble's clock. The one that goes on while a machine is suspended goes on outside: it must not matter.
		o := leased(nodeA)
		o.Lease.Duration = lasts
		s := claimedAs(t, tap, o)
		time.Sleep(lasts)
		began := time.Now()
		tap.stuck.Store(true)
		for info := s.Info(); info.Fenced == "" || !info.Failed; info = s.Info() {
			if time.Since(began) > lasts+2*time.Second {
				t.Fatal("it goes on without its lease")
			}
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took < lasts/2 {
			t.Errorf("fenced after %v", took)
		}
		if s.fence.open() || s.commit() == nil && !s.Info().Failed {
			t.Error("it still writes")
		}
		giveUp(t, s)
	})
}

// TestFormatAndLease refuses to format a store that another node holds.
func TestFormatAndLease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leaf")
	if _, err := Format(path, FormatOptions{SizeBytes: MinStoreBytes}); err != nil {
		t.Fatal(err)
	}
	s, err := OpenStore(path, StoreOptions{Lease: LeaseOptions{Node: nodeA, race: testRace}})
	if err != nil {
		t.Fatal(err)
	}
	if l := s.Info().Lease; l == nil || l.DurationSeconds != DefaultLease.Seconds() {
		t.Errorf("%+v", l)
	}
	giveUp(t, s)
	if err := s.disk.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Format(path, FormatOptions{Force: true}); !errors.Is(err, ErrLeased) {
		t.Errorf("format of a store that another node holds: %v", err)
	}
	if _, err := OpenStore(path, StoreOptions{Lease: LeaseOptions{Node: nodeB}}); !errors.Is(err, ErrLeased) {
		t.Errorf("open: %v", err)
	}
	copied, err := OpenStore(path, StoreOptions{NoLease: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := copied.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(path, StoreOptions{Lease: LeaseOptions{Duration: 2 * time.Hour}}); err == nil {
		t.Error("a lease of two hours")
	}
}

// TestExpiredLeaseStopsEveryPath has nobody who fails the store, as where the process did not get to run: the time alone keeps each path from writing.
func TestExpiredLeaseStopsEveryPath(t *testing.T) {
	t.Parallel()
	for what, path := range map[string]func(r *rig) error{
		"write": func(r *rig) error { return errnoOf(r.answerTo(writeOf(3, 2))) },
		"part": func(r *rig) error {
			return errnoOf(r.answerTo(ublk.Descriptor{Op: ublk.OpWrite, Off: sector, Len: sector}))
		},
		"FUA": func(r *rig) error {
			return errnoOf(r.answerTo(ublk.Descriptor{Op: ublk.OpWrite, FUA: true, Off: 0, Len: blockSize}))
		},
		"flush":      func(r *rig) error { return errnoOf(r.answerTo(ublk.Descriptor{Op: ublk.OpFlush})) },
		"commit":     func(r *rig) error { return errors.Join(r.store.commit(), r.store.fencedDiskTakes()) },
		"checkpoint": func(r *rig) error { return r.checkpoint() },
		"grow":       func(r *rig) error { _, err := r.store.Grow(MinStoreBytes + 1<<20); return err },
		"quota":      func(r *rig) error { _, err := r.layer.SetQuota(1 << 20); return err },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 2, false)
			r.mustWrite(1, 1) // not flushed
			tap := &leaseTap{Disk: r.disk}
			f, err := takeLease(tap, r.store.UUID(), LeaseOptions{Duration: testLease, Node: nodeA, race: testRace})
			if err != nil {
				t.Fatal(err)
			}
			r.store.fence, r.store.disk = f, fencedDisk{tap, f}
			f.until.Store(0)
			var ring atomic.Int64
			r.sim.Hook = func(e ublktest.Event) {
				if e.Kind != ublktest.Read && e.Disk == r.disk && !e.After {
					ring.Add(1)
				}
			}
			size := r.disk.Size()
			if err := path(r); err == nil {
				t.Error("it succeeded")
			}
			if tap.writes.Load() != 0 || ring.Load() != 0 || r.disk.Size() != size {
				t.Errorf("%d writes by goroutines, %d through the ring, %d bytes", tap.writes.Load(), ring.Load(), r.disk.Size())
			}
			r.abandon()
			r.disk.Close()
		})
	}
}

// answerTo carries a request out.
func (r *rig) answerTo(d ublk.Descriptor) syscall.Errno {
	r.t.Helper()
	a := &answer{}
	r.block.Submit(d, make([]byte, d.Len), func(e syscall.Errno, _ []byte) { a.done, a.errno = true, e })
	r.until("an answer", func() bool { return a.done })
	return a.errno
}

// fencedDiskTakes asks for a flush by a goroutine.
func (s *Store) fencedDiskTakes() error { return s.disk.Sync() }
