package union

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/google/uuid"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// reporter is what testing.T and rapid.T have in common.
type reporter interface {
	Helper()
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// choose draws a number from 0 to n-1; what tells what for.
type choose func(what string, n int) int

// world is a simulated machine with stores, layers and devices, all served by one simulator, beside a model of what each
// layer holds. Its actions take what they need from a choose and tell whether they had anything to do.
type world struct {
	t      reporter
	dir    string // on tmpfs
	sim    *ublktest.Sim
	seed   uint64
	boot   uuid.UUID // zero: of this machine
	roots  []*memBase
	stores []*worldStore
	stamp  uint32

	chunk *chunk // for reading
	tally map[string]int

	prepare  func(*ublktest.Sim) // a new simulator, if not nil
	sizes    []int64             // of devices
	injected error               // requests and calls may fail with it, if not nil
}

// worldStore is a leaf store.
type worldStore struct {
	w      *world
	name   string
	run    string
	disk   *ublktest.Disk
	wrap   func(*ublktest.Disk) disk // what blocking calls go through
	store  *Store                    // nil: not open
	layers []*worldLayer             // in the order in which they were made
	ghosts []ghost
	made   int // layers ever made, for their names
	leased bool
	opened int // times
	blocks uint64
	bounds int // changes of its size, and of quotas
	demand demand

	mayFail     bool // an injected fault made the store fail
	flushFailed bool
}

// demand counts the blocks that requests change at most.
type demand struct {
	asked uint64 // by all so far
	open  uint64 // by those in flight
}

// begin counts a request. What it returns is called when the request ends, and tells how many blocks it and others asked for meanwhile.
func (d *demand) begin(blocks uint64) func() uint64 {
	before, others := d.asked, d.open
	d.asked += blocks
	d.open += blocks
	return func() uint64 {
		d.open -= blocks
		return others + d.asked - before
	}
}

// ghost is a layer that is gone, or was not quite made, and may be found at the next recovery.
type ghost struct {
	layer *worldLayer
	above *worldLayer // stands on it then, if not nil
	kill  bool        // may be found after the death of the process too, and not just after a power cut
}

// worldLayer is a layer and, while it is open, its device.
type worldLayer struct {
	in      *worldStore
	name    string
	parent  *worldLayer
	root    *memBase
	size    int64
	content *content
	sealed  bool
	bare    bool // it stands on nothing, not even the root
	fading  bool // a removal failed: it may be gone at the next recovery
	parting bool // a detach failed: it may be bare at the next recovery

	quota  int64 // bytes; 0: none
	beyond bool  // it may hold more than its quota
	demand demand

	layer    *Layer
	block    *ublktest.Device
	inFlight int
}

// The larger devices have two regions of the sector map, the second of which is cut short, and their roots end there.
const (
	worldRegion    = regionBlocks << blockShift
	worldSize      = worldRegion + 96<<10 + 3*sector
	worldSmallSize = 64<<10 + sector
	worldRootSize  = worldRegion + 20<<10 + 777
	worldMaxIO     = 64 << 10
	worldLayers    = 10 // of a store
	worldMostBytes = 5 << 20
)

// worldRoots makes roots that worlds share: they are never written.
func worldRoots(n int) (roots []*memBase, err error) {
	for i := range n {
		b := &memBase{content: make([]byte, worldRootSize-i*40<<10)}
		for at := 0; at+8 <= len(b.content); at += 8 {
			if at == 200<<10 { // zeros in between: a detached layer must fit a small store
				at = worldRegion - 160<<10
			}
			le.PutUint64(b.content[at:], uint64(at+i+1)*0xbf58476d1ce4e5b9)
		}
		if b.disk, err = ublktest.NewDisk(fmt.Sprintf("root%d", i), b.Size()); err != nil {
			return nil, err
		}
		copy(b.disk.Bytes(), b.content)
		roots = append(roots, b)
	}
	return roots, nil
}

// format makes another store.
func (w *world) format(on *ublktest.Disk, geometry superblock) *worldStore {
	w.t.Helper()
	ws := &worldStore{w: w, name: on.Name(), run: filepath.Join(w.dir, on.Name()), disk: on, blocks: geometry.SizeBlocks}
	ws.wrap = func(d *ublktest.Disk) disk { return keepOpen{d} }
	ws.leased = geometry.LogA > leaseBlock
	geometry.UUID = uuid.UUID{15: byte(len(w.stores) + 1)}
	if _, err := formatDisk(ws.name, ws.wrap(on), FormatOptions{Force: true, UUID: geometry.UUID, geometry: &geometry}); err != nil {
		w.t.Fatalf("format %s: %v", ws.name, err)
	}
	w.stores = append(w.stores, ws)
	return ws
}

// start boots the machine and opens its stores.
func (w *world) start() {
	w.t.Helper()
	w.serve()
	for _, ws := range w.stores {
		ws.mustOpen()
	}
}

// serve makes a simulator.
func (w *world) serve() {
	w.sim = ublktest.NewSim(ublktest.SimConfig{Seed: w.seed})
	w.seed++
	for _, ws := range w.stores {
		w.sim.AddDisk(ws.disk)
	}
	for _, b := range w.roots {
		w.sim.AddDisk(b.disk)
	}
	if w.prepare != nil {
		w.prepare(w.sim)
	}
}

func (ws *worldStore) open() (err error) {
	ws.opened++
	ws.store, err = openOn(ws.name, ws.wrap(ws.disk), ws.options())
	if err == nil {
		ws.mayFail, ws.flushFailed = false, false
	}
	if err == nil && ws.leased {
		err = ws.claim()
	}
	return err
}

// claim takes the store's lease, without a keeper: what that does is takeOver's.
func (ws *worldStore) claim() error {
	s := ws.store
	have, err := readLease(s.disk, s.sb.UUID)
	if err != nil {
		return err
	}
	f := &fence{disk: s.disk, id: s.sb.UUID, began: time.Now(), stop: make(chan struct{}),
		mine: lease{UUID: s.sb.UUID, State: leaseHeld, Generation: have.Generation + 1, Duration: maxLease}}
	f.until.Store(math.MaxInt64)
	s.fence, s.disk = f, fencedDisk{s.disk, f}
	return f.mine.write(f.disk)
}

func (ws *worldStore) options() StoreOptions {
	return StoreOptions{RunDir: ws.run, boot: ws.w.boot, inline: true}
}

// close gives up what the world holds, without a word to the stores.
func (w *world) close() error {
	w.halt()
	errs := []error{os.RemoveAll(w.dir)}
	for _, ws := range w.stores {
		errs = append(errs, ws.disk.Close())
	}
	return errors.Join(errs...)
}

// halt stops everything, as the death of the process does.
func (w *world) halt() {
	w.t.Helper()
	w.sim.Halt()
	for _, ws := range w.stores {
		for _, l := range ws.layers {
			l.abandon()
		}
		if ws.store == nil {
			continue
		}
		if err := ws.store.pending.close(); err != nil {
			w.t.Fatalf("%v", err)
		}
		ws.store, ws.demand = nil, demand{}
	}
}

func (l *worldLayer) abandon() {
	if l.block == nil {
		return
	}
	if err := l.block.Close(); err != nil {
		l.in.w.t.Fatalf("%v", err)
	}
	l.layer, l.block, l.inFlight, l.demand = nil, nil, 0, demand{}
	for _, v := range l.content.open {
		v.busy = false
	}
}

// failing tells whether an error is one that the injected fault explains.
func (w *world) failing(err error) bool {
	return w.injected != nil && (errors.Is(err, w.injected) || errors.Is(err, errFailed) || errors.Is(err, syscall.EIO))
}

func (ws *worldStore) failed() bool {
	ws.store.log.mu.Lock()
	defer ws.store.log.mu.Unlock()
	return ws.store.log.failed
}

func (ws *worldStore) drop(l *worldLayer) {
	ws.layers = slices.DeleteFunc(ws.layers, func(x *worldLayer) bool { return x == l })
}

// standsOn returns a layer that stands on l and is not but.
func (ws *worldStore) standsOn(l, but *worldLayer) *worldLayer {
	for _, x := range ws.layers {
		if x.parent == l && x != but {
			return x
		}
	}
	return nil
}

// pick chooses among the layers that want is true for.
func (w *world) pick(c choose, want func(*worldLayer) bool) *worldLayer {
	var all []*worldLayer
	for _, ws := range w.stores {
		for _, l := range ws.layers {
			if want(l) {
				all = append(all, l)
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[c("layer", len(all))]
}

// base is the root that the layer needs, or nil.
func (l *worldLayer) base() Base {
	bottom := l
	for bottom.parent != nil {
		bottom = bottom.parent
	}
	if bottom.bare {
		return nil
	}
	return l.root
}

func isOpen(l *worldLayer) bool   { return l.block != nil }
func isSealed(l *worldLayer) bool { return l.sealed }
func isClosed(l *worldLayer) bool { return !l.sealed && l.block == nil }

// steps lets the simulator and the background work of the stores do n things.
func (w *world) steps(n int) {
	for range n {
		if !w.sim.Step() && !w.pump() {
			return
		}
	}
}

// pump does a round of background work where it was asked for.
func (w *world) pump() (did bool) {
	for _, ws := range w.stores {
		if ws.store == nil || committing(ws.store) {
			continue
		}
		select {
		case <-ws.store.kick:
			ws.store.maintain()
			did = true
		default:
		}
	}
	return did
}

// idle lets everything end that was begun.
func (w *world) idle() {
	w.t.Helper()
	for w.sim.Step() || w.pump() {
	}
	if err := w.sim.Run(); err != nil {
		w.t.Fatalf("%v", err)
	}
}

// submit begins a request.
func (l *worldLayer) submit(d ublk.Descriptor) {
	w := l.in.w
	first, count := int(d.Off/sector), int(d.Len/sector)
	switch d.Op {
	case ublk.OpRead:
		l.read(d, first, count)
		return
	case ublk.OpFlush:
		l.flush()
		return
	}
	if l.content.busy(first, count) {
		return
	}
	value := valueZero
	var data []byte
	if d.Op == ublk.OpWrite {
		value = firstStamp + w.stamp
		w.stamp++
		data = make([]byte, d.Len)
		for i := range count {
			writeSector(data[i*sector:(i+1)*sector], first+i, value, nil)
		}
	}
	ended := l.content.change(first, count, value)
	blocks := blocksOf(d)
	ofLayer, ofStore, bounds := l.demand.begin(blocks), l.in.demand.begin(blocks), l.in.bounds
	l.inFlight++
	l.block.Submit(d, data, func(errno syscall.Errno, _ []byte) {
		l.inFlight--
		ended(l.outcome(d, errno, ofLayer(), ofStore(), bounds), d.FUA)
	})
}

// blocksOf is how many blocks a request touches at most.
func blocksOf(d ublk.Descriptor) uint64 { return uint64(d.Len)>>blockShift + 2 }

// data is how many blocks with data a layer itself holds.
func (l *worldLayer) data() uint64 {
	m, _ := l.in.store.layers[l.name].content()
	return m.dataBlocks()
}

// outcome judges how a request that changes something, or a flush, ended. Meanwhile it and others asked for so many blocks of the layer and of the
// whole store, which others may have taken and given back; and the store had the given bounds when it began.
func (l *worldLayer) outcome(d ublk.Descriptor, errno syscall.Errno, ofLayer, ofStore uint64, bounds int) outcome {
	w, ws := l.in.w, l.in
	switch {
	case errno == 0:
		// A flush that was under way when a write failed may still tell the truth.
		if ws.failed() && (d.Op != ublk.OpFlush && !d.FUA || ws.flushFailed) {
			w.t.Errorf("%s: op %d at %d was acknowledged after the store had failed", l.name, d.Op, d.Off)
		}
		w.tally["requests answered"]++
		return acknowledged
	case errno == syscall.ENOSPC && d.Op != ublk.OpFlush && !errors.Is(w.injected, errno):
		keep := ws.store.keepFor(classData, int(blocksOf(d)))
		overQuota := l.quota > 0 && l.data()+ofLayer > uint64(l.quota)>>blockShift
		if free := ws.store.slots.freeSlots(); free > keep+ofStore && !overQuota && bounds == ws.bounds {
			w.t.Errorf("%s: no space for op %d at %d with %d slots free, and %d blocks of a quota of %d bytes", l.name, d.Op, d.Off, free, l.data(), l.quota)
		}
		w.tally["requests refused"]++
		return refused
	case !w.failing(errno) && !(errno == syscall.EIO && ws.failed() && ws.mayFail):
		w.t.Errorf("%s: op %d of %d bytes at %d: %v", l.name, d.Op, d.Len, d.Off, errno)
	}
	return failed
}

func (l *worldLayer) flush() {
	durable := l.content.covered()
	ghosts := len(l.in.ghosts)
	l.inFlight++
	l.block.Submit(flushDescriptor, nil, func(errno syscall.Errno, _ []byte) {
		l.inFlight--
		if l.outcome(flushDescriptor, errno, 0, 0, 0) == acknowledged {
			durable()
			l.in.forget(ghosts)
		}
	})
}

// forget drops the first n ghosts that a power cut alone could bring back: a flush covered what made them so.
func (ws *worldStore) forget(n int) {
	n = min(n, len(ws.ghosts)) // a recovery came in between
	kept := slices.DeleteFunc(slices.Clone(ws.ghosts[:n]), func(g ghost) bool { return !g.kill })
	ws.ghosts = append(kept, ws.ghosts[n:]...)
}

func (l *worldLayer) read(d ublk.Descriptor, first, count int) {
	w := l.in.w
	oldest := make([]int, count)
	for i := range count {
		if v := l.content.open[first+i]; v != nil {
			oldest[i] = v.acked
		}
	}
	// What was settled when the read began is legal as long as it lasts: keep it apart from what settles meanwhile.
	had := append([]uint32(nil), l.content.settled[first:first+count]...)
	values := make([]*sectorValues, count)
	for i := range count {
		values[i] = l.content.open[first+i]
	}
	l.inFlight++
	l.block.Submit(d, nil, func(errno syscall.Errno, data []byte) {
		l.inFlight--
		if errno != 0 {
			if !w.failing(errno) {
				w.t.Errorf("%s: read of %d bytes at %d: %v", l.name, d.Len, d.Off, errno)
			}
			return
		}
		for i := range count {
			l.compareRead(first+i, data[i*sector:(i+1)*sector], had[i], values[i], oldest[i])
		}
	})
}

// compareRead demands of a sector that was read a value that it had between the beginning and the end of the read.
func (l *worldLayer) compareRead(s int, got []byte, had uint32, began *sectorValues, oldest int) {
	candidates := []uint32{had}
	if began != nil {
		candidates = began.values[oldest:]
	}
	if now := l.content.open[s]; now != began {
		candidates = append(slices.Clone(candidates), l.content.settled[s])
		if now != nil {
			candidates = append(candidates, now.values...)
		}
	}
	var want [sector]byte
	for _, v := range candidates {
		if v == valueVoid {
			continue
		}
		if writeSector(want[:], s, v, l.root.content); bytes.Equal(got, want[:]) {
			return
		}
	}
	l.in.w.t.Errorf("%s: sector %d read as none of %s but begins with %x", l.name, s, valueNames(candidates), got[:16])
}

// requests has a device begin some requests and lets some of them end.
func (w *world) requests(c choose) bool {
	l := w.pick(c, isOpen)
	if l == nil {
		return false
	}
	for range 1 + c("requests", 16) {
		l.submit(l.descriptor(c))
	}
	w.steps(c("steps", 200))
	return true
}

// descriptor chooses a request: mostly on both sides of the border of two regions or at the beginning.
func (l *worldLayer) descriptor(c choose) ublk.Descriptor {
	n := len(l.content.settled)
	var first, count int
	where := c("where", 16)
	switch {
	case where < 8:
		first = max(0, n-384) + c("first", min(n, 384))
	case where < 15:
		first = c("first", min(n, 256))
	default:
		first = c("first", n)
	}
	count = 1 + c("count", 24)
	if where%8 == 7 {
		count = 128
	}
	if c("whole", 2) == 0 { // blocks
		first &^= 7
		count = (count + 7) &^ 7
	}
	d := ublk.Descriptor{}
	switch k := c("op", 20); {
	case k < 10:
		d.Op = ublk.OpWrite
	case k < 11:
		d.Op, d.FUA = ublk.OpWrite, true
	case k < 13:
		d.Op = ublk.OpDiscard
	case k < 14:
		d.Op = ublk.OpWriteZeroes
	case k < 15: // much
		d.Op = ublk.OpDiscard
		count = 1 + c("much", n)
	case k < 17:
		return flushDescriptor
	default:
		d.Op = ublk.OpRead
	}
	count = min(count, n-first)
	d.Off, d.Len = int64(first)*sector, int64(count)*sector
	return d
}

// plug opens a device on a layer.
func (l *worldLayer) plug(o LayerOptions) error {
	w := l.in.w
	base := l.base()
	o.Pin = rootPin(base)
	layer, err := l.in.store.OpenLayer(l.name, o)
	if err != nil {
		return err
	}
	dev, err := NewDevice(layer, base, DeviceOptions{})
	if err != nil {
		w.t.Fatalf("device on %s: %v", l.name, err)
	}
	l.layer = layer
	l.block, err = w.sim.NewDevice(dev, ublktest.DeviceConfig{SizeBytes: l.size, Queues: 1 + len(l.name)%2, Depth: 4, MaxIO: worldMaxIO})
	if err != nil {
		w.t.Fatalf("device on %s: %v", l.name, err)
	}
	return nil
}

// unplug closes the device of a layer.
func (l *worldLayer) unplug() {
	l.in.w.t.Helper()
	if l.inFlight > 0 {
		l.in.w.idle()
	}
	if err := l.block.Close(); err != nil {
		l.in.w.t.Fatalf("%v", err)
	}
	l.layer.Release()
	l.layer, l.block = nil, nil
}

// name makes one that no layer has had.
func (ws *worldStore) newName(prefix string) string {
	ws.made++
	return fmt.Sprintf("%s%d", prefix, ws.made)
}

// tolerate tells whether a call may fail like this: for want of space, or because of the injected fault.
func (ws *worldStore) tolerate(what string, err error) {
	ws.w.t.Helper()
	switch {
	case ws.w.failing(err):
	case errors.Is(err, ErrNoSpace) && ws.store.slots.freeSlots() < ws.store.sb.Slots/2:
		ws.w.tally["refused: "+what]++
	default:
		ws.w.t.Fatalf("%s in store %s: %v", what, ws.name, err)
	}
}

// create makes a layer on a root, or on a sealed layer, and opens its device.
func (w *world) create(c choose) bool {
	ws := w.stores[c("store", len(w.stores))]
	if len(ws.layers) >= worldLayers {
		return false
	}
	var sealed []*worldLayer
	for _, l := range ws.layers {
		if l.sealed && ws.depth(l) < 6 {
			sealed = append(sealed, l)
		}
	}
	from := c("from", len(sealed)+1) - 1
	o := LayerOptions{Create: true}
	l := &worldLayer{in: ws}
	if from < 0 {
		l.root = w.roots[c("root", len(w.roots))]
		l.size = w.sizes[c("size", len(w.sizes))]
		l.content = newContent(l.size)
		o.SizeBytes = l.size
	} else {
		p := sealed[from]
		p.verify(sinceAcked, true, false)
		l.parent, l.root, l.size = p, p.root, p.size
		l.content = p.content.sealed()
		o.From = p.name
	}
	l.name = ws.newName("web")
	calm(ws.w.t, ws.store, ws.w.sim)
	before := ws.failed()
	if err := l.plug(o); err != nil {
		ws.tolerate("create", err)
		if !errors.Is(err, ErrNoSpace) && !before {
			ws.ghosts = append(ws.ghosts, ghost{layer: l, kill: true})
		}
		return true
	}
	ws.layers = append(ws.layers, l)
	return true
}

func (ws *worldStore) depth(l *worldLayer) (n int) {
	for ; l != nil; l = l.parent {
		n++
	}
	return n
}

// replug opens a device again, and unplugOne closes one.
func (w *world) replug(c choose) bool {
	l := w.pick(c, isClosed)
	if l == nil {
		return false
	}
	w.plug(l)
	return true
}

// plug opens a device on a layer that exists.
func (w *world) plug(l *worldLayer) {
	if err := l.plug(LayerOptions{}); err != nil {
		w.t.Fatalf("open %s: %v", l.name, err)
	}
}

func (w *world) unplugOne(c choose) bool {
	l := w.pick(c, isOpen)
	if l == nil {
		return false
	}
	l.unplug()
	return true
}

// freeze seals what a device holds as a layer of its own.
func (w *world) freeze(c choose) bool {
	l := w.pick(c, isOpen)
	if l == nil || len(l.in.layers) >= worldLayers || l.in.depth(l) > 6 {
		return false
	}
	ws := l.in
	calm(ws.w.t, ws.store, ws.w.sim)
	as := ws.newName("s")
	f, err := l.layer.PrepareFreeze(as)
	if errors.Is(err, ErrNoSpace) && ws.store.slots.freeSlots() < ws.store.sb.Slots/2 {
		return true // not even the reserve has room
	}
	if err != nil {
		w.t.Fatalf("freeze %s: %v", l.name, err)
	}
	if c("cancel", 8) == 7 {
		f.Cancel()
		return true
	}
	s := &worldLayer{in: ws, name: as, parent: l.parent, root: l.root, size: l.size, content: l.content.sealed(), sealed: true, bare: l.bare}
	durable := l.content.covered()
	ghosts := len(ws.ghosts)
	before := ws.failed()
	if _, err := f.Seal(); err != nil {
		ws.tolerate("freeze", err)
		if !before {
			ws.ghosts = append(ws.ghosts, ghost{layer: s, above: l, kill: true})
		}
		return true
	}
	if before {
		w.t.Errorf("%s was frozen after the store had failed", l.name)
	}
	durable()
	ws.forget(ghosts)
	ws.layers = append(ws.layers, s)
	l.parent = s
	return true
}

// merge undoes a freeze.
func (w *world) merge(c choose) bool {
	l := w.pick(c, isOpen)
	if l == nil {
		return false
	}
	ws := l.in
	calm(ws.w.t, ws.store, ws.w.sim)
	below := l.parent
	before := ws.failed()
	err := l.layer.Merge()
	switch {
	case before: // and what a freeze left that failed, only the next opening tells
		if err == nil {
			w.t.Errorf("%s was merged after the store had failed", l.name)
		}
	case below == nil:
		if !errors.Is(err, ErrNoLayer) {
			w.t.Fatalf("merge of %s, which stands on the root: %v", l.name, err)
		}
	case errors.Is(err, ErrLayerInUse) && ws.store.layers[below.name].entry.Detaching:
	case ws.standsOn(below, l) != nil:
		if !errors.Is(err, ErrLayerInUse) {
			w.t.Fatalf("merge of %s with %s, on which another stands: %v", l.name, below.name, err)
		}
	case err != nil:
		ws.tolerate("merge", err)
	default:
		ws.drop(below)
		ws.ghosts = append(ws.ghosts, ghost{layer: below, above: l})
		l.parent, l.bare, l.beyond = below.parent, below.bare, true
	}
	return true
}

// setQuota bounds what a layer may hold, or takes the bound away.
func (w *world) setQuota(c choose) bool {
	l := w.pick(c, isOpen)
	if l == nil {
		return false
	}
	ws := l.in
	calm(w.t, ws.store, w.sim)
	l.keepsQuota()
	quota := int64(c("quota", 64)) << blockShift
	if _, err := l.layer.SetQuota(quota); err != nil {
		ws.tolerate("quota", err)
		return true
	}
	ws.bounds++
	l.quota, l.beyond = quota, l.inFlight > 0 || l.data() > uint64(quota)>>blockShift
	return true
}

// keepsQuota demands that the layer holds no more than its quota, and what metadata may take beyond it.
func (l *worldLayer) keepsQuota() {
	quota := uint64(l.quota) >> blockShift
	if have := l.data(); quota > 0 && !l.beyond && have > quota+quotaSlack(quota) {
		l.in.w.t.Errorf("%s holds %d blocks, its quota is %d", l.name, have, quota)
	}
}

// grow makes a store larger.
func (w *world) grow(c choose) bool {
	ws := w.stores[c("store", len(w.stores))]
	if ws.disk.Size() >= worldMostBytes {
		return false
	}
	calm(w.t, ws.store, w.sim)
	size := ws.disk.Size() + int64(1+c("more", 64))<<blockShift
	slots := ws.store.sb.Slots
	info, err := ws.store.Grow(size)
	if err != nil {
		w.t.Fatalf("grow %s to %d bytes: %v", ws.name, size, err)
	}
	if info.SizeBytes != size || ws.store.sb.Slots != slots+uint64(size-int64(ws.blocks)<<blockShift)>>blockShift {
		w.t.Errorf("store %s has %d bytes and %d slots, it had %d slots and grew to %d bytes", ws.name, info.SizeBytes, ws.store.sb.Slots, slots, size)
	}
	ws.bounds++
	ws.blocks = uint64(size) >> blockShift
	return true
}

// takeOver gives the lease of a store to another node, in the midst of requests: from when the holder knows, it writes nothing. Then it is
// switched off.
func (w *world) takeOver(c choose) bool {
	ws := w.stores[c("store", len(w.stores))]
	f := ws.store.fence
	if f == nil {
		return false
	}
	calm(w.t, ws.store, w.sim)
	theirs := f.mine
	theirs.Generation++
	p := alignedBuffer(blockSize)
	theirs.encode(p)
	if err := ws.disk.WriteDurable(p, leaseBlock<<blockShift); err != nil {
		w.t.Fatalf("%v", err)
	}
	err := f.renew()
	if !errors.Is(err, ErrFenced) {
		w.t.Fatalf("store %s: renew a lease that another node has: %v", ws.name, err)
	}
	f.close(err.Error())
	ws.store.fail(errFailed) // as fenced does, which tells the log too
	ws.store.spaceFreed()
	ws.mayFail = true
	w.idle()
	writes, flushes := w.sim.Count(ublktest.Write), w.sim.Count(ublktest.Flush)
	for _, l := range ws.layers {
		if l.block != nil {
			l.submit(l.descriptor(c))
			l.flush()
		}
	}
	w.idle()
	if w.sim.Count(ublktest.Write) != writes || w.sim.Count(ublktest.Flush) != flushes {
		w.t.Errorf("store %s was written to while another node had it", ws.name)
	}
	if err := ws.store.Checkpoint(); !errors.Is(err, errFailed) {
		w.t.Errorf("store %s: checkpoint while another node has it: %v", ws.name, err)
	}
	return w.powerCut(c)
}

// remove removes a layer, or demands that one in use cannot be removed.
func (w *world) remove(c choose) bool {
	l := w.pick(c, func(*worldLayer) bool { return true })
	if l == nil {
		return false
	}
	ws := l.in
	calm(ws.w.t, ws.store, ws.w.sim)
	before := ws.failed()
	detaching := ws.store.layers[l.name].entry.Detaching
	err := ws.store.RemoveLayer(l.name)
	switch {
	case before:
		if err == nil {
			w.t.Errorf("%s was removed after the store had failed", l.name)
		}
	case l.block != nil || ws.standsOn(l, nil) != nil || detaching:
		if !errors.Is(err, ErrLayerInUse) {
			w.t.Fatalf("remove %s, which is in use: %v", l.name, err)
		}
	case err != nil:
		ws.tolerate("remove", err)
		l.fading = true
	default:
		ws.drop(l)
	}
	return true
}

// countdown is a context that ends when it was asked a number of times.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// detach makes a layer independent of its root and ancestors, or a part of the way, to go on another time, or gives it up.
func (w *world) detach(c choose) bool {
	l := w.pick(c, func(*worldLayer) bool { return true })
	if l == nil {
		return false
	}
	ws := l.in
	calm(ws.w.t, ws.store, ws.w.sim)
	before := ws.failed()
	ctx := &countdown{context.Background(), 1 << 30}
	switch c("how", 4) {
	case 0:
		ctx.left = c("blocks", 5)
	case 1:
		if err := ws.store.StopDetach(l.name); err != nil {
			ws.tolerate("stop detach", err)
			l.parting = true
		}
		ws.adopt(l)
		return true
	}
	err := ws.store.Detach(ctx, l.name, l.base(), DetachOptions{BytesPerSecond: 1 << 40})
	switch {
	case errors.Is(err, context.Canceled) && ctx.left < 0:
		w.tally["detach cut short"]++
	case errors.Is(err, ErrNoSpace):
		w.tally["refused: detach"]++
	case err != nil:
		ws.tolerate("detach", err)
		l.parting = !before
	default:
		if before && l.base() != nil {
			w.t.Errorf("%s was detached after the store had failed", l.name)
		}
		if ws.adopt(l); !before && l.base() != nil {
			w.t.Errorf("%s was detached and needs its root", l.name)
		}
	}
	ws.adopt(l)
	return true
}

// adopt notes what of a layer's chain stands alone now.
func (ws *worldStore) adopt(l *worldLayer) {
	if ws.failed() {
		return
	}
	bottom := ws.store.layers[l.name]
	for bottom.parent != nil && !bottom.parent.isWork() {
		bottom = bottom.parent
	}
	if bottom.entry.Pin.Kind != PinNone {
		return
	}
	for _, x := range ws.layers {
		if x.name == bottom.entry.Name {
			x.parent, x.bare = nil, true
		}
	}
}

// transfer copies or moves a layer to another store.
func (w *world) transfer(c choose) bool {
	l := w.pick(c, func(*worldLayer) bool { return true })
	to := w.stores[c("to", len(w.stores))]
	if l == nil || l.in == to || len(to.layers) >= worldLayers {
		return false
	}
	ws := l.in
	calm(ws.w.t, ws.store, ws.w.sim)
	calm(to.w.t, to.store, to.w.sim)
	ctx := &countdown{context.Background(), 1 << 30}
	if c("cancel", 4) == 0 {
		ctx.left = c("blocks", 8)
	}
	move := c("move", 2) == 0
	copied := &worldLayer{in: to, name: to.newName("copy"), root: l.root, size: l.size, bare: l.base() == nil, sealed: l.sealed}
	_, err := ws.store.CopyLayer(ctx, l.name, to.store, copied.name, CopyOptions{Move: move})
	switch {
	case l.block != nil, ws.store.layers[l.name] != nil && ws.store.layers[l.name].entry.Detaching, move && ws.standsOn(l, nil) != nil:
		if !errors.Is(err, ErrLayerInUse) {
			w.t.Fatalf("copy of %s, which is in use: %v", l.name, err)
		}
		return true
	case err != nil && ctx.left < 0:
		return true
	case errors.Is(err, ErrNoSpace):
		w.tally["refused: copy"]++
		there := to.store.layers[copied.name]
		if there == nil {
			return true
		}
		if !move || there.entry.Incoming {
			w.t.Fatalf("copy of %s failed and is still there: %v", l.name, err)
		}
		move = false // only the removal has failed
	case err != nil:
		w.t.Fatalf("copy %s to store %s: %v", l.name, to.name, err)
	}
	copied.content, copied.quota, copied.beyond = l.content.sealed(), l.quota, true
	to.layers = append(to.layers, copied)
	if move {
		ws.drop(l)
	}
	return true
}

// export copies the content of a sealed layer to a file and compares that with the model, byte for byte.
func (w *world) export(c choose) bool {
	l := w.pick(c, isSealed)
	if l == nil {
		return false
	}
	sealed, err := l.in.store.OpenSealed(l.name)
	if err != nil {
		w.t.Fatalf("open sealed %s: %v", l.name, err)
	}
	defer sealed.CloseSealed()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if c("cancel", 8) == 7 {
		cancel()
	}
	path := filepath.Join(w.dir, "export")
	out, err := CreateExport(path, l.size)
	if err != nil {
		w.t.Fatalf("export %s: %v", l.name, err)
	}
	res, err := sealed.Export(ctx, l.base(), out, ExportOptions{})
	if closed := out.Close(); closed != nil {
		w.t.Fatalf("export %s: %v", l.name, closed)
	}
	if err != nil {
		if ctx.Err() == nil && !w.failing(err) {
			w.t.Fatalf("export %s: %v", l.name, err)
		}
		if left, err := filepath.Glob(path + "*"); err != nil || len(left) > 0 {
			w.t.Errorf("a failed export left %d files behind (%v)", len(left), err)
		}
		return true
	}
	got, err := os.ReadFile(path)
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		w.t.Fatalf("export %s: %v", l.name, err)
	}
	if int64(len(got)) != l.size || res.Digest != sha256.Sum256(got) || res.WrittenBytes > l.size {
		w.t.Errorf("export of %s: %d bytes of %d, %d written, or a wrong digest", l.name, len(got), l.size, res.WrittenBytes)
	}
	if err := l.content.compare(got, 0, l.root.content, sinceAcked, false); err != nil {
		w.t.Errorf("export of %s: %v", l.name, err)
	}
	return true
}

// upkeep is what a store does now and then by itself.
func (w *world) upkeep(c choose) bool {
	ws := w.stores[c("store", len(w.stores))]
	calm(ws.w.t, ws.store, ws.w.sim)
	before := ws.failed()
	switch c("upkeep", 5) {
	case 0:
		if err := ws.store.Checkpoint(); err != nil {
			ws.tolerate("checkpoint", err)
		} else if before {
			w.t.Errorf("checkpoint after the store had failed")
		}
	case 1:
		if err := ws.store.flatten(); err != nil {
			ws.tolerate("flatten", err)
		}
	case 2:
		ws.store.maintain()
	case 4:
		err := ws.store.Scrub(context.Background(), ScrubOptions{BytesPerSecond: 1 << 40}, func(p Problem, layer string) {
			if w.injected == nil {
				w.t.Errorf("scrub of store %s: %v of layer %q", ws.name, p, layer)
			}
		})
		if err != nil && !w.failing(err) {
			w.t.Fatalf("scrub store %s: %v", ws.name, err)
		}
	case 3:
		ghosts := len(ws.ghosts)
		var durable []func()
		for _, l := range ws.layers {
			durable = append(durable, l.content.covered())
		}
		if err := ws.store.commit(); err != nil {
			ws.tolerate("commit", err)
			break
		}
		if before {
			break // it does nothing
		}
		for _, f := range durable {
			f()
		}
		ws.forget(ghosts)
	}
	return true
}

// restart closes a store as a daemon does, checks it, and opens it again.
func (w *world) restart(c choose) bool {
	ws := w.stores[c("store", len(w.stores))]
	w.idle()
	var open []*worldLayer
	for _, l := range ws.layers {
		if l.block != nil {
			open = append(open, l)
			l.unplug()
		}
	}
	old := ws.store
	if err := ws.store.Close(); err != nil {
		if ws.tolerate("close", err); w.injected == nil {
			w.t.Fatalf("close %s: %v", ws.name, err)
		}
		ws.store = nil
		ws.recover()
		return true
	}
	old.epochs.collect() // what readers kept when the last commit ended
	free := old.slots.freeSlots()
	ws.store = nil
	ws.check()
	ws.mustOpen()
	if now := ws.store.slots.freeSlots(); now != free && w.injected == nil {
		w.t.Errorf("store %s: %d slots free after opening it again, %d before", ws.name, now, free)
	}
	ws.ghosts = nil
	ws.reconcile(sinceAcked, false)
	for _, l := range open {
		w.plug(l)
	}
	return true
}

// mustOpen opens a store, at the second try where the injected fault made the first one fail.
func (ws *worldStore) mustOpen() {
	ws.w.t.Helper()
	err := ws.open()
	if err != nil && ws.w.failing(err) {
		err = ws.open()
	}
	if err != nil {
		ws.w.t.Fatalf("open %s: %v", ws.name, err)
	}
}

// recover opens a store that was not closed, though the machine went on.
func (ws *worldStore) recover() {
	ws.w.t.Helper()
	ws.mustOpen()
	ws.reconcile(sinceAcked, false)
}

// check runs the checker over a store that is not open.
func (ws *worldStore) check() {
	ws.w.t.Helper()
	rep, err := checkDisk(ws.name, ws.disk, CheckOptions{})
	if err != nil {
		ws.w.t.Fatalf("check %s: %v", ws.name, err)
	}
	for _, p := range rep.Problems {
		if !p.Repairable {
			ws.w.t.Errorf("store %s: %v", ws.name, p)
		}
	}
}

// cutOpening begins to open the store and stops it after some writes and syncs.
func (ws *worldStore) cutOpening(c choose) {
	d := &faultDisk{Disk: ws.disk, left: c("calls", 14), garble: ws.w.boot != uuid.Nil && c("garble", 2) == 1}
	s, err := openOn(ws.name, d, ws.options())
	switch {
	case errors.Is(err, syscall.EIO):
	case err != nil:
		ws.w.t.Fatalf("open %s, to be stopped: %v", ws.name, err)
	default:
		if err := s.pending.close(); err != nil {
			ws.w.t.Fatalf("%v", err)
		}
	}
}

// kill ends the process, perhaps again while it recovers, and opens the stores: all that was acknowledged is there.
func (w *world) kill(c choose) bool {
	w.halt()
	w.serve()
	for _, ws := range w.stores {
		if w.injected == nil {
			for range c("kills", 3) {
				ws.cutOpeningCleanly(c)
			}
		}
		ws.recover()
	}
	return true
}

// cutOpeningCleanly leaves no garbage, as the death of a process does not.
func (ws *worldStore) cutOpeningCleanly(c choose) {
	ws.cutOpening(func(what string, n int) int {
		if what == "garble" {
			return 0
		}
		return c(what, n)
	})
}

// powerCut reboots the machine with what its disks kept, perhaps again while stores recover: all that a flush covered is there.
func (w *world) powerCut(c choose) bool {
	w.halt()
	for _, ws := range w.stores {
		ws.cut(c)
		if w.injected == nil {
			for range c("cuts", 3) {
				ws.cutOpening(c)
				ws.cut(c)
			}
		}
	}
	w.serve()
	for _, ws := range w.stores {
		ws.mustOpen()
		ws.reconcileAfter(endCut)
	}
	return true
}

// cut replaces the disk of a store by what a power cut leaves of it: nothing of what no flush covered, all, or some.
func (ws *worldStore) cut(c choose) {
	w := ws.w
	switch c("left", 8) {
	case 0:
		ws.disk.Cut(func(int, int) bool { return false })
	case 1:
		ws.disk.Cut(func(int, int) bool { return true })
	case 2:
		if err := shear(ws.disk, rand.New(rand.NewPCG(uint64(c("seed", 1<<16)), 0))); err != nil {
			w.t.Fatalf("%v", err)
		}
	default:
		ws.disk.CutSome(rand.New(rand.NewPCG(uint64(c("seed", 1<<16)), 0)))
	}
	if err := os.RemoveAll(filepath.Join(ws.run, "stores")); err != nil {
		w.t.Fatalf("%v", err)
	}
	w.boot = uuid.New()
}

// reconcileAfter compares a store that was opened again with the model.
func (ws *worldStore) reconcileAfter(how ending) {
	ws.w.t.Helper()
	from := sinceAcked
	if how == endCut {
		from = sinceFloor
	}
	ws.reconcile(from, how == endCut)
}

// reconcile compares a store that was opened again with the model: which layers there are, how they stand, and what they hold.
func (ws *worldStore) reconcile(from legal, cut bool) {
	w := ws.w
	w.t.Helper()
	for _, g := range slices.Backward(ws.ghosts) {
		if ws.store.layers[g.layer.name] == nil || !cut && !g.kill {
			continue
		}
		w.tally["layers back"]++
		g.layer.sealed = ws.store.layers[g.layer.name].entry.Sealed
		ws.layers = append(ws.layers, g.layer)
		if g.above != nil {
			g.above.parent = g.layer
		}
	}
	ws.ghosts = nil
	for _, l := range slices.Clone(ws.layers) {
		if l.fading && ws.store.layers[l.name] == nil {
			ws.drop(l)
		}
		l.fading = false
	}
	have := 0
	for _, l := range ws.store.layers {
		if !l.isWork() {
			have++
		}
	}
	if have != len(ws.layers) {
		w.t.Fatalf("store %s: %d layers, want %d: %s", ws.name, have, len(ws.layers), ws.names())
	}
	for _, l := range ws.layers {
		if ws.store.layers[l.name] == nil {
			w.t.Fatalf("store %s: layer %s is gone: %s", ws.name, l.name, ws.names())
		}
		if l.parting {
			ws.adopt(l)
			l.parting = false
		}
	}
	if ws.store.sb.SizeBlocks != ws.blocks {
		w.t.Fatalf("store %s has %d blocks, want %d", ws.name, ws.store.sb.SizeBlocks, ws.blocks)
	}
	for _, l := range ws.layers {
		if l.beyond = l.beyond || cut; !l.sealed { // what was discarded may be back
			l.keepsQuota()
		}
		have := ws.store.layers[l.name]
		parent := ""
		if l.parent != nil {
			parent = l.parent.name
		}
		info := have.Info()
		if p := have.parent; p != nil && p.isWork() { // all but merged with the copy that it stands on
			info.Parent = ""
		}
		if info.Parent != parent || info.Sealed != l.sealed || info.Pin != rootPin(l.base()) || info.SizeBytes != l.size || info.Open || info.QuotaBytes != l.quota {
			w.t.Fatalf("store %s: layer %s on %q, want on %q, sealed %v, want %v", ws.name, l.name, info.Parent, parent, info.Sealed, l.sealed)
		}
		l.verify(from, true, false)
	}
}

func (ws *worldStore) names() (names string) {
	for _, i := range ws.store.Info().Layers {
		names += fmt.Sprintf(" %s on %q", i.Name, i.Parent)
	}
	return names
}

// verify compares a layer with the model: all of it, or the parts where most requests go and what was written since the last time.
func (l *worldLayer) verify(from legal, narrow, whole bool) {
	w := l.in.w
	w.t.Helper()
	layer := l.in.store.layers[l.name]
	if layer == nil {
		w.t.Fatalf("layer %s is gone", l.name)
	}
	reader := l.in.store.newReader()
	defer reader.close()
	check := func(off, end int64) {
		p := w.chunk.buf[:end-off]
		read := func() error { return layer.readBlocks(reader, l.base(), p, off, w.chunk, nil) }
		if err := read(); err != nil {
			if !w.failing(err) {
				w.t.Fatalf("read %s at %d: %v", l.name, off, err)
			}
			if err := read(); err != nil {
				w.t.Fatalf("read %s at %d once more: %v", l.name, off, err)
			}
		}
		if err := l.content.compare(p, int(off/sector), l.root.content, from, narrow); err != nil {
			w.t.Fatalf("%s: %v", l.name, err)
		}
	}
	if whole {
		for off := int64(0); off < l.size; off += exportChunk {
			check(off, min(off+exportChunk, l.size))
		}
		return
	}
	head := min(l.size, 160<<10)
	check(0, head)
	tail := max(head, (l.size-224<<10)&^(blockSize-1))
	if tail < l.size {
		check(tail, l.size)
	}
	for _, s := range slices.Sorted(maps.Keys(l.content.open)) {
		if off := int64(s) * sector &^ (blockSize - 1); off >= head && off < tail {
			check(off, min(off+blockSize, l.size))
		}
	}
}

// finish lets everything end, compares all of every layer with the model, and checks the stores.
func (w *world) finish() {
	w.t.Helper()
	w.idle()
	for _, ws := range w.stores {
		for _, l := range ws.layers {
			l.verify(sinceAcked, false, true)
		}
	}
	w.shut()
}

// shut closes the stores and checks them.
func (w *world) shut() {
	w.t.Helper()
	w.idle()
	for _, ws := range w.stores {
		for _, l := range ws.layers {
			if l.block != nil {
				l.unplug()
			}
		}
		if err := ws.store.Close(); err != nil {
			w.t.Fatalf("close %s: %v", ws.name, err)
		}
		ws.store = nil
		ws.check()
	}
}
