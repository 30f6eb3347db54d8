package union

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"coppice/ublk/ublktest"
)

// mover is a rig whose layers "gold" and "web1" can go to a second store.
type mover struct {
	*rig
	other  *ublktest.Disk
	second *Store
	want   map[string][]byte
}

func newMover(t *testing.T, seed uint64) *mover {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 61))
	r := newRig(t, seed, false)
	o := newOracle(r)
	m := &mover{rig: r, want: map[string][]byte{}}
	for _, name := range []string{"first", "gold"} {
		drive(r, o, rng, 300)
		r.flushed(o)
		r.sealAs(name)
	}
	drive(r, o, rng, 300)
	r.flushed(o)
	for _, name := range []string{"gold", "web1"} {
		m.want[name] = m.contentOf(r.store, name)
	}
	if err := r.block.Close(); err != nil {
		t.Fatal(err)
	}
	r.layer.Release()
	var err error
	if m.other, err = ublktest.NewDisk("other", MinStoreBytes); err != nil {
		t.Fatal(err)
	}
	if _, err := formatDisk("other", m.other, FormatOptions{}); err != nil {
		t.Fatal(err)
	}
	m.openSecond()
	return m
}

func (m *mover) openSecond() {
	m.t.Helper()
	var err error
	if m.second, err = openOn("other", keepOpen{m.other}, m.options()); err != nil {
		m.t.Fatalf("seed %d: open the second store: %v", m.seed, err)
	}
}

// contentOf reads what a device on the layer would, or returns nil where there is no such layer.
func (m *mover) contentOf(s *Store, name string) []byte {
	m.t.Helper()
	l := s.layers[name]
	if l == nil || l.entry.Incoming {
		return nil
	}
	got := make([]byte, m.size)
	for off := int64(0); off < m.size; off += exportChunk {
		if err := l.readAt(m.base, got[off:min(off+exportChunk, m.size)], off); err != nil {
			m.t.Fatalf("seed %d: read %s: %v", m.seed, name, err)
		}
	}
	return got
}

func (m *mover) move(name, as string) error {
	_, err := m.store.CopyLayer(context.Background(), name, m.second, as, CopyOptions{Move: true})
	return err
}

func (m *mover) shut() {
	m.t.Helper()
	m.store.disk = keepOpen{m.rig.disk}
	if err := errors.Join(m.store.Close(), m.second.Close()); err != nil {
		m.t.Fatal(err)
	}
	m.rig.check()
	rep, err := checkDisk("other", m.other, CheckOptions{})
	if err != nil || len(rep.Problems) != 0 {
		m.t.Errorf("seed %d: check the second store: %+v %v", m.seed, rep, err)
	}
}

func TestMoveLayer(t *testing.T) {
	m := newMover(t, 1)
	before := m.store.slots.freeSlots()
	uuidOf := m.store.layers["web1"].entry.UUID
	wantError(t, m.move("gold", "gold"), ErrLayerInUse, "stands on it")
	wantError(t, m.move("none", "none"), ErrNoLayer, "none")
	wantError(t, m.move("web1", "a/b"), nil, "layer name")
	_, err := m.store.CopyLayer(context.Background(), "web1", m.store, "x", CopyOptions{})
	wantError(t, err, nil, "same store")
	l, err := m.store.OpenLayer("web1", LayerOptions{Pin: m.base.Pin()})
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, m.move("web1", "web1"), ErrLayerInUse, "open")
	l.Release()

	var last, steps int64
	info, err := m.store.CopyLayer(context.Background(), "gold", m.second, "golden", CopyOptions{Progress: func(done, total int64) {
		if done < last || total != 2*m.size {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
		steps++
		_, err := m.second.OpenLayer("new", LayerOptions{Create: true, From: "golden", Pin: m.base.Pin()})
		wantError(t, err, ErrLayerInUse, "not complete")
	}})
	if err != nil || !info.Sealed || info.Parent != "" || info.Pin != m.base.Pin() || last != 2*m.size || steps < 4 {
		t.Fatalf("copied %+v after %d steps up to %d: %v", info, steps, last, err)
	}
	if err := m.move("web1", "web1"); err != nil {
		t.Fatal(err)
	}
	if m.store.layers["web1"] != nil || m.second.layers["web1"].entry.UUID != uuidOf || m.store.slots.freeSlots() <= before {
		t.Errorf("left in the first store: %+v", m.store.Info().Layers)
	}
	wantError(t, m.move("gold", "golden"), ErrLayerExists, "golden")
	for name, as := range map[string]string{"gold": "golden", "web1": "web1"} {
		if !bytes.Equal(m.contentOf(m.second, as), m.want[name]) {
			t.Errorf("%s is another", as)
		}
	}
	if err := m.move("gold", "gold"); err != nil { // nothing stands on it any more
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	free := m.store.slots.freeSlots()
	_, err = m.second.CopyLayer(ctx, "web1", m.store, "back", CopyOptions{Progress: func(int64, int64) { cancel() }})
	wantError(t, err, context.Canceled, "back")
	if err := m.store.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if m.store.layers["back"] != nil || m.store.slots.freeSlots() != free {
		t.Errorf("a cancelled copy left %+v", m.store.Info().Layers)
	}
	l, err = m.second.OpenLayer("web1", LayerOptions{Pin: m.base.Pin()})
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
	m.shut()
}

// TestMoveIntoAndFromFullStores has a move end before it copies anything where either store lacks room for what it must do in the end.
func TestMoveIntoAndFromFullStores(t *testing.T) {
	t.Parallel()
	m := newMover(t, 3)
	for name, full := range map[string]*Store{"source": m.store, "target": m.second} {
		free := m.second.slots.freeSlots()
		taken, ok := full.slots.alloc(nil, int(full.slots.freeSlots()), 0)
		if !ok {
			t.Fatal("cannot fill the store")
		}
		wantError(t, m.move("web1", "web1"), ErrNoSpace, "web1")
		full.releaseAll(taken)
		if m.store.layers["web1"] == nil || len(m.second.layers) != 0 || m.second.slots.freeSlots() != free {
			t.Errorf("full %s: there are %d layers in the target, %d slots free of %d", name, len(m.second.layers), m.second.slots.freeSlots(), free)
		}
	}
	if err := m.move("web1", "web1"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.contentOf(m.second, "web1"), m.want["web1"]) {
		t.Error("the layer is another")
	}
	m.shut()
}

// TestMoveDamaged has the copy come out wrong: the layer stays.
func TestMoveDamaged(t *testing.T) {
	m := newMover(t, 2)
	spoiled := false
	m.second.disk = &faultDisk{Disk: m.other, left: -1, during: func() {
		if spoiled {
			return
		}
		for _, l := range m.second.layers {
			if slots, err := l.ownSlots(); err == nil && len(slots) > 0 {
				m.other.Bytes()[m.second.sb.slotOffset(slots[0].Slot)]++
				spoiled = true
			}
		}
	}}
	err := m.move("web1", "web1")
	wantError(t, err, ErrCorrupt, "web1", "read it again")
	if m.store.layers["web1"] == nil || m.second.layers["web1"] != nil {
		t.Error("the layer is not where it was")
	}
	if !bytes.Equal(m.contentOf(m.store, "web1"), m.want["web1"]) {
		t.Error("the layer is another")
	}
	m.shut()
}

// TestMoveCut cuts the power at every write and sync of either store while a layer moves: it is whole in one of them at
// least, and moving it again brings it over.
func TestMoveCut(t *testing.T) {
	t.Parallel()
	cuts, stopped := 0, [2]bool{true, true}
	sparse := 5
	if testing.Short() {
		sparse = 1
	}
	for calls := 0; stopped[0] || stopped[1]; calls += 1 + calls/sparse {
		for side := range 2 {
			if !stopped[side] {
				continue
			}
			rng := rand.New(rand.NewPCG(uint64(calls), uint64(side)))
			m := newMover(t, uint64(calls)%4)
			if side == 0 {
				m.store.disk = &faultDisk{Disk: m.rig.disk, left: calls, garble: true}
			} else {
				m.second.disk = &faultDisk{Disk: m.other, left: calls, garble: true}
			}
			err := m.move("web1", "web1")
			if stopped[side] = err != nil; stopped[side] {
				cuts++
				if !errors.Is(err, syscall.EIO) {
					t.Fatal(err)
				}
			}
			m.cutBoth(rng)
			found := 0
			for _, s := range []*Store{m.store, m.second} {
				if got := m.contentOf(s, "web1"); got != nil {
					found++
					if !bytes.Equal(got, m.want["web1"]) {
						t.Errorf("side %d, cut after %d calls: layer in %s is another", side, calls, s.path)
					}
				}
			}
			if found == 0 {
				t.Fatalf("side %d, cut after %d calls: the layer is nowhere", side, calls)
			}
			if m.store.layers["web1"] != nil {
				if err := m.move("web1", "web1"); err != nil {
					t.Fatalf("side %d, cut after %d calls: move again: %v", side, calls, err)
				}
			}
			if m.store.layers["web1"] != nil || !bytes.Equal(m.contentOf(m.second, "web1"), m.want["web1"]) {
				t.Errorf("side %d, cut after %d calls: not moved in the end", side, calls)
			}
			m.shut()
			if err := errors.Join(m.rig.disk.Close(), m.other.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d cuts", cuts)
}

// cutBoth cuts the power of both stores and opens them again.
func (m *mover) cutBoth(rng *rand.Rand) {
	m.t.Helper()
	for _, s := range []*Store{m.store, m.second} {
		if err := s.pending.close(); err != nil {
			m.t.Fatal(err)
		}
	}
	m.cutDisk(rng)
	m.other.CutSome(rng)
	var err error
	if m.store, err = openOn("leaf", keepOpen{m.rig.disk}, m.options()); err != nil {
		m.t.Fatalf("open: %v", err)
	}
	m.openSecond()
}
