package union

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// Layer is the blocks that one device wrote, in a store. It is open for one device at a time.
type Layer struct {
	store   *Store
	entry   layerEntry // guarded by Store.mu; Pin changes only under mu as well
	opened  bool       // guarded by Store.mu
	made    bool       // by the OpenLayer that has it open
	readers int        // of a sealed layer; guarded by Store.mu
	detach  *detach    // under way; guarded by Store.mu

	mu     sync.Mutex // guards what follows, and the content of m where the layer is not sealed; of a sealed one m may be replaced by an equal one
	m      *sectorMap // what the layer itself holds
	parent *Layer     // sealed; nil: the root

	flatDone   bool // flat is complete; guarded by Store.mu, as flatStored is
	flatStored bool // and the store has all of it

	flat *sectorMap           // of a sealed layer, what it and those below it hold of regions that several touch, or nil; guarded by Store.mu
	view atomic.Pointer[view] // of a sealed layer and all below it, once it is built

	quota    atomic.Uint64 // blocks; 0: none
	reserved uint64        // blocks that requests under way may add; guarded by mu
	inLine   atomic.Int32  // requests in line for space
	pool     pool          // guarded by space.mu, as is what follows
	lined    [classes]int  // requests in line
	name     string
	passed   uint64 // by the pass of serveLine in which its quota was short
}

// LayerOptions say how to open a layer.
type LayerOptions struct {
	Create    bool   // make it where it does not exist
	From      string // with Create: the sealed layer that the new one stands on; empty: the root alone
	Pin       Pin    // the root that the device stands on
	SizeBytes int64  // of the device; 0: the layer's own
	// QuotaBytes bounds the data of a layer that is made, as [Layer.SetQuota] does.
	QuotaBytes int64
}

// LayerInfo describes a layer.
type LayerInfo struct {
	Name        string    `json:"name"`
	UUID        string    `json:"uuid"`
	SizeBytes   int64     `json:"size_bytes"` // of the device
	DataBytes   int64     `json:"data_bytes"` // in slots of its own
	MapBytes    int64     `json:"map_bytes"`  // its maps on the store
	MemoryBytes int64     `json:"memory_bytes"`
	QuotaBytes  int64     `json:"quota_bytes,omitempty"` // of data; 0: none
	Parent      string    `json:"parent,omitempty"`      // the sealed layer below
	Sealed      bool      `json:"sealed"`
	Open        bool      `json:"open"`
	Created     time.Time `json:"created"`
	Pin         Pin       `json:"pin"`

	// Space tells how full the quota is, where there is one.
	Space *SpaceInfo `json:"space,omitempty"`

	Detaching  bool            `json:"detaching"`            // being made independent of what is below it
	Detach     *DetachProgress `json:"detach,omitempty"`     // while it is
	Unfinished bool            `json:"unfinished,omitempty"` // a copy of another layer's content that is not complete yet
}

func newLayer(s *Store, e layerEntry) *Layer { return &Layer{store: s, entry: e} }

// describe is what the catalog is to say of the layer. The caller holds Store.mu.
func (l *Layer) describe() layerEntry {
	e := l.entry
	e.Map = l.m.entry()
	e.Flat, e.FlatDone = mapEntry{}, false
	if l.flat != nil {
		e.Flat, e.FlatDone = l.flat.entry(), l.flatStored
	}
	return e
}

// OpenLayer opens a layer for a device, or makes it. Making one takes a catalog write and three
// flushes, whatever the size of the device. It fails with [ErrNoLayer], [ErrLayerInUse], or [ErrOtherRoot] where the layer
// stands on another root than Pin.
func (s *Store) OpenLayer(name string, o LayerOptions) (*Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("open layer %q: store %s: %w", name, s.path, ErrClosed)
	}
	l := s.layers[name]
	if l == nil && o.Create {
		return s.makeLayer(name, o)
	}
	switch {
	case l == nil:
		return nil, fmt.Errorf("open layer %q in store %s: %w", name, s.path, ErrNoLayer)
	case l.opened, l.readers > 0 && !l.entry.Sealed:
		return nil, fmt.Errorf("open layer %q in store %s: %w", name, s.path, ErrLayerInUse)
	case l.entry.Incoming:
		return nil, fmt.Errorf("open layer %q in store %s: %w: it is a copy that is not complete", name, s.path, ErrLayerInUse)
	case l.entry.Sealed:
		return nil, fmt.Errorf("open layer %q in store %s: %w: make a new layer from it (--from %s)", name, s.path, ErrSealed, name)
	case o.From != "" && (l.parent == nil || l.parent.entry.Name != o.From):
		return nil, fmt.Errorf("open layer %q in store %s: it exists already and does not stand on %q: give another name", name, s.path, o.From)
	}
	if d := l.entry.Pin.Difference(o.Pin); d != "" {
		return nil, fmt.Errorf("open layer %q in store %s: %w: this one has %s; give the root that it was made for, or another layer",
			name, s.path, ErrOtherRoot, d)
	}
	if o.SizeBytes != 0 && o.SizeBytes != l.entry.SizeBytes {
		return nil, fmt.Errorf("open layer %q in store %s: its device has %d bytes, not %d: leave the size away, or give another layer",
			name, s.path, l.entry.SizeBytes, o.SizeBytes)
	}
	l.opened = true
	return l, nil
}

func (s *Store) makeLayer(name string, o LayerOptions) (*Layer, error) {
	if err := ValidLayerName(name); err != nil {
		return nil, err
	}
	if s.readOnly {
		return nil, fmt.Errorf("make layer %q in store %s: %w", name, s.path, ErrReadOnly)
	}
	parent, err := s.parentFor(name, o)
	if err != nil {
		return nil, err
	}
	size := o.SizeBytes
	switch {
	case parent != nil:
		size = parent.entry.SizeBytes
	case size == 0:
		size = o.Pin.SizeBytes
	}
	if size <= 0 || size>>blockShift > maxBlock || size%512 != 0 {
		return nil, fmt.Errorf("make layer %q: device size of %d bytes: must be a multiple of 512, more than 0 and less than 4 PiB", name, size)
	}
	err = s.fewEnough()
	if err == nil {
		err = s.roomForLayer()
	}
	if err != nil {
		return nil, fmt.Errorf("make layer %q: %w", name, err)
	}
	if err := validQuota(o.QuotaBytes); err != nil {
		return nil, fmt.Errorf("make layer %q: %w", name, err)
	}
	l := newLayer(s, layerEntry{
		Number: s.sb.NextLayer, UUID: uuid.New(), Name: name,
		SizeBytes: size, Created: time.Now().Unix(), Pin: o.Pin, QuotaBytes: o.QuotaBytes &^ (blockSize - 1),
	})
	l.m = newSectorMap(s.pager, l.entry.Number, l.blocks())
	l.standOn(parent)
	s.layers[name] = l
	s.sb.NextLayer++
	if err := s.changeLayers(); err != nil {
		delete(s.layers, name)
		l.m.drop()
		return nil, fmt.Errorf("make layer %q: %w", name, err)
	}
	l.setQuota()
	l.opened, l.made = true, true
	return l, nil
}

// fewEnough fails where the store has as many layers as it can have.
func (s *Store) fewEnough() error {
	if len(s.layers) >= maxLayers {
		return fmt.Errorf("store %s has %d layers, which is the limit", s.path, maxLayers)
	}
	return nil
}

// parentFor finds the sealed layer that a new one is to stand on.
func (s *Store) parentFor(name string, o LayerOptions) (*Layer, error) {
	if o.From == "" {
		return nil, nil
	}
	p := s.layers[o.From]
	fail := func(format string, a ...any) (*Layer, error) {
		return nil, fmt.Errorf("make layer %q from %q in store %s: %w", name, o.From, s.path, fmt.Errorf(format, a...))
	}
	switch {
	case p == nil:
		return fail("%w", ErrNoLayer)
	case p.entry.Incoming:
		return fail("%w: it is a copy that is not complete", ErrLayerInUse)
	case !p.entry.Sealed:
		return fail("%w: freeze its device first", ErrNotSealed)
	case p.depth() >= MaxDepth:
		return fail("it stands on %d layers, which is the limit: detach it first", MaxDepth)
	case o.SizeBytes != 0 && o.SizeBytes != p.entry.SizeBytes:
		return fail("its device has %d bytes, not %d", p.entry.SizeBytes, o.SizeBytes)
	}
	if d := p.entry.Pin.Difference(o.Pin); d != "" {
		return fail("%w: this one has %s", ErrOtherRoot, d)
	}
	return p, nil
}

// standOn makes p, which is sealed or nil, the layer below.
func (l *Layer) standOn(p *Layer) {
	l.parent = p
	l.entry.Parent = 0
	if p != nil {
		l.entry.Parent = p.entry.Number
	}
}

// depth is the number of sealed layers that end with l. The caller holds Store.mu.
func (l *Layer) depth() int {
	n := 0
	for p := l; p != nil; p = p.parent {
		n++
	}
	return n
}

// missing is a region that has to be loaded before a look-up can be answered. The zero value is none.
type missing struct {
	m      *sectorMap
	region uint64
}

// resolve finds where blocks are: in this layer, in one below, or in none. It may read the store. It is not for requests.
func (l *Layer) resolve(first uint64, out []mapping, sums []uint32) error {
	return l.store.untilLoaded(func() missing { return l.lookup(first, out, sums, nil) })
}

// untilLoaded repeats a look-up until everything that it needs is in memory.
func (s *Store) untilLoaded(look func() missing) error {
	for {
		want := look()
		if want.m == nil {
			return nil
		}
		if err := s.load(want.m, want.region); err != nil {
			return err
		}
	}
}

// lookup is resolve for requests: where something has to be loaded, it says what. Unless told is nil, it adds whether blocks are in the layer itself or below.
func (l *Layer) lookup(first uint64, out []mapping, sums []uint32, told *Origins) missing {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lookupTelling(first, out, sums, told)
}

func (l *Layer) lookupLocked(first uint64, out []mapping, sums []uint32) missing {
	return l.lookupTelling(first, out, sums, nil)
}

func (l *Layer) lookupTelling(first uint64, out []mapping, sums []uint32, told *Origins) missing {
	if want := l.m.lookupOwn(first, out, sums); want.m != nil {
		return want
	}
	own := 0
	if told != nil {
		own = countData(out)
	}
	if seeded(bugDiscardToRoot) {
		for i := range out {
			if out[i] == mapZero {
				out[i] = mapAbsent
			}
		}
	}
	if l.parent != nil {
		if want := l.parent.fill(first, out, sums); want.m != nil {
			return want
		}
	}
	if told != nil {
		told.note(own, countData(out))
	}
	return missing{}
}

// fill resolves from sealed layers what the layers above do not hold. The view of all of them costs one look-up; until
// it is built, they are asked one by one.
func (l *Layer) fill(first uint64, out []mapping, sums []uint32) missing {
	for p := l; p != nil; {
		v := p.view.Load()
		var m *sectorMap
		var below *Layer
		if v == nil {
			m, below = p.content()
		}
		absent := false
		for i := 0; i < len(out); i++ {
			k := i
			for k < len(out) && out[k] == mapAbsent {
				k++
			}
			if k == i {
				continue
			}
			var want missing
			if v != nil {
				want = v.lookup(first+uint64(i), out[i:k], sums[i:k])
			} else {
				want = m.lookupOwn(first+uint64(i), out[i:k], sums[i:k])
			}
			if want.m != nil {
				return want
			}
			absent = true
			i = k
		}
		if !absent || v != nil {
			return missing{}
		}
		p = below
	}
	return missing{}
}

func (m *sectorMap) lookupOwn(first uint64, out []mapping, sums []uint32) missing {
	m.mu.Lock()
	defer m.mu.Unlock()
	if region, ok := m.lookup(first, out, sums); !ok {
		return missing{m, region}
	}
	return missing{}
}

// content returns what the layer itself holds, and the layer below, as they belong together.
func (l *Layer) content() (*sectorMap, *Layer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.m, l.parent
}

// own finds blocks in the layer itself only.
func (l *Layer) own(first uint64, out []mapping, sums []uint32) error {
	return l.store.untilLoaded(func() missing {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.m.lookupOwn(first, out, sums)
	})
}

// changeLayers writes the catalog after a layer came or changed. Where that fails for another reason than want
// of space, nobody knows which catalog the superblocks name, and the store takes no more writes.
func (s *Store) changeLayers() error {
	if s.log.hasFailed() {
		return errFailed
	}
	if len(s.stale) > 0 && !seeded(bugCatalogAlone) {
		if err := s.roomForCheckpoint(0); err != nil {
			return err
		}
		return s.checkpointLocked()
	}
	err := s.writeState(s.sb.LogStart)
	if err != nil && !errors.Is(err, ErrNoSpace) {
		s.fail(err)
	}
	return err
}

// Made tells whether the OpenLayer that returned this layer made it.
func (l *Layer) Made() bool { return l.made }

// RemoveLayer forgets a layer that no device has open, and frees its space.
func (s *Store) RemoveLayer(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[name]
	switch {
	case s.readOnly:
		return fmt.Errorf("remove layer %q from store %s: %w", name, s.path, ErrReadOnly)
	case l == nil:
		return fmt.Errorf("remove layer %q from store %s: %w", name, s.path, ErrNoLayer)
	case l.opened:
		return fmt.Errorf("remove layer %q from store %s: %w", name, s.path, ErrLayerInUse)
	}
	if l.readers > 0 {
		return fmt.Errorf("remove layer %q from store %s: it is being read: %w", name, s.path, ErrLayerInUse)
	}
	if l.entry.Detaching || l.entry.Incoming {
		return fmt.Errorf("remove layer %q from store %s: it is being copied: %w", name, s.path, ErrLayerInUse)
	}
	if err := s.standsOnly(l); err != nil {
		return fmt.Errorf("remove layer %q from store %s: %w", name, s.path, err)
	}
	if err := s.dropLayers(s.withLeftovers(l)...); err != nil {
		return fmt.Errorf("remove layer %q: %w", name, err)
	}
	return nil
}

// roomToRemove fails with [ErrNoSpace] where the store lacks the slots that it would take to remove the layer now.
func (s *Store) roomToRemove(l *Layer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.roomToDrop(s.withLeftovers(l))
	return err
}

// withLeftovers returns the layer and those below it that go with it.
func (s *Store) withLeftovers(l *Layer) []*Layer {
	drop := []*Layer{l}
	for p := l.parent; p != nil && s.leftover(p, drop[len(drop)-1]); p = p.parent {
		drop = append(drop, p)
	}
	return drop
}

// ExportPrefix begins the names of layers that an export makes and takes back. One that it did not live to take back is
// merged with the layer above when that one is opened, and goes with it when it is removed.
const ExportPrefix = "export-"

// leftover tells whether a sealed layer is one that an export left, and nothing but l stands on it.
func (s *Store) leftover(p, l *Layer) bool {
	return strings.HasPrefix(p.entry.Name, ExportPrefix) && p.readers == 0 && !p.entry.Detaching && s.standsOnly(p, l) == nil
}

// roomToDrop returns the slots of the data of layers, and fails with [ErrNoSpace] where those are lacking that the checkpoint takes which frees them. The caller holds mu.
func (s *Store) roomToDrop(layers []*Layer) (freed []extent, err error) {
	for _, l := range layers {
		exts, err := l.ownSlots()
		if err != nil {
			return nil, err
		}
		freed = append(freed, exts...)
	}
	return freed, s.roomForCheckpoint(s.slots.cleanPages(freed))
}

// dropLayers forgets layers that nothing stands on. Their slots are retired: requests that found them
// before may be reading them still, where they belonged to a layer that others stood on until lately. The caller holds mu.
func (s *Store) dropLayers(layers ...*Layer) error {
	freed, err := s.roomToDrop(layers)
	if err != nil {
		return err
	}
	var mapSlots []extent
	for _, l := range layers {
		mapSlots = append(mapSlots, l.mapSlots()...)
		delete(s.layers, l.entry.Name)
	}
	s.slots.disownAll(freed)
	if seeded(bugRemoveFreesEarly) {
		s.epochs.retire(freed)
		freed = nil
	}
	s.stale = append(s.stale, mapSlots...)
	// A checkpoint, and not the catalog alone: the log may hold the record that sealed the layer, and
	// would bring it back.
	if err := s.checkpointLocked(); err != nil {
		for _, l := range layers {
			s.layers[l.entry.Name] = l
		}
		return err
	}
	defer s.spaceFreed()
	for _, l := range layers {
		s.forgetQuota(l)
		l.dropMaps()
	}
	s.epochs.retire(freed)
	return nil
}

// ownSlots lists the slots with the layer's own data.
func (l *Layer) ownSlots() (exts []extent, err error) {
	err = l.store.eachRegion(l.m, func(_ uint64, records []record) error {
		for i := range records {
			if records[i].Kind == kindData {
				exts = appendExtent(exts, records[i].Slot, 1)
			}
		}
		return nil
	})
	return exts, err
}

// mapSlots lists the slots that the layer's maps take since the last checkpoint. The caller holds Store.mu.
func (l *Layer) mapSlots() []extent {
	e := l.describe()
	return e.mapSlots()
}

func (e *layerEntry) mapSlots() []extent { return append(e.Map.slots(), e.Flat.slots()...) }

// dropMaps gives up the maps of a layer that is gone. Their slots are stale by now.
func (l *Layer) dropMaps() {
	l.store.discard(l.m)
	l.dropFlat()
}

func (l *Layer) dropFlat() {
	if l.flat != nil {
		l.store.discard(l.flat)
		l.flat = nil
	}
}

// discard gives the memory of a map back when no request that found it in a view can look into it any more.
func (s *Store) discard(m *sectorMap) {
	if s.epochs == nil {
		m.drop()
		return
	}
	s.epochs.later(m.drop)
}

// Name returns the layer's name in its store.
func (l *Layer) Name() string { return l.entry.Name }

// SizeBytes returns the size of the layer's device.
func (l *Layer) SizeBytes() int64 { return l.entry.SizeBytes }

// Store returns where the layer lies.
func (l *Layer) Store() *Store { return l.store }

// Info describes the layer as it is now.
func (l *Layer) Info() LayerInfo {
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	return l.infoLocked()
}

// LayerInfo describes one layer.
func (s *Store) LayerInfo(name string) (LayerInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[name]
	if l == nil {
		return LayerInfo{}, fmt.Errorf("layer %q of store %s: %w", name, s.path, ErrNoLayer)
	}
	return l.infoLocked(), nil
}

func (l *Layer) infoLocked() LayerInfo {
	e := &l.entry
	var onStore int64
	for _, x := range l.mapSlots() {
		onStore += int64(x.Count) << blockShift
	}
	space := l.quotaInfo()
	l.mu.Lock()
	defer l.mu.Unlock()
	parent := ""
	if l.parent != nil {
		parent = l.parent.entry.Name
	}
	memory := l.flat.memory() + l.m.memory()
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	return LayerInfo{
		Parent: parent, Sealed: e.Sealed,
		Name: e.Name, UUID: e.UUID.String(), SizeBytes: e.SizeBytes,
		DataBytes: int64(l.m.data) << blockShift, MapBytes: onStore,
		MemoryBytes: memory,
		Open:        l.opened, Created: time.Unix(e.Created, 0).UTC(), Pin: e.Pin,
		QuotaBytes: e.QuotaBytes, Space: space,
		Detaching: e.Detaching && !e.Incoming, Detach: l.detachProgress(), Unfinished: e.Incoming,
	}
}

// Pin identifies the root that the layer stands on; of a layer that needs none it is zero. It does not wait for a
// freeze that is prepared.
func (l *Layer) Pin() Pin {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entry.Pin
}

// Release gives the layer back so that another device can open it.
func (l *Layer) Release() {
	l.store.mu.Lock()
	l.opened, l.made = false, false
	l.store.mu.Unlock()
}
