package union

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// A layer comes into another store in four steps: a layer marked as incoming is made there; everything that the layer and those
// below it hold is copied into it and made durable; it is read again and compared; and one checkpoint takes the mark
// away. Only then does a move remove the layer from where it was. Who opens a store drops what is incoming still.

// CopyOptions say how to copy a layer to another store.
type CopyOptions struct {
	// Progress is called now and then with the bytes of the device done so far, from the copying goroutine. Copying is the first half,
	// comparing the second.
	Progress func(done, total int64)
	// Move removes the layer from its store in the end.
	Move bool
}

// CopyLayer copies a layer, sealed or one that no device has open, to another open store, as one layer that stands on the same root and holds
// what the whole chain of the layer holds. Where the copy fails or ctx ends, nothing of it is left. With Move, the copy
// has the layer's UUID, and the layer is removed in the end. Where only the removal fails, both are there, and moving it again only compares them and removes it.
func (s *Store) CopyLayer(ctx context.Context, name string, to *Store, as string, o CopyOptions) (*LayerInfo, error) {
	verb := "copy"
	if o.Move {
		verb = "move"
	}
	info, err := s.copyLayer(ctx, name, to, as, o)
	if err != nil {
		return nil, fmt.Errorf("%s layer %q from store %s to layer %q of store %s: %w", verb, name, s.path, as, to.path, err)
	}
	return info, nil
}

func (s *Store) copyLayer(ctx context.Context, name string, to *Store, as string, o CopyOptions) (*LayerInfo, error) {
	if s == to || s.sb.UUID == to.sb.UUID {
		return nil, errors.New("both are the same store")
	}
	from, err := s.takeSource(name, o.Move)
	if err != nil {
		return nil, err
	}
	m := &copying{ctx: ctx, from: from, size: from.SizeBytes(), progress: o.Progress}
	if !s.readOnly {
		err = s.commit() // or a power cut could leave a copy that differs from what it was made of
	}
	if err == nil && o.Move {
		err = s.roomToRemove(from) // sooner than after all that work
	}
	if err == nil {
		m.to, err = to.takeTarget(from, as, o.Move)
	}
	if err == nil {
		err = m.run()
	}
	s.giveSourceBack(from)
	if err == nil && o.Move {
		if err = s.RemoveLayer(name); err != nil {
			err = fmt.Errorf("the copy is complete, but the layer is still there as well (move it again): %w", err)
		}
	}
	if m.to == nil || err != nil {
		return nil, err
	}
	info := m.to.Info()
	return &info, nil
}

// takeSource keeps the layer from being changed or removed until giveSourceBack.
func (s *Store) takeSource(name string, move bool) (*Layer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, err := s.whole(name)
	switch {
	case err != nil:
		return nil, err
	case l.entry.Detaching:
		return nil, fmt.Errorf("it is being detached: %w", ErrLayerInUse)
	case l.opened:
		return nil, fmt.Errorf("a device has it open: %w", ErrLayerInUse)
	case move && s.readOnly:
		return nil, ErrReadOnly
	case move && l.readers > 0:
		return nil, fmt.Errorf("it is being read: %w", ErrLayerInUse)
	}
	if move {
		if err := s.standsOnly(l); err != nil {
			return nil, err
		}
	}
	l.readers++
	return l, nil
}

func (s *Store) giveSourceBack(l *Layer) {
	s.mu.Lock()
	l.readers--
	s.mu.Unlock()
}

// takeTarget makes the incoming layer. What an earlier move brought here already is returned as it is.
func (s *Store) takeTarget(from *Layer, as string, move bool) (*Layer, error) {
	if err := ValidLayerName(as); err != nil {
		return nil, err
	}
	from.store.mu.Lock()
	e := from.entry
	from.store.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	there := s.layers[as]
	switch {
	case s.closed:
		return nil, ErrClosed
	case s.readOnly:
		return nil, ErrReadOnly
	case there != nil && move && there.entry.UUID == e.UUID && !there.entry.Incoming && !there.opened:
		return there, nil
	case there != nil:
		return nil, fmt.Errorf("it is there already: %w", ErrLayerExists)
	}
	if err := errors.Join(s.fewEnough(), s.roomForLayer()); err != nil {
		return nil, err
	}
	in := layerEntry{
		Number: s.sb.NextLayer, UUID: uuid.New(), Name: as, SizeBytes: e.SizeBytes, Created: time.Now().Unix(), Pin: e.Pin,
		QuotaBytes: e.QuotaBytes, Incoming: true,
	}
	if move {
		in.UUID, in.Created = e.UUID, e.Created
	}
	l := newLayer(s, in)
	l.m = newSectorMap(s.pager, in.Number, l.blocks())
	s.layers[as] = l
	s.sb.NextLayer++
	if err := s.changeLayers(); err != nil {
		delete(s.layers, as)
		l.m.drop()
		return nil, err
	}
	return l, nil
}

// copying is one layer on its way from one store to another.
type copying struct {
	ctx      context.Context
	from, to *Layer
	size     int64
	progress func(done, total int64)
	pace     pace
}

func (m *copying) run() error {
	s := m.to.store
	s.mu.Lock()
	incoming := m.to.entry.Incoming
	s.mu.Unlock()
	if !incoming { // of an earlier move
		return m.compare()
	}
	err := m.copy()
	if err == nil {
		err = m.compare()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		return errors.Join(err, s.dropLayers(m.to))
	}
	if err := s.roomForCheckpoint(0); err != nil {
		return errors.Join(err, s.dropLayers(m.to))
	}
	m.to.entry.Incoming, m.to.entry.Sealed = false, m.from.entry.Sealed // which does not change while it is read
	if err := s.checkpointLocked(); err != nil {
		m.to.entry.Incoming, m.to.entry.Sealed = true, false
		return err
	}
	s.wakeBackground()
	return nil
}

// copy copies all that the chain holds, and makes it durable.
func (m *copying) copy() error {
	var copied atomic.Int64
	w := copier{dst: m.to, keep: m.to.store.copyKeep(), copied: &copied, limit: func(more int64) error {
		if quota := m.to.entry.QuotaBytes; quota > 0 && copied.Load()+more > quota {
			return fmt.Errorf("it holds more than its quota of %d bytes: %w", quota, ErrNoSpace)
		}
		return nil
	}}
	err := m.eachChunk(0, func(read *storeReader, c *chunk, first uint64, n int) (int64, error) {
		return m.copyChunk(read, c, &w, first, n)
	})
	if err == nil {
		err = w.flush()
	}
	if err == nil {
		err = m.to.store.commit()
	}
	return err
}

// eachChunk calls f for all parts of the device that the layer may hold something of. f returns how many bytes it read.
func (m *copying) eachChunk(done int64, f func(read *storeReader, c *chunk, first uint64, n int) (int64, error)) error {
	read, c := m.from.store.newReader(), newChunk()
	defer read.close()
	blocks := m.from.blocks()
	for first := uint64(0); first < blocks; {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		n := min(maxPutBlocks, blocks-first)
		if first%regionBlocks == 0 && !m.from.touches(first>>regionShift) {
			first += min(regionBlocks, blocks-first)
			continue
		}
		began := time.Now()
		got, err := f(read, c, first, int(n))
		if err != nil {
			return err
		}
		if got > 0 {
			m.pace.wait(m.ctx, m.from.store, got, time.Since(began))
		}
		first += n
		if m.progress != nil {
			m.progress(done+min(int64(first)<<blockShift, m.size), 2*m.size)
		}
	}
	return nil
}

// held reads what the chain of the layer holds of some blocks, and not what comes from the root.
func held(l *Layer, read *storeReader, c *chunk, first uint64, n int) (bytes int64, err error) {
	err = l.readBlocks(read, nil, c.buf[:n<<blockShift], int64(first)<<blockShift, c, nil)
	for _, m := range c.maps[:n] {
		if m.isData() {
			bytes += blockSize
		}
	}
	return bytes, err
}

func (m *copying) copyChunk(read *storeReader, c *chunk, w *copier, first uint64, n int) (int64, error) {
	got, err := held(m.from, read, c, first, n)
	if err != nil {
		return got, err
	}
	for i := 0; i < n; {
		k := i
		for k < n && c.maps[k] != mapAbsent {
			k++
		}
		if err := w.put(first+uint64(i), c.buf[i<<blockShift:k<<blockShift]); err != nil {
			return got, err
		}
		for i = k; i < n && c.maps[i] == mapAbsent; {
			i++
		}
	}
	return got, nil
}

// compare reads both layers and demands that they hold the same blocks with the same content.
func (m *copying) compare() error {
	other, there := newChunk(), m.to.store.newReader()
	defer there.close()
	return m.eachChunk(m.size, func(read *storeReader, c *chunk, first uint64, n int) (int64, error) {
		got, err := held(m.from, read, c, first, n)
		if err != nil {
			return got, err
		}
		if _, err := held(m.to, there, other, first, n); err != nil {
			return got, fmt.Errorf("read it again: %w", err)
		}
		for i := range n {
			if (c.maps[i] == mapAbsent) != (other.maps[i] == mapAbsent) ||
				!bytes.Equal(c.buf[i<<blockShift:(i+1)<<blockShift], other.buf[i<<blockShift:(i+1)<<blockShift]) {
				return got, fmt.Errorf("block %d of the copy is not that of the layer", first+uint64(i))
			}
		}
		return got, nil
	})
}
