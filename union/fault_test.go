package union

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// callKind tells apart the calls that a store makes to disks: target I/O of requests, and blocking calls.
type callKind int

const (
	queueRead callKind = iota
	queueWrite
	queueFlush
	blockRead
	blockWrite
	blockSync
	callKinds
)

func (k callKind) String() string {
	return [...]string{"read of a request", "write of a request", "flush of a request", "read", "write", "sync"}[k]
}

// sweepFault is a way in which a call goes wrong.
type sweepFault struct {
	name  string
	kinds []callKind
	err   error // its result; nil: it goes on after a short transfer, and nobody may notice
	short bool  // it moves a part first
}

var sweepFaults = []sweepFault{
	{"EIO", []callKind{queueRead, queueWrite, queueFlush, blockRead, blockWrite, blockSync}, syscall.EIO, false},
	{"ENOSPC", []callKind{queueWrite, queueFlush, blockWrite, blockSync}, syscall.ENOSPC, false},
	{"short", []callKind{queueRead, queueWrite}, nil, true},
	{"short, then EIO", []callKind{queueWrite, blockWrite}, syscall.EIO, true},
	{"short, then nothing", []callKind{blockRead, blockWrite}, io.ErrUnexpectedEOF, true},
	{"EINTR", []callKind{queueRead, queueWrite}, syscall.EINTR, false},
	{"EINTR", []callKind{queueFlush}, syscall.EINTR, false},
}

// transparent tells whether requests go on as if the fault had not been.
func (f *sweepFault) transparent(k callKind) bool {
	return f.err == nil || errors.Is(f.err, syscall.EINTR) && k != queueFlush
}

// sweepReporter says which fault it was.
type sweepReporter struct {
	*testing.T
	s *sweep
}

func (r sweepReporter) Fatalf(format string, args ...any) {
	r.Helper()
	r.T.Fatalf("%s: %s", r.s.site(), fmt.Sprintf(format, args...))
}

func (s *sweep) site() string {
	if !s.hit {
		return "no fault yet"
	}
	return fmt.Sprintf("%s at call %d, a %v", s.fault.name, s.at, s.calls[s.at-1].kind)
}

// sweepCall is one call to the disk. Off and n are 0 for what covers all of it.
type sweepCall struct {
	kind callKind
	off  int64
	n    int
}

// sweep runs a script again and again, each time with another call that goes wrong. The script is cut into parts, each of which begins
// with the opening of the store and ends with its closing, the death of the process or a power cut: a run carries out
// one part, from a snapshot of what the parts before it left.
type sweep struct {
	t     *testing.T
	dir   string
	roots []*memBase
	disk  *ublktest.Disk
	chunk *chunk
	parts []snapshot // where they begin

	w      *world
	fault  *sweepFault
	at     int // call that goes wrong, from 1; 0: none
	calls  []sweepCall
	script []sweepCall // the part's calls where none goes wrong
	hit    bool
	opens  int // of the store, when it was hit
}

const (
	sweepParts   = 25
	sweepPartOps = 20 // 500 in all
)

// snapshot is a machine that is off.
type snapshot struct {
	image   []byte // of the disk
	pending []byte // on tmpfs, if any
	model   *worldStore
	boot    uuid.UUID
	stamp   uint32
	end     ending // how it came about
}

// clone copies the model of a store that is not open.
func (ws *worldStore) clone(w *world) *worldStore {
	n := *ws
	n.w = w
	copies := map[*worldLayer]*worldLayer{}
	var layer func(l *worldLayer) *worldLayer
	layer = func(l *worldLayer) *worldLayer {
		if l == nil || copies[l] != nil {
			return copies[l]
		}
		c := *l
		copies[l] = &c
		c.in, c.parent, c.content = &n, layer(l.parent), l.content.clone()
		return &c
	}
	n.layers, n.ghosts = nil, nil
	for _, l := range ws.layers {
		n.layers = append(n.layers, layer(l))
	}
	for _, g := range ws.ghosts {
		n.ghosts = append(n.ghosts, ghost{layer(g.layer), layer(g.above), g.kill})
	}
	return &n
}

// snapshot keeps the machine as it is.
func (s *sweep) snapshot(end ending) {
	ws := s.w.stores[0]
	pending, err := os.ReadFile(pendingPath(ws.run, testUUID))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	s.parts = append(s.parts, snapshot{slices.Clone(s.disk.Bytes()), pending, ws.clone(nil), s.w.boot, s.w.stamp, end})
}

// restore makes a machine of a snapshot.
func (s *sweep) restore(part *snapshot) {
	w := &world{t: sweepReporter{s.t, s}, dir: filepath.Join(s.dir, "world"), roots: s.roots, sizes: []int64{worldSmallSize, 96 << 10},
		chunk: s.chunk, tally: map[string]int{}, boot: part.boot, stamp: part.stamp}
	w.prepare = func(sim *ublktest.Sim) { sim.Inject = s.inject }
	ws := part.model.clone(w)
	ws.name, ws.run, ws.disk = s.disk.Name(), filepath.Join(w.dir, "run"), s.disk
	ws.wrap = func(d *ublktest.Disk) disk { return sweepDisk{d, s} }
	w.stores = []*worldStore{ws}
	s.w = w
	copy(s.disk.Bytes(), part.image)
	s.disk.Settle()
	path := pendingPath(ws.run, testUUID)
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil && part.pending != nil {
		err = os.WriteFile(path, part.pending, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// call notes one, and returns the fault that it is to have, or nil. Up to the fault, a run makes the very calls that the part made without.
func (s *sweep) call(k callKind, off int64, n int) *sweepFault {
	c := sweepCall{k, off, n}
	s.calls = append(s.calls, c)
	i := len(s.calls)
	if i <= s.at && s.script[i-1] != c {
		s.t.Errorf("call %d was %+v and is %+v this time: the script does not repeat itself", i, s.script[i-1], c)
	}
	if i != s.at {
		return nil
	}
	s.hit, s.opens = true, s.w.stores[0].opened
	if !s.fault.transparent(k) {
		s.w.injected = s.fault.err
		s.w.stores[0].mayFail = k != queueRead && k != blockRead
	}
	return s.fault
}

// sweepDisk is what the blocking calls of the store go through.
type sweepDisk struct {
	*ublktest.Disk
	s *sweep
}

func (sweepDisk) Close() error { return nil }

func (d sweepDisk) ReadAt(p []byte, off int64) (int, error) {
	f := d.s.call(blockRead, off, len(p))
	if f == nil {
		return d.Disk.ReadAt(p, off)
	}
	return d.short(f, p, func(p []byte) (int, error) { return d.Disk.ReadAt(p, off) })
}

func (d sweepDisk) WriteAt(p []byte, off int64) (int, error) {
	f := d.s.call(blockWrite, off, len(p))
	if f == nil {
		return d.Disk.WriteAt(p, off)
	}
	return d.short(f, p, func(p []byte) (int, error) { return d.Disk.WriteAt(p, off) })
}

func (sweepDisk) short(f *sweepFault, p []byte, move func([]byte) (int, error)) (int, error) {
	if !f.short {
		return 0, f.err
	}
	n, err := move(p[:part(len(p))])
	return n, errors.Join(f.err, err)
}

// part is how much a short transfer of n bytes moves: whole sectors where that is more than nothing.
func part(n int) int {
	if n < 2*sector {
		return n / 2
	}
	return n / 2 &^ (sector - 1)
}

func (d sweepDisk) Sync() error {
	if f := d.s.call(blockSync, 0, 0); f != nil {
		return f.err
	}
	return d.Disk.Sync()
}

// inject is asked for each target I/O.
func (s *sweep) inject(e ublktest.Event) ublktest.Fault {
	f := s.call([...]callKind{ublktest.Read: queueRead, ublktest.Write: queueWrite, ublktest.Flush: queueFlush}[e.Kind], e.Off, len(e.Data))
	if f == nil {
		return ublktest.Fault{}
	}
	s.w.stores[0].flushFailed = e.Kind == ublktest.Flush
	fault := ublktest.Fault{Short: f.short, Bytes: part(len(e.Data))}
	errors.As(f.err, &fault.Errno)
	return fault
}

// run carries a part of the script out. Without a fault, it notes what the part leaves as the beginning of the next.
func (s *sweep) run(part, at int, fault *sweepFault) {
	t := s.t
	t.Helper()
	s.at, s.fault, s.calls, s.hit = at, fault, s.calls[:0], false
	begin := &s.parts[part]
	s.restore(begin)
	w, ws := s.w, s.w.stores[0]
	rng := rand.New(rand.NewPCG(uint64(part), 21))
	c := func(_ string, n int) int { return rng.IntN(n) }
	w.serve()
	ws.mustOpen()
	ws.reconcileAfter(begin.end)
	if s.hit { // and got over
		w.injected = nil
		s.leave()
		return
	}
	for _, l := range ws.layers {
		if !l.sealed {
			w.plug(l)
		}
	}
	after := 0
	for i := 0; i < sweepPartOps && after < 12; i++ {
		w.scripted(c)
		if s.hit {
			after++
		}
	}
	w.idle()
	end := ending(part) % endings
	if s.hit {
		s.judge()
		w.injected = nil
		for _, l := range ws.layers {
			if l.block != nil {
				l.wantReads()
			}
		}
		end = endKilled + ending(at%2)
	}
	s.end(end, c)
	calls := len(s.calls)
	if at == 0 {
		s.snapshot(end)
	}
	w.serve()
	ws.mustOpen()
	ws.reconcileAfter(end)
	s.leave()
	s.calls = s.calls[:calls]
}

// leave ends a run.
func (s *sweep) leave() {
	s.w.shut()
	s.w.halt()
	if err := os.RemoveAll(s.w.dir); err != nil {
		s.t.Fatal(err)
	}
}

// end turns the machine off.
func (s *sweep) end(how ending, c choose) {
	w, ws := s.w, s.w.stores[0]
	if how == endClosed {
		for _, l := range ws.layers {
			if l.block != nil {
				l.unplug()
			}
		}
		err := ws.store.Close()
		if err == nil {
			ws.check()
			ws.ghosts = nil
		} else if !w.failing(err) {
			w.t.Fatalf("close: %v", err)
		}
		ws.store = nil
	}
	w.halt()
	switch how {
	case endKilled:
		s.disk.Settle()
	case endCut:
		ws.cut(c)
	}
	w.injected = nil
}

// judge demands that the store failed where it had to, and nowhere else, and that then it takes no more changes.
func (s *sweep) judge() {
	t, ws := s.t, s.w.stores[0]
	t.Helper()
	if !s.hit {
		return
	}
	k := s.calls[s.at-1].kind
	fatal := s.w.injected != nil && k != queueRead && k != blockRead
	if have := ws.failed(); have && !fatal || !have && fatal && ws.opened == s.opens {
		t.Errorf("the store failed: %v, want %v", have, fatal)
	}
	if !ws.failed() {
		return
	}
	p := make([]byte, blockSize)
	for _, l := range ws.layers {
		if l.block == nil {
			continue
		}
		for _, d := range []ublk.Descriptor{
			{Op: ublk.OpWrite, Len: blockSize}, {Op: ublk.OpWrite, FUA: true, Len: blockSize},
			{Op: ublk.OpWrite, FUA: true, Off: sector, Len: sector}, {Op: ublk.OpDiscard, Len: blockSize}, flushDescriptor,
		} {
			answer := syscall.Errno(0) // ENOSPC where there are no slots either
			l.block.Submit(d, p[:d.Len], func(errno syscall.Errno, _ []byte) { answer = errno })
			if s.w.idle(); answer != syscall.EIO && answer != syscall.ENOSPC {
				t.Errorf("%+v on a failed store: %v", d, answer)
			}
		}
	}
	_, layer := ws.store.OpenLayer("another", LayerOptions{Create: true, SizeBytes: blockSize})
	for what, err := range map[string]error{"layer": layer, "checkpoint": ws.store.Checkpoint()} {
		if !errors.Is(err, errFailed) {
			t.Errorf("%s on a failed store: %v", what, err)
		}
	}
}

// counts says how many calls of each kind there were.
func counts(total [callKinds]int) (text string) {
	for k, n := range total {
		text += fmt.Sprintf("%d %vs, ", n, callKind(k))
	}
	return strings.TrimSuffix(text, ", ")
}

// scripted does one operation of the script.
func (w *world) scripted(c choose) {
	switch k := c("op", 100); {
	case k < 3:
		w.create(c)
	case k < 6:
		w.freeze(c)
	case k < 9:
		w.merge(c)
	case k < 12:
		w.remove(c)
	case k < 14:
		w.replug(c)
	case k < 15:
		w.unplugOne(c)
	case k < 18:
		w.upkeep(c)
	case k < 19:
		w.detach(c)
	case k < 20:
		w.export(c)
	default:
		l := w.pick(c, isOpen)
		if l == nil {
			w.create(c)
			return
		}
		l.submit(l.descriptor(c))
		w.steps(c("steps", 12))
	}
}

// wantReads reads the beginning and the end of a device.
func (l *worldLayer) wantReads() {
	const n = 32 << 10
	l.submit(ublk.Descriptor{Op: ublk.OpRead, Len: n})
	l.submit(ublk.Descriptor{Op: ublk.OpRead, Off: l.size - n, Len: n})
	l.in.w.idle()
}

func newSweep(t *testing.T) *sweep {
	t.Helper()
	roots, err := worldRoots(1)
	if err != nil {
		t.Fatal(err)
	}
	s := &sweep{t: t, dir: runDir(t), roots: roots, chunk: newChunk()}
	geometry := layoutOf(320, 8, superBBlock+1, 1)
	if s.disk, err = ublktest.NewDisk("leaf", int64(geometry.SizeBlocks)<<blockShift); err != nil {
		t.Fatal(err)
	}
	if _, err := formatDisk("leaf", s.disk, FormatOptions{Force: true, UUID: testUUID, geometry: &geometry}); err != nil {
		t.Fatal(err)
	}
	s.parts = []snapshot{{image: slices.Clone(s.disk.Bytes()), model: &worldStore{blocks: geometry.SizeBlocks}}}
	return s
}

func (s *sweep) close() {
	for _, err := range []error{s.disk.Close(), s.roots[0].disk.Close()} {
		if err != nil {
			s.t.Error(err)
		}
	}
}

// faultShare spreads what is left out over all kinds of faults and all parts of the script.
var faultShare = flag.Int("fault-share", 4, "TestFaultSweep injects one of so many faults; 1: all")

// TestFaultSweep makes every call to a disk go wrong that a script of requests of all kinds, freezes, merges, new and removed
// layers, checkpoints, restarts, deaths of the process and power cuts makes: one in each run, in each way that fits it.
// After a write or a flush of the store failed nothing is acknowledged any more, reads go on, and the next
// opening finds what it must. Without -fault-share it takes one in four.
func TestFaultSweep(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	var total [callKinds]int
	sites, done, share := 0, 0, max(*faultShare, 1)
	if testing.Short() {
		share = 211
	}
	for part := range sweepParts {
		s.run(part, 0, nil)
		s.script = slices.Clone(s.calls)
		for _, c := range s.script {
			total[c.kind]++
		}
		for f := range sweepFaults {
			fault := &sweepFaults[f]
			for at := 1; at <= len(s.script); at++ {
				if !slices.Contains(fault.kinds, s.script[at-1].kind) {
					continue
				}
				if sites++; sites%share != 0 {
					continue
				}
				s.run(part, at, fault)
				if done++; !s.hit {
					t.Errorf("%s at call %d, a %v, never came", fault.name, at, s.script[at-1].kind)
				}
				if t.Failed() {
					t.Fatalf("part %d of the script, %s", part, s.site())
				}
			}
		}
	}
	t.Logf("%d operations; calls: %v", sweepParts*sweepPartOps, counts(total))
	t.Logf("%d faults injected, of %d", done, sites)
	s.close()
}

// TestCheckpointFaults makes each write and sync of a checkpoint fail.
func TestCheckpointFaults(t *testing.T) {
	for calls := 0; ; calls++ {
		rng := rand.New(rand.NewPCG(uint64(calls), 11))
		r := newRig(t, 6, false)
		o := newOracle(r)
		drive(r, o, rng, 500)
		if err := r.sim.Run(); err != nil {
			t.Fatal(err)
		}
		r.store.disk = &faultDisk{Disk: r.disk, left: calls}
		told := captureLog(t)
		err := r.checkpoint()
		if err != nil {
			if !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			r.wantFailed()
			wantToldOnce(t, told, "store=leaf")
		}
		r.abandon()
		r.open()
		o.settle(r, func(s, i int) bool { return i >= o.acked[s] })
		r.shut()
		if err == nil {
			if calls < 6 {
				t.Errorf("a checkpoint has only %d calls", calls)
			}
			return
		}
	}
}

// TestCommitFaults makes each write and sync of a background commit fail: a flush that waits for it fails too.
func TestCommitFaults(t *testing.T) {
	for calls := 0; ; calls++ {
		r := newRig(t, 7, false)
		if _, err := r.block.WriteAt(make([]byte, 8192), 4096); err != nil {
			t.Fatal(err)
		}
		r.store.disk = &faultDisk{Disk: r.disk, left: calls}
		told := captureLog(t)
		err := r.store.commit()
		if err != nil {
			if !errors.Is(err, syscall.EIO) {
				t.Fatal(err)
			}
			r.wantFailed()
			if err := r.store.commit(); !errors.Is(err, errFailed) {
				t.Errorf("a flush was tried again: %v", err)
			}
			wantToldOnce(t, told, "input/output error")
		}
		r.abandon()
		r.disk.Close()
		if err == nil {
			if calls != 3 { // two copies and a sync
				t.Errorf("a commit has %d calls", calls)
			}
			return
		}
	}
}

// TestFailedRequestsAreTold makes target I/O of requests fail: the first failure is told, with its cause, and those that follow from it are not.
func TestFailedRequestsAreTold(t *testing.T) {
	for nth, what := range []string{"write of data", "commit of a request", "commit of a request", "commit of a request"} {
		r := newRig(t, 8, false)
		kind, n := ublktest.Write, nth+1
		if nth == 3 { // after data and two copies of the log
			kind, n = ublktest.Flush, 1
		}
		r.sim.FailNth(kind, n, ublktest.Fault{Errno: syscall.EIO})
		told := captureLog(t)
		_, err := r.block.WriteAt(make([]byte, 4096), 4096)
		if err = errors.Join(err, r.block.Flush()); !errors.Is(err, syscall.EIO) {
			t.Fatalf("%s: %v", what, err)
		}
		r.wantFailed()
		wantToldOnce(t, told, what)
		r.abandon()
		r.disk.Close()
	}
}

// captureLog collects what is logged until the test ends. No other test may run beside it.
func captureLog(t *testing.T) *bytes.Buffer {
	var b bytes.Buffer
	old := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&b, nil)))
	t.Cleanup(func() { slog.SetDefault(old) })
	return &b
}

func wantToldOnce(t *testing.T, told *bytes.Buffer, what string) {
	t.Helper()
	if text := told.String(); strings.Count(text, "takes no more") != 1 || !strings.Contains(text, what) || !strings.Contains(text, "input/output error") {
		t.Errorf("%s: told\n%s", what, text)
	}
}
