package union

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Layer is the blocks that one device wrote, in a store. It is open for one device at a time.
type Layer struct {
	store  *Store
	entry  layerEntry // guarded by Store.mu
	opened bool       // guarded by Store.mu
	made   bool       // by the OpenLayer that has it open

	mu    sync.Mutex // guards m and dirty
	m     *sectorMap
	dirty bool // changed since its run was written
}

// LayerOptions say how to open a layer.
type LayerOptions struct {
	Create    bool  // make it where it does not exist
	Pin       Pin   // the root that the device stands on
	SizeBytes int64 // of the device; 0: the layer's own
}

// LayerInfo describes a layer.
type LayerInfo struct {
	Name        string    `json:"name"`
	UUID        string    `json:"uuid"`
	SizeBytes   int64     `json:"size_bytes"` // of the device
	DataBytes   int64     `json:"data_bytes"` // in slots of its own
	MapBytes    int64     `json:"map_bytes"`  // its run on the store
	MemoryBytes int64     `json:"memory_bytes"`
	Open        bool      `json:"open"`
	Created     time.Time `json:"created"`
	Pin         Pin       `json:"pin"`
}

func newLayer(s *Store, e layerEntry) *Layer {
	return &Layer{store: s, entry: e, m: newSectorMap((uint64(e.SizeBytes) + blockSize - 1) >> blockShift)}
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
	case l.opened:
		return nil, fmt.Errorf("open layer %q in store %s: %w", name, s.path, ErrLayerInUse)
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
	size := o.SizeBytes
	if size == 0 {
		size = o.Pin.SizeBytes
	}
	if size <= 0 || size>>blockShift > maxBlock || size%512 != 0 {
		return nil, fmt.Errorf("make layer %q: device size of %d bytes: must be a multiple of 512, more than 0 and less than 4 PiB", name, size)
	}
	if len(s.layers) >= maxLayers {
		return nil, fmt.Errorf("make layer %q: store %s has %d layers, which is the limit", name, s.path, maxLayers)
	}
	l := newLayer(s, layerEntry{
		Number: s.sb.NextLayer, UUID: uuid.New(), Name: name,
		SizeBytes: size, Created: time.Now().Unix(), Pin: o.Pin,
	})
	s.layers[name] = l
	s.sb.NextLayer++
	if err := s.changeLayers(); err != nil {
		delete(s.layers, name)
		return nil, fmt.Errorf("make layer %q: %w", name, err)
	}
	l.opened, l.made = true, true
	return l, nil
}

// changeLayers writes the catalog after a layer came or went. Where that fails for another reason than want
// of space, nobody knows which catalog the superblocks name, and the store takes no more writes.
func (s *Store) changeLayers() error {
	s.log.mu.Lock()
	failed := s.log.failed
	s.log.mu.Unlock()
	if failed {
		return errFailed
	}
	err := s.writeState(s.sb.LogStart)
	if err != nil && !errors.Is(err, ErrNoSpace) {
		s.fail()
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
	delete(s.layers, name)
	if err := s.changeLayers(); err != nil {
		s.layers[name] = l
		return fmt.Errorf("remove layer %q: %w", name, err)
	}
	s.releaseAll(l.entry.Run)
	return l.eachSlot(func(slot uint64) error { s.slots.release(slot, 1); return nil })
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

func (l *Layer) infoLocked() LayerInfo {
	e := &l.entry
	var run int64
	for _, x := range e.Run {
		run += int64(x.Count) << blockShift
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return LayerInfo{
		Name: e.Name, UUID: e.UUID.String(), SizeBytes: e.SizeBytes,
		DataBytes: int64(l.m.data) << blockShift, MapBytes: run,
		MemoryBytes: l.m.arena.bytes() + int64(len(l.m.dir))*8,
		Open:        l.opened, Created: time.Unix(e.Created, 0).UTC(), Pin: e.Pin,
	}
}

// Release gives the layer back so that another device can open it.
func (l *Layer) Release() {
	l.store.mu.Lock()
	l.opened, l.made = false, false
	l.store.mu.Unlock()
}

// eachSlot calls f for every slot that the map names.
func (l *Layer) eachSlot(f func(slot uint64) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var records []record
	for r := range uint64(len(l.m.dir)) {
		if l.m.dir[r]&dirArray == 0 {
			continue
		}
		records = l.m.region(r, 0, records[:0])
		for i := range records {
			if records[i].Kind == kindData {
				if err := f(records[i].Slot); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
