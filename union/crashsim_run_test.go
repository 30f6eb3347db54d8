package union

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"testing/synctest"

	"github.com/google/uuid"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// simGeometry is the shape of a store and its devices.
type simGeometry struct {
	blocks, logBlocks, logA, gap uint64
	deviceBytes                  int64
	rootBytes                    int
	windows                      []window // where requests go and content is compared; nil: everywhere
}

// window is a range of blocks of a device. The last may be cut short by the end of the device.
type window struct{ at, blocks int64 }

// The devices end, and the root ends, within a block. The last two have more than one region of the sector map.
var simGeometries = []simGeometry{
	{128, 8, 17, 0, 8*blockSize - 3*sector, 5*blockSize + 777, nil},
	{128, 8, 17, 3, 13*blockSize - 5*sector, 9*blockSize + 777, nil},
	{192, 8, 20, 1, 16*blockSize - 1*sector, 12*blockSize + 99, nil},
	{256, 16, 17, 7, 12*blockSize - 7*sector, 12*blockSize - 7*sector, nil},
	{512, 12, 32, 16, 32*blockSize - 4*sector, 20*blockSize + 5, nil},
	{128, 8, 17, 0, 30*blockSize - 3*sector, 3*blockSize + 777, nil}, // hardly any slot is free
	{256, 8, 17, 0, 2*regionBlocks*blockSize + 2*blockSize - 3*sector, 3*blockSize + 777,
		[]window{{0, 4}, {regionBlocks - 3, 6}, {2*regionBlocks - 2, 4}}},
	{256, 8, 17, 0, 9*regionBlocks*blockSize - 5*sector, 1*blockSize + 777,
		[]window{{0, 2}, {2*regionBlocks - 1, 3}, {4 * regionBlocks, 2}, {6*regionBlocks + 500, 2}, {9*regionBlocks - 2, 2}}},
}

// sectors is how many sectors the windows have.
func (g *simGeometry) sectors() int {
	if g.windows == nil {
		return int(g.deviceBytes / sector)
	}
	n := int64(0)
	for _, w := range g.windows {
		n += w.sectors(g.deviceBytes)
	}
	return int(n)
}

func (w window) sectors(deviceBytes int64) int64 {
	return min((w.at+w.blocks)<<blockShift, deviceBytes)/sector - w.at<<blockShift/sector
}

// place is where on the device a sector of the windows lies, and how many follow it there.
func (g *simGeometry) place(s int) (off int64, left int) {
	if g.windows == nil {
		return int64(s) * sector, int(g.deviceBytes/sector) - s
	}
	for _, w := range g.windows {
		n := int(w.sectors(g.deviceBytes))
		if s < n {
			return w.at<<blockShift + int64(s)*sector, n - s
		}
		s -= n
	}
	panic("sector beyond the windows")
}

// simConfig says what a run is like. Everything random in it comes from the seed.
type simConfig struct {
	seed       uint64
	geometry   simGeometry
	runDir     bool // records survive the process
	fifo       bool // one thing after the other
	oneQueue   bool
	fileRoot   bool
	exhaustive int  // up to how many pending writes every subset of them is a state
	spoils     int  // of power cuts among random writes, one in so many leaves garbage of what it does not keep
	recuts     int  // after one power cut in so many the recovery is cut too
	kills      int  // the process dies after one event in so many, and in so many of the recoveries from that again
	damage     int  // a damaged disk is looked at after one event in so many
	faultAt    int  // which write or flush of the disk fails, if not 0
	faultFlush bool // which flush
	slow       []ublktest.Kind
	slowCalls  bool // what blocks goes on when requests have nothing to do, mostly
	relapses   bool // recoveries that have to level the superblocks are cut at each write
	scope      bool // those subsets and the death of the process after each event, and nothing at random
	blind      bool // no state is looked at: what the living store does is
	deaf       bool // the oracle takes what is acknowledged for flushed: to prove that violations are found
	mix        opMix
}

func newSimConfig(seed uint64) simConfig {
	rng := rand.New(rand.NewPCG(seed, 30))
	c := simConfig{
		seed: seed, geometry: simGeometries[rng.IntN(len(simGeometries))],
		runDir: rng.IntN(2) == 0, fileRoot: rng.IntN(2) == 0, mix: opMixes[rng.IntN(len(opMixes))],
		exhaustive: 4, spoils: 6, recuts: 8, kills: 3, damage: 4,
	}
	if rng.IntN(16) == 0 {
		c.exhaustive = 12
	}
	if rng.IntN(10) == 0 {
		c.faultAt = 1 + rng.IntN(60)
	}
	c.relapses = rng.IntN(8) == 0
	return c
}

// simBase is a root that is read at once where it is no file.
type simBase struct {
	memBase
}

func (b *simBase) TryRead([]byte, int64) (Origins, bool) { return 0, false }

func (b *simBase) ReadAsync(p []byte, off int64, done func(Origins, error)) {
	copy(p, b.content[off:])
	done(FromRoot, nil)
}

// simDevice is one of the block devices of a run.
type simDevice struct {
	layer *Layer
	dev   *Device
	block *ublktest.Device
	model *layerModel
}

// simRun is one life of a store in the simulator. It lives in a bubble of testing/synctest.
type simRun struct {
	cfg   simConfig
	stats *simStats
	life  int
	rng   *rand.Rand // of the schedule
	pick  *rand.Rand // of the states
	late  *rand.Rand // of relapses

	disk    *ublktest.Disk
	base    *simBase
	gate    *gate
	store   *Store
	sim     *ublktest.Sim
	devices [2]*simDevice
	model   *storeModel
	trace   []string
	stamp   uint64
	made    int // names given

	look    looker
	dir     string // run directory
	boot    uuid.UUID
	changed bool // the disk, since the last look
	ios     int  // writes and flushes of the disk so far
	faulty  bool // one of them has failed
	unsafe  bool // and it was a flush
	failed  *violation
}

// violation is what a run was stopped by.
type violation struct {
	err   error
	state string
	trace []string
}

func (v *violation) Error() string { return fmt.Sprintf("%v\n%s", v.err, v.state) }

func (r *simRun) fail(err error, state string) {
	if r.failed == nil && err != nil {
		r.failed = &violation{err: err, state: state, trace: append([]string(nil), r.trace...)}
	}
}

func (r *simRun) note(format string, a ...any) { r.trace = append(r.trace, fmt.Sprintf(format, a...)) }

// simStore is the UUID of all simulated stores.
var simStore = uuid.MustParse("5c0ffee5-0000-4000-8000-000000000001")

// begin makes a store with two devices.
func (r *simRun) begin() error {
	g := r.cfg.geometry
	r.rng = rand.New(rand.NewPCG(r.cfg.seed, 31))
	r.pick = rand.New(rand.NewPCG(r.cfg.seed, 32))
	r.late = rand.New(rand.NewPCG(r.cfg.seed, 35))
	r.boot = uuid.UUID{1, byte(r.cfg.seed)}
	r.base = &simBase{memBase{content: make([]byte, g.rootBytes)}}
	for i := range r.base.content {
		r.base.content[i] = byte(r.rng.Uint32())
	}
	var err error
	if r.cfg.fileRoot {
		if r.base.disk, err = ublktest.NewDisk("root", int64(g.rootBytes)); err != nil {
			return err
		}
		copy(r.base.disk.Bytes(), r.base.content)
	}
	if r.disk, err = ublktest.NewDisk("leaf", int64(g.blocks)<<blockShift); err != nil {
		return err
	}
	shape := layoutOf(g.blocks, g.logBlocks, g.logA, g.gap)
	if _, err := formatDisk("leaf", r.disk, FormatOptions{UUID: simStore, geometry: &shape}); err != nil {
		return err
	}
	r.disk.Settle()
	r.model = newStoreModel()
	return r.serve(r.openOptions())
}

func (r *simRun) openOptions() StoreOptions {
	if r.cfg.runDir && r.life == 0 {
		return StoreOptions{RunDir: r.dir, boot: r.boot}
	}
	return StoreOptions{boot: uuid.UUID{2, byte(r.life)}}
}

// serve opens the store on the disk and puts devices on its layers.
func (r *simRun) serve(o StoreOptions) error {
	r.gate = &gate{open: true}
	var err error
	if r.store, err = openOn("leaf", &recorder{r.disk, r.gate, r.fault}, o); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	r.sim = ublktest.NewSim(ublktest.SimConfig{Seed: r.cfg.seed + uint64(r.life)<<32, FIFO: r.cfg.fifo, Slow: r.cfg.slow})
	r.sim.AddDisk(r.disk)
	if r.base.disk != nil {
		r.sim.AddDisk(r.base.disk)
	}
	r.sim.Inject = func(e ublktest.Event) (f ublktest.Fault) {
		if e.Kind != ublktest.Read && e.Disk == r.disk && r.fault(e.Kind == ublktest.Flush) {
			f.Errno = syscall.EIO
		}
		return f
	}
	r.sim.Hook = func(e ublktest.Event) {
		if e.After && e.Kind != ublktest.Read {
			r.changed = true
		}
	}
	names := []string{}
	for _, name := range r.model.names() {
		if !r.model.layers[name].sealed && len(names) < len(r.devices) {
			names = append(names, name)
		}
	}
	for len(names) < len(r.devices) {
		names = append(names, r.name("web"))
	}
	for i, name := range names {
		if err := r.attach(i, name, ""); err != nil {
			return err
		}
	}
	r.disk.Settle()
	r.look.begin(r)
	r.gate.open = false
	return nil
}

// fault tells whether a write or flush of the disk is to fail, once devices are there.
func (r *simRun) fault(flush bool) bool {
	if r.cfg.faultAt == 0 || r.cfg.faultFlush && !flush || r.life > 0 || r.devices[1] == nil {
		return false
	}
	if r.ios++; r.ios != r.cfg.faultAt {
		return false
	}
	r.note("  %s fails", map[bool]string{true: "flush", false: "write"}[flush])
	r.faulty, r.unsafe = true, r.unsafe || flush
	return true
}

// acknowledgedLate notices what is acknowledged though the store has failed. A flush that was under way when a write
// failed may still tell the truth.
func (r *simRun) acknowledgedLate(flush bool) {
	if r.faulty && r.failedStore() && (!flush || r.unsafe) {
		r.fail(errors.New("acknowledged after the store had failed"), "")
	}
}

// failedStore tells whether the store takes no more writes, without its lock, which a call that waits may hold.
func (r *simRun) failedStore() bool {
	r.store.log.mu.Lock()
	defer r.store.log.mu.Unlock()
	return r.store.log.failed
}

func (r *simRun) name(kind string) string {
	r.made++
	return fmt.Sprintf("%s%d-%d", kind, r.life, r.made)
}

// attach opens or makes a layer and puts a device on it.
func (r *simRun) attach(i int, name, from string) error {
	l, err := r.store.OpenLayer(name, LayerOptions{Create: true, From: from, Pin: r.base.Pin(), SizeBytes: r.cfg.geometry.deviceBytes})
	if err != nil {
		return err
	}
	return r.plug(i, l)
}

func (r *simRun) plug(i int, l *Layer) error {
	m := r.model.layers[l.Name()]
	if m == nil {
		m = r.model.add(l.Name(), false, r.rootContent())
		r.model.exists(m)
	}
	dev, err := NewDevice(l, r.base, DeviceOptions{})
	if err != nil {
		return err
	}
	c := ublktest.DeviceConfig{SizeBytes: r.cfg.geometry.deviceBytes, Queues: 2, Depth: 3, MaxIO: 32 << 10}
	if r.cfg.oneQueue {
		c.Queues = 1
	}
	block, err := r.sim.NewDevice(dev, c)
	if err != nil {
		return err
	}
	r.devices[i] = &simDevice{l, dev, block, m}
	return nil
}

// rootContent is what a device without writes reads, by sector.
func (r *simRun) rootContent() [][]byte {
	parts := make([][]byte, r.cfg.geometry.sectors())
	for s := range parts {
		parts[s] = make([]byte, sector)
		if off, _ := r.cfg.geometry.place(s); off < int64(len(r.base.content)) {
			copy(parts[s], r.base.content[off:])
		}
	}
	return parts
}

// live plays a script and looks at what comes after its first operations, which are carried out one after the other. A panic of
// the code under test is a violation.
func (r *simRun) live(script []simOp, from int) {
	defer func() {
		if p := recover(); p != nil {
			r.fail(fmt.Errorf("panic: %v\n%s", p, debug.Stack()), "")
		}
	}()
	r.look.silent = true
	for i := range script[:from] {
		r.play(script[i : i+1])
	}
	r.look.silent = r.cfg.blind
	r.play(script[from:])
}

// play carries out a script, and what is under way at its end.
func (r *simRun) play(script []simOp) {
	for i := range script {
		if r.failed != nil {
			break
		}
		r.do(&script[i])
		for range script[i].steps {
			if r.failed != nil || !r.step() {
				break
			}
		}
	}
	r.drain()
}

// end forgets the store as the death of the process does.
func (r *simRun) end() {
	defer r.close()
	if r.sim == nil {
		return
	}
	r.sim.Halt()
	r.gate.halt()
	l := r.store.log
	l.mu.Lock()
	l.failed, l.committing = true, false
	l.ended.Broadcast()
	l.mu.Unlock()
	synctest.Wait()
	for _, d := range r.devices {
		if d != nil {
			d.block.Close()
		}
	}
	_ = r.store.pending.close()
}

func (r *simRun) close() {
	if r.disk != nil {
		r.disk.Close()
	}
	if r.base.disk != nil && r.life == 0 {
		r.base.disk.Close()
	}
}

// step lets one thing happen, and looks at the states that the disk may be left in after it. It reports whether there was
// something to do.
func (r *simRun) step() bool {
	did := r.turn()
	if r.gate.busy {
		synctest.Wait()
		r.gate.settle()
	}
	if did && r.failed == nil {
		r.look.after(r)
	}
	return did
}

func (r *simRun) turn() bool {
	ready := r.gate.busy && r.gate.ready()
	wait := 3
	if r.cfg.slowCalls {
		wait = 24
	}
	if ready && (r.cfg.fifo || r.rng.IntN(wait) == 0) {
		r.letThrough()
		return true
	}
	if !r.gate.busy && r.rng.IntN(8) == 0 && r.maintain() {
		return true
	}
	if r.sim.Step() {
		return true
	}
	synctest.Wait()
	switch {
	case r.sim.Step():
	case r.gate.busy && r.gate.ready():
		r.letThrough()
	default:
		return !r.gate.busy && r.maintain()
	}
	return true
}

func (r *simRun) letThrough() {
	r.changed = true
	r.gate.next(r.rng.IntN(4))
}

// maintain begins a round of the background work if it was asked for.
func (r *simRun) maintain() bool {
	select {
	case <-r.store.kick:
	default:
		return false
	}
	r.gate.start(func() func() {
		r.store.maintain()
		return func() {}
	})
	return true
}

// drain lets everything come to its end.
func (r *simRun) drain() {
	for n := 0; r.step(); n++ {
		if n == 1e5 {
			r.fail(errors.New("it goes on without end"), "")
			return
		}
	}
	if r.failed != nil {
		return
	}
	if r.gate.busy {
		r.fail(errors.New("a call waits for something that does not come"), "")
		return
	}
	r.fail(r.sim.Run(), "")
	if failed := r.failedStore(); failed != r.faulty {
		r.fail(fmt.Errorf("a write or flush has failed: %v; the store takes no more writes: %v", r.faulty, failed), "")
	}
}

// alone waits until no other blocking call is under way.
func (r *simRun) alone() {
	for r.gate.busy && r.failed == nil && r.step() {
	}
}

// do begins one operation.
func (r *simRun) do(op *simOp) {
	switch op.kind {
	case opWrite, opZero, opDiscard, opRead:
		r.request(op)
	case opFlush:
		r.flush(op)
	case opDrain:
		r.drain()
	default:
		r.alone()
		if r.failed == nil {
			r.work(op)
		}
	}
}

func (r *simRun) device(op *simOp) *simDevice {
	if d := r.devices[op.dev%2]; d != nil {
		return d
	}
	return r.devices[0]
}

// request submits a request to a range, once no other that changes it is in flight.
func (r *simRun) request(op *simOp) {
	d := r.device(op)
	m := d.model
	n := len(m.sectors)
	first := op.first % n
	off, left := r.cfg.geometry.place(first)
	count := min(op.count, left)
	desc := ublk.Descriptor{Off: off, Len: int64(count) * sector}
	if op.kind == opDiscard && op.count >= n { // of the whole device
		first, count = 0, n
		desc.Off, desc.Len = 0, r.cfg.geometry.deviceBytes
	}
	for s := first; s < first+count; s++ {
		for m.sectors[s].busy {
			if !r.step() || r.failed != nil {
				return
			}
		}
	}
	r.note("%v device %d sectors %d to %d%s", op.kind, op.dev%2, first, first+count-1, map[bool]string{true: " FUA"}[op.fua && op.kind == opWrite])
	if op.kind == opRead {
		desc.Op = ublk.OpRead
		r.read(d, desc, first, count)
		return
	}
	desc.Op = map[opKind]ublk.Op{opWrite: ublk.OpWrite, opZero: ublk.OpWriteZeroes, opDiscard: ublk.OpDiscard}[op.kind]
	desc.FUA = op.kind == opWrite && op.fua
	r.change(d, desc, first, count)
}

func (r *simRun) change(d *simDevice, desc ublk.Descriptor, first, count int) {
	m := d.model
	data := make([]byte, count*sector)
	var req *simRequest
	at := make([]int, count)
	if desc.Op == ublk.OpWrite {
		req = &simRequest{first, at}
		r.stamp++
	}
	for i := range count {
		x := &m.sectors[first+i]
		p := data[i*sector:][:sector:sector]
		if req != nil {
			fill(p, r.cfg.seed<<40|uint64(r.life)<<38|r.stamp<<16|uint64(first+i))
		}
		at[i] = len(x.history)
		x.history = append(x.history, sectorValue{p, req})
		x.busy = true
	}
	if desc.Op != ublk.OpWrite {
		data = nil
	}
	deaf := r.cfg.deaf && r.life == 0
	d.block.Submit(desc, data, func(errno syscall.Errno, _ []byte) {
		for i := range count {
			x := &m.sectors[first+i]
			x.busy = false
			if errno != 0 {
				continue
			}
			x.acked = at[i]
			if desc.FUA || deaf {
				x.floor = max(x.floor, at[i])
			}
		}
		switch {
		case errno == 0:
			if !desc.FUA { // which is durable by itself
				r.acknowledgedLate(false)
			}
			r.note("  acknowledged: sectors %d to %d of %s", first, first+count-1, m.name)
			r.model.acks++
			if desc.FUA || deaf {
				r.model.strict++
			}
		case errno != syscall.ENOSPC && !r.faulty:
			r.fail(fmt.Errorf("request to sectors %d to %d of %s: %w", first, first+count-1, m.name, errno), "")
		}
	})
}

// read demands that a read returns, for each sector, what was acknowledged when it began or something newer.
func (r *simRun) read(d *simDevice, desc ublk.Descriptor, first, count int) {
	low := make([]int, count)
	for i := range low {
		low[i] = d.model.sectors[first+i].acked
	}
	d.block.Submit(desc, nil, func(errno syscall.Errno, data []byte) {
		if errno != 0 {
			r.fail(fmt.Errorf("read of sectors %d to %d of %s: %w", first, first+count-1, d.model.name, errno), "")
			return
		}
		for i := range low {
			history := d.model.sectors[first+i].history
			p := data[i*sector:][:sector]
			at := len(history) - 1
			for at >= low[i] && string(history[at].p) != string(p) {
				at--
			}
			if at < low[i] {
				r.fail(d.model.wrong(first+i, p, history, low[i], processDeath), "seen by a read of the living device")
				return
			}
		}
	})
}

func (r *simRun) flush(op *simOp) {
	covered, merged := r.model.acknowledged(), r.model.mergedNow()
	r.note("flush device %d", op.dev%2)
	r.device(op).block.Submit(flushDescriptor, nil, func(errno syscall.Errno, _ []byte) {
		if errno != 0 {
			if !r.faulty {
				r.fail(fmt.Errorf("flush: %w", errno), "")
			}
			return
		}
		r.acknowledgedLate(true)
		r.note("  acknowledged: flush")
		r.model.flushed(covered, merged, r.durable())
	})
}

// durable is the last log block that flushes covered.
func (r *simRun) durable() uint64 {
	r.store.log.mu.Lock()
	defer r.store.log.mu.Unlock()
	return r.store.log.durable
}

// work begins a call that blocks.
func (r *simRun) work(op *simOp) {
	d := r.device(op)
	switch op.kind {
	case opCheckpoint:
		covered, merged := r.model.acknowledged(), r.model.mergedNow()
		r.call("checkpoint", r.store.Checkpoint, func() { r.model.flushed(covered, merged, 0) }, nil)
	case opCommit:
		r.call("commit", r.store.commit, func() {}, nil)
	case opFlatten:
		r.call("flatten", r.store.flatten, func() {}, nil)
	case opFreeze:
		r.freeze(d)
	case opMerge:
		r.merge(d)
	case opRemove:
		r.remove(op.pick)
	case opCreate:
		r.create(op.pick)
	case opBranch:
		r.branch(op.pick)
	}
}

// call runs f beside the requests. Where it fails for want of space or because a layer is in use, undo is called.
func (r *simRun) call(what string, f func() error, done, undo func()) {
	r.note("%s", what)
	r.gate.start(func() func() {
		err := f()
		return func() {
			switch {
			case err == nil:
				r.note("  done: %s", what)
				done()
			case undo != nil && (errors.Is(err, ErrLayerInUse) || errors.Is(err, ErrNoSpace)):
				r.note("  not done: %s: %v", what, err)
				undo()
			case r.faulty: // it may have happened or not
				r.note("  not done: %s: %v", what, err)
			default:
				r.fail(fmt.Errorf("%s: %w", what, err), "")
			}
		}
	})
}

func (r *simRun) freeze(d *simDevice) {
	if d.layer.Info().Parent != "" && len(r.model.layers) > 8 {
		return
	}
	name := r.name("sealed")
	m := &layerModel{name: name, sealed: true, of: d.model, mayCut: true, mayKill: true}
	for s := range d.model.sectors {
		m.acks = append(m.acks, d.model.sectors[s].acked)
		m.lows = append(m.lows, d.model.sectors[s].floor)
	}
	r.model.layers[name] = m
	covered, merged := r.model.acknowledged(), r.model.mergedNow()
	r.call("freeze "+d.model.name+" as "+name, func() error {
		f, err := d.layer.PrepareFreeze(name)
		if err != nil {
			return err
		}
		defer f.Cancel()
		_, err = f.Seal()
		return err
	}, func() {
		r.model.flushed(covered, merged, r.durable())
		r.model.shots[len(r.model.shots)-1].sealed = m
		r.sealed(m)
	}, func() { delete(r.model.layers, name) })
}

// sealed takes what a layer holds that has just been sealed as its content from now on, if it is legal.
func (r *simRun) sealed(m *layerModel) {
	l, err := r.store.OpenSealed(m.name)
	if err != nil {
		r.fail(err, "")
		return
	}
	defer l.CloseSealed()
	got := make([]byte, r.cfg.geometry.sectors()*sector)
	var c contents
	if _, err := c.readLayer(l, r.base, &r.cfg.geometry, got); err != nil {
		r.fail(fmt.Errorf("read %s: %w", m.name, err), "")
		return
	}
	if err := m.check(got, nil, processDeath); err != nil {
		r.fail(err, "seen in the living store")
		return
	}
	m.of, m.proof = nil, m
	for s := range len(got) / sector {
		m.sectors = append(m.sectors, sectorModel{history: []sectorValue{{p: got[s*sector:][:sector:sector]}}})
	}
	r.model.exists(m)
}

func (r *simRun) merge(d *simDevice) {
	below := r.model.layers[d.layer.Info().Parent]
	if below == nil {
		return
	}
	below.mustCut, below.mustKill = false, false
	r.call("merge "+d.model.name+" with "+below.name, d.layer.Merge, func() {
		below.mayKill, below.merged = false, true
		r.model.acks++
	}, func() { r.model.exists(below) })
}

// candidates are the names of layers that are there and that no device has open.
func (r *simRun) candidates(ok func(*layerModel) bool) (names []string) {
	for _, name := range r.model.names() {
		l := r.model.layers[name]
		open := false
		for _, d := range r.devices {
			open = open || d != nil && d.model == l
		}
		if l.mustCut && !open && ok(l) {
			names = append(names, name)
		}
	}
	return names
}

func (r *simRun) remove(pick int) {
	names := r.candidates(func(*layerModel) bool { return true })
	if len(names) == 0 {
		return
	}
	m := r.model.layers[names[pick%len(names)]]
	m.mustCut, m.mustKill = false, false
	r.call("remove "+m.name, func() error { return r.store.RemoveLayer(m.name) }, func() {
		delete(r.model.layers, m.name)
		r.model.strict++
	}, func() { r.model.exists(m) })
}

// create makes a layer from a sealed one, or from the root where there is none.
func (r *simRun) create(pick int) {
	if len(r.model.layers) > 7 {
		return
	}
	name, from, content := r.name("leaf"), "", r.rootContent()
	if sealed := r.candidates(func(l *layerModel) bool { return l.sealed }); len(sealed) > 0 {
		from = sealed[pick%len(sealed)]
		content = r.model.layers[from].latest()
	}
	m := r.model.add(name, false, content)
	m.proof = r.model.layers[from]
	r.call("create "+name+" from "+from, func() error {
		l, err := r.store.OpenLayer(name, LayerOptions{Create: true, From: from, Pin: r.base.Pin(), SizeBytes: r.cfg.geometry.deviceBytes})
		if err == nil {
			l.Release()
		}
		return err
	}, func() { r.model.exists(m) }, func() { delete(r.model.layers, name) })
}

// branch puts the second device on a leaf that no device has open, once its requests are answered.
func (r *simRun) branch(pick int) {
	leaves := r.candidates(func(l *layerModel) bool { return !l.sealed })
	if len(leaves) == 0 {
		return
	}
	r.drain()
	if r.failed != nil {
		return
	}
	d := r.devices[1]
	if err := d.block.Close(); err != nil {
		r.fail(err, "")
		return
	}
	d.layer.Release()
	name := leaves[pick%len(leaves)]
	r.note("device 1 on %s", name)
	if err := r.attach(1, name, ""); err != nil {
		r.fail(err, "")
	}
}

// ring returns the file of records that would outlive the process.
func (r *simRun) ring() ([]byte, error) {
	return os.ReadFile(pendingPath(r.dir, simStore))
}

// leaveRing makes a run directory as a process leaves it that dies now.
func leaveRing(dir string, ring []byte) error {
	path := pendingPath(dir, simStore)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	if err := os.Remove(path + ".new"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, ring, 0o600)
}
