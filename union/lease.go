package union

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// A lease keeps two nodes from writing one store on storage that both reach, where no lock of one kernel can.
//
// The block of the lease says who holds it, with a generation that only grows. The holder reads it again every third of its
// duration, and writes it anew; it may write to the store only until one duration after the beginning of the last such read
// that found the lease its own. Then, or where it finds another owner, it is fenced: the store fails, and nothing more is submitted.
//
// Who wants the store from a node that is lost breaks the lease: he raises the generation and waits for one duration and a
// quarter. The holder's last good read began before that, so its time is over by then, whether or not it can be reached.
//
// Who takes a lease that was another node's last writes it, waits, and goes on if it is still his own. Who takes one that was his own node's, or the
// lease of a store which his own node formatted, goes on at once, and looks again after leaseRace. The two rules leave one winner at most of those who found the lease free at the same time: each writes within
// leaseRace of having read it. Where the storage is too slow for that he waits, as who breaks a lease does; who found it held by his own node
// need not, as nobody else could have taken it. Until it is known that he was fast enough, or he has waited, the lease says that it is being
// taken: a successor of his who finds that does not know how fast the write was, and waits.
//
// The limit: the check comes before a write is handed to the kernel. One that the kernel or the way to the storage holds up for longer than the
// quarter can land after the new holder began, and a virtual machine that is paused does not see its time pass. Against those
// only reservations of the storage itself help (SCSI-3 persistent reservations, NVMe reservations).
const (
	// DefaultLease is how long a lease lasts without being renewed. A third of it may pass before a renewal begins, so storage can stand still for
	// two thirds, longer than paths of iSCSI or NVMe over fabrics mostly take to fail over, before a store gives itself up.
	DefaultLease = time.Minute
	maxLease     = time.Hour

	leaseRace   = time.Second
	leaseSettle = 6 // times leaseRace
)

// Lease block, at block 24. A torn write cannot mix two: all fields lie in its first sector.
//
//	  0  8  magic "COPPLEAS"
//	  8  2  version of this block
//	 10  1  state: 0 free, 1 held, 2 being broken, 3 being taken
//	 11  1  length of the host name
//	 12  4  CRC-32C of the block
//	 16 16  UUID of the store
//	 32  8  generation, one more each time that somebody takes or breaks it
//	 40  8  heartbeat, one more at each renewal
//	 48  8  duration in nanoseconds
//	 56  8  since when it is held, Unix seconds
//	 64 16  node: the machine id
//	 80 16  boot id
//	 96 16  token of the opener, random
//	112  4  process id
//	116 64  host name
//	180     zero to the end
type lease struct {
	UUID       uuid.UUID
	State      leaseState
	Generation uint64
	Heartbeat  uint64
	Duration   time.Duration
	Since      int64
	Node, Boot uuid.UUID
	Token      uuid.UUID
	PID        uint32
	Host       string
}

type leaseState uint8

const (
	leaseFree leaseState = iota
	leaseHeld
	leaseBroken
	leaseTaking

	leaseBlock    = 24
	leaseVersion  = 1
	leaseSumField = 12
	maxHostName   = 64
)

var leaseMagic = [8]byte{'C', 'O', 'P', 'P', 'L', 'E', 'A', 'S'}

func (l *lease) encode(p []byte) {
	clear(p[:blockSize])
	copy(p, leaseMagic[:])
	le.PutUint16(p[8:], leaseVersion)
	p[10] = byte(l.State)
	p[11] = byte(copy(p[116:116+maxHostName], l.Host))
	copy(p[16:], l.UUID[:])
	le.PutUint64(p[32:], l.Generation)
	le.PutUint64(p[40:], l.Heartbeat)
	le.PutUint64(p[48:], uint64(l.Duration))
	le.PutUint64(p[56:], uint64(l.Since))
	copy(p[64:], l.Node[:])
	copy(p[80:], l.Boot[:])
	copy(p[96:], l.Token[:])
	le.PutUint32(p[112:], l.PID)
	le.PutUint32(p[leaseSumField:], blockChecksum(p, leaseSumField))
}

// decode reads the lease of a store. A block of zeros, or of another store, is a lease that nobody ever held.
func (l *lease) decode(p []byte, id uuid.UUID) error {
	*l = lease{UUID: id}
	off := int64(leaseBlock << blockShift)
	if isZero(p[:blockSize]) {
		return nil
	}
	switch {
	case !bytes.Equal(p[:8], leaseMagic[:]):
		return &CorruptError{"lease", off, "magic missing"}
	case blockChecksum(p, leaseSumField) != le.Uint32(p[leaseSumField:]):
		return &CorruptError{"lease", off, "checksum wrong"}
	case !bytes.Equal(p[16:32], id[:]):
		return nil
	case le.Uint16(p[8:]) != leaseVersion:
		return fmt.Errorf("lease of version %d, this program knows %d: %w", le.Uint16(p[8:]), leaseVersion, ErrVersion)
	}
	n := int(p[11])
	l.State = leaseState(p[10])
	l.Generation, l.Heartbeat = le.Uint64(p[32:]), le.Uint64(p[40:])
	l.Duration, l.Since = time.Duration(le.Uint64(p[48:])), int64(le.Uint64(p[56:]))
	copy(l.Node[:], p[64:])
	copy(l.Boot[:], p[80:])
	copy(l.Token[:], p[96:])
	l.PID = le.Uint32(p[112:])
	if l.State > leaseTaking || n > maxHostName || l.Duration < 0 || l.Duration > maxLease {
		return &CorruptError{"lease", off, "field out of range"}
	}
	l.Host = string(p[116 : 116+n])
	return nil
}

// LeaseOptions say how a store is claimed against other nodes.
type LeaseOptions struct {
	Duration time.Duration // 0: [DefaultLease]
	Node     uuid.UUID     // of this machine; zero: from /etc/machine-id

	race time.Duration // 0: leaseRace; all nodes have the same
}

// LeaseInfo tells who holds a store.
type LeaseInfo struct {
	State           string    `json:"state"` // free, held, breaking, taking
	Host            string    `json:"host,omitempty"`
	Node            string    `json:"node,omitempty"`
	PID             int       `json:"pid,omitempty"`
	Generation      uint64    `json:"generation"`
	DurationSeconds float64   `json:"duration_seconds,omitempty"`
	Since           time.Time `json:"since"`
}

func (l *lease) info() *LeaseInfo {
	if l.Generation == 0 {
		return nil
	}
	return &LeaseInfo{
		State: [...]string{"free", "held", "breaking", "taking"}[l.State], Host: l.Host, Node: l.Node.String(), PID: int(l.PID),
		Generation: l.Generation, DurationSeconds: l.Duration.Seconds(), Since: time.Unix(l.Since, 0).UTC(),
	}
}

// holder names who holds or last held it.
func (l *lease) holder() string {
	return fmt.Sprintf("node %q (machine %s, process %d) since %s", l.Host, l.Node, l.PID, time.Unix(l.Since, 0).UTC().Format(time.RFC3339))
}

func (o LeaseOptions) check() error {
	shortest := leaseSettle * o.atOnce() // or it would end before the first renewal
	if o.Duration != 0 && (o.Duration < shortest || o.Duration > maxLease) {
		return fmt.Errorf("a lease of %s: must be between %s and %s", o.Duration, shortest, maxLease)
	}
	return nil
}

// atOnce is how soon after reading the lease it must have been written.
func (o LeaseOptions) atOnce() time.Duration { return cmp.Or(o.race, leaseRace) }

// MachineID identifies this machine: by machine-id(5), or by what its firmware says. It is zero where neither is known.
func MachineID() uuid.UUID {
	for _, path := range []string{"/etc/machine-id", "/sys/class/dmi/id/product_uuid"} {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if id, err := uuid.Parse(strings.TrimSpace(string(b))); err == nil && id != uuid.Nil {
			return id
		}
	}
	return uuid.Nil
}

// fence is the part of a store that must not write once another node may.
type fence struct {
	disk  disk
	id    uuid.UUID
	mine  lease // as it was written last; the keeper's alone after take
	began time.Time

	until  atomic.Int64           // since began, ns: no write is submitted after it
	reason atomic.Pointer[string] // why it is over
	stop   chan struct{}
	ended  sync.WaitGroup
	expiry int64         // on CLOCK_BOOTTIME, ns; the keeper's
	race   time.Duration // see LeaseOptions
	info   LeaseInfo     // as it was taken
}

// newOwner describes this process as the holder of a lease.
func newOwner(id uuid.UUID, o LeaseOptions) (lease, error) {
	l := lease{UUID: id, Duration: o.Duration, Node: o.Node, PID: uint32(os.Getpid()), Since: time.Now().Unix()}
	if l.Duration == 0 {
		l.Duration = DefaultLease
	}
	var err error
	if l.Node == uuid.Nil {
		l.Node = MachineID()
	}
	if l.Boot, err = bootID(); err != nil {
		return l, fmt.Errorf("read boot id: %w", err)
	}
	if l.Host, err = os.Hostname(); err != nil {
		return l, fmt.Errorf("find host name: %w", err)
	}
	l.Host = l.Host[:min(len(l.Host), maxHostName)]
	_, err = rand.Read(l.Token[:])
	return l, err
}

func readLease(d disk, id uuid.UUID) (lease, error) {
	var l lease
	p := alignedBuffer(blockSize)
	if _, err := d.ReadAt(p, leaseBlock<<blockShift); err != nil {
		return l, fmt.Errorf("read lease: %w", err)
	}
	return l, l.decode(p, id)
}

func (l *lease) write(d disk) error {
	p := alignedBuffer(blockSize)
	l.encode(p)
	if _, err := d.WriteAt(p, leaseBlock<<blockShift); err != nil {
		return fmt.Errorf("write lease: %w", err)
	}
	if err := d.Sync(); err != nil {
		return fmt.Errorf("write lease: %w", err)
	}
	return nil
}

// refuse tells why a node may not take the lease, or nil.
func (l *lease) refuse(node uuid.UUID) error {
	switch {
	case (l.State == leaseHeld || l.State == leaseTaking) && l.Node != node:
		return fmt.Errorf("held by %s: %w", l.holder(), ErrLeased)
	case l.State == leaseBroken:
		return fmt.Errorf("its lease is being broken by %s: %w", l.holder(), ErrLeased)
	}
	return nil
}

// takeLease claims the store on d for this process. It waits only where the lease was another node's last, and where nobody knows whether
// another node has taken it meanwhile.
func takeLease(d disk, id uuid.UUID, o LeaseOptions) (*fence, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	mine, err := newOwner(id, o)
	if err != nil {
		return nil, err
	}
	race := o.atOnce()
	f := &fence{disk: d, id: id, race: race, began: time.Now(), stop: make(chan struct{})}
	have, err := readLease(d, id)
	if err != nil {
		return nil, err
	}
	if err := have.refuse(mine.Node); err != nil {
		return nil, err
	}
	if mine.Node == uuid.Nil { // a lease that this machine would not know again after a crash is of no use
		return nil, nil
	}
	mine.State, mine.Generation = leaseTaking, have.Generation+1
	if have.State == leaseHeld {
		// By this node: only who breaks it could come in between, and he waits for as long as for any renewal.
		mine.State = leaseHeld
	}
	if err := mine.write(d); err != nil {
		return nil, err
	}
	f.mine = mine
	took := time.Since(f.began)
	switch {
	case have.State == leaseHeld && took > race:
	case have.State == leaseHeld:
		return f.taken(f.extend(took, (leaseSettle-1)*race))
	case have.State == leaseTaking || took > race:
		f.outwait(have.Duration)
	case have.Node == mine.Node:
		looked := time.Since(f.began) // which finds it overwritten, or whoever read it free before is to wait from now on
		if err := f.renew(); err != nil {
			return nil, err
		}
		if time.Since(f.began) <= 2*race {
			return f.taken(f.extend(looked, (leaseSettle-1)*race))
		}
		f.outwait(have.Duration)
	default:
		time.Sleep(leaseSettle * race)
	}
	return f.taken(f.renew())
}

// outwait waits until whoever took the lease beside this process must have noticed that he has lost it.
func (f *fence) outwait(before time.Duration) {
	wait := max(f.mine.Duration, before)
	wait += wait / 4
	slog.Warn("another node may have taken the lease of a store while this one did, and lost it: waiting until that one must have noticed",
		"store", f.id, "seconds", wait.Seconds())
	time.Sleep(wait)
}

// taken returns the fence where nothing went wrong in the end.
func (f *fence) taken(err error) (*fence, error) {
	if err != nil {
		return nil, err
	}
	f.info = *f.mine.info()
	return f, nil
}

// bootTime is a clock that goes on while the machine is suspended.
func bootTime() (int64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return ts.Nano(), nil
}

// extend lets writes through for a time from when on.
func (f *fence) extend(from, duration time.Duration) error {
	now, err := bootTime()
	if err != nil {
		return err
	}
	f.expiry = now - int64(time.Since(f.began)-from) + int64(duration)
	f.until.Store(int64(from + duration))
	return nil
}

// expired tells whether the lease's time is over, suspensions included.
func (f *fence) expired() bool {
	now, err := bootTime()
	return err != nil || now >= f.expiry || int64(time.Since(f.began)) >= f.until.Load()
}

// renew looks whether the lease is still this process's, and writes it anew.
func (f *fence) renew() error {
	began := time.Since(f.began)
	have, err := readLease(f.disk, f.id)
	if err != nil {
		return err
	}
	if have.Generation != f.mine.Generation || have.Token != f.mine.Token || have.State != leaseHeld && have.State != leaseTaking {
		return fmt.Errorf("its lease is now generation %d, %s: %w", have.Generation, have.holder(), ErrFenced)
	}
	f.mine.State = leaseHeld
	f.mine.Heartbeat++
	if err := f.mine.write(f.disk); err != nil {
		return err
	}
	return f.extend(began, f.mine.Duration)
}

// open tells whether writes may be submitted now. It takes some 50 ns: one look at the clock, which does not go while the machine is
// suspended; the keeper's does, and closes the fence when it runs again.
func (f *fence) open() bool {
	return f == nil || f.reason.Load() == nil && int64(time.Since(f.began)) < f.until.Load()
}

// close ends all writing, for ever. The first reason counts.
func (f *fence) close(reason string) bool { return f.reason.CompareAndSwap(nil, &reason) }

// keep renews the lease until it is stopped, or lost. It looks at the clock every second, for suspensions.
func (f *fence) keep(lost func(reason string)) {
	defer f.ended.Done()
	due := time.Now().Add(f.race) // the first look is for others who took it at the same time
	last := errors.New("this process did not get to run")
	for {
		select {
		case <-f.stop:
			return
		case <-time.After(max(time.Millisecond, min(time.Second, time.Until(due)))):
		}
		var err error
		if !f.expired() {
			if time.Now().Before(due) {
				continue
			}
			err = f.renew()
		}
		switch {
		case errors.Is(err, ErrFenced):
			lost(err.Error())
			return
		case f.expired():
			lost(fmt.Sprintf("its lease could not be renewed in time: %v", last))
			return
		case err != nil: // and tried again until the time is over
			last = err
			due = time.Now().Add(f.mine.Duration / 20)
		default:
			due = time.Now().Add(f.mine.Duration / 3)
		}
	}
}

// end stops the renewals.
func (f *fence) end() {
	close(f.stop)
	f.ended.Wait()
}

// release gives the lease back, if it is still this process's.
func (f *fence) release() error {
	if !f.open() {
		return nil
	}
	have, err := readLease(f.disk, f.id)
	if err != nil || have.Generation != f.mine.Generation || have.Token != f.mine.Token {
		return err
	}
	f.mine.State = leaseFree
	return f.mine.write(f.disk)
}

// fencedDisk is a disk that takes no write and no flush once the fence is closed.
type fencedDisk struct {
	disk
	fence *fence
}

func (d fencedDisk) WriteAt(p []byte, off int64) (int, error) {
	if !d.fence.open() {
		return 0, ErrFenced
	}
	return d.disk.WriteAt(p, off)
}

func (d fencedDisk) Sync() error {
	if !d.fence.open() {
		return ErrFenced
	}
	return d.disk.Sync()
}

// Grow implements growable.
func (d fencedDisk) Grow(sizeBytes int64) (int64, error) {
	g, ok := d.disk.(growable)
	switch {
	case !ok:
		return 0, errors.New("what it lies on cannot grow")
	case !d.fence.open():
		return 0, ErrFenced
	}
	return g.Grow(sizeBytes)
}

// claim takes the lease of the store on s.disk, if it is one, and puts a fence before it.
func (s *Store) claim(o LeaseOptions) error {
	sb, err := readSuperblock(s.disk)
	if err != nil {
		return nil // which opening it tells better
	}
	if sb.LogA <= leaseBlock {
		return &CorruptError{"superblock", -1, "no room for a lease"}
	}
	f, err := takeLease(s.disk, sb.UUID, o)
	if err != nil || f == nil {
		return err
	}
	s.fence = f
	s.disk = fencedDisk{s.disk, f}
	f.ended.Add(1)
	go f.keep(s.fenced)
	return nil
}

// fenced fails the store because another node may have it.
func (s *Store) fenced(reason string) {
	if !s.fence.close(reason) {
		return
	}
	slog.Error("STORE IS FENCED: another node may write to it now, this one does not any more", "store", s.path, "reason", reason)
	if s.opened.Load() {
		s.fail(errors.New("fenced: " + reason))
		s.spaceFreed()
	}
}

// leaveMark notes on a new store that it was this machine's last, so that its first opening need not wait.
func leaveMark(d disk, id uuid.UUID) error {
	l, err := newOwner(id, LeaseOptions{})
	if err != nil || l.Node == uuid.Nil {
		return err
	}
	l.Generation = 1
	return l.write(d)
}

// refuseLeased keeps a store that another node holds from being overwritten.
func refuseLeased(d disk) error {
	sb, err := readSuperblock(d)
	if err != nil {
		return nil
	}
	l, err := readLease(d, sb.UUID)
	if err != nil {
		return nil // damaged, and to be overwritten
	}
	return l.refuse(MachineID())
}

// leaseInfo describes who holds the store, as far as this process knows.
func (s *Store) leaseInfo() *LeaseInfo {
	if s.fence != nil {
		info := s.fence.info
		return &info
	}
	return s.seen
}

// unclaim ends the lease.
func (s *Store) unclaim() error {
	if s.fence == nil {
		return nil
	}
	s.fence.end()
	return s.fence.release()
}

// mayWrite tells whether a request may submit writes now.
func (s *Store) mayWrite() bool { return s.fence.open() }

// BreakLease takes a store from a node that is lost: it raises the generation of the lease and waits until whoever held it must have noticed,
// or have come to the end of its time. Then any node can open the store. Progress, if not nil, is called with the time that is left.
func BreakLease(path string, o LeaseOptions, progress func(left time.Duration)) (LeaseInfo, error) {
	d, err := openDisk(path, false)
	if err != nil {
		return LeaseInfo{}, fmt.Errorf("break lease: %w", err)
	}
	was, err := breakLease(d, o, progress)
	if err := errors.Join(err, d.Close()); err != nil {
		return LeaseInfo{}, fmt.Errorf("break lease of store %s: %w", path, err)
	}
	return was, nil
}

func breakLease(d disk, o LeaseOptions, progress func(left time.Duration)) (LeaseInfo, error) {
	sb, err := readSuperblock(d)
	if err != nil {
		return LeaseInfo{}, err
	}
	me, err := newOwner(sb.UUID, o)
	if err != nil {
		return LeaseInfo{}, err
	}
	was, err := readLease(d, sb.UUID)
	damaged := errors.Is(err, ErrCorrupt)
	if err != nil && !damaged {
		return LeaseInfo{}, err
	}
	if was.State == leaseFree && !damaged {
		return LeaseInfo{}, fmt.Errorf("nobody holds it: %w", ErrNotLeased)
	}
	wait := max(was.Duration, DefaultLease)
	if !damaged {
		wait = was.Duration
	}
	me.State, me.Generation, me.Duration = leaseBroken, was.Generation+1, wait
	if damaged { // and nobody knows what generation it had
		me.Generation = uint64(time.Now().UnixNano())
	}
	if err := me.outlast(d, wait+wait/4, progress); err != nil {
		return LeaseInfo{}, err
	}
	me.State = leaseFree
	if err := me.write(d); err != nil {
		return LeaseInfo{}, err
	}
	info := was.info()
	if info == nil {
		info = me.info()
	}
	return *info, nil
}

// outlast writes the broken lease, and writes it again where the holder, who had just read his own, overwrote it; the time then begins
// anew.
func (l *lease) outlast(d disk, wait time.Duration, progress func(left time.Duration)) error {
	if err := l.write(d); err != nil {
		return err
	}
	began := time.Now()
	for left := wait; left > 0; left = wait - time.Since(began) {
		if progress != nil {
			progress(left)
		}
		time.Sleep(min(left, max(wait/50, time.Millisecond)))
		have, err := readLease(d, l.UUID)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return err
		}
		switch {
		case err == nil && have.Token == l.Token:
		case err == nil && have.State == leaseBroken && have.Generation >= l.Generation:
			return fmt.Errorf("it is being broken by %s too: %w", have.holder(), ErrLeased)
		default:
			l.Generation = max(l.Generation, have.Generation+1)
			if err := l.write(d); err != nil {
				return err
			}
			began = time.Now()
		}
	}
	return nil
}
