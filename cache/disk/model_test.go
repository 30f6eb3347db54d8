package disk

import (
	"context"
	"testing"

	"pgregory.net/rapid"

	"coppice/ublk/ublktest"
)

// model is a cache on a disk in memory, and what of it must hold.
type model struct {
	t     *rapid.T
	o     Options
	dev   *ublktest.Disk
	d     *Disk
	clean bool // nothing was damaged: no slot may be bad
}

const modelChunks = 120

func (m *model) chunk() int { return rapid.IntRange(0, modelChunks-1).Draw(m.t, "chunk") }

func (m *model) hits() (found [modelChunks]bool) {
	for n := range found {
		c, content := testChunk(n)
		found[n] = get(m.t, m.d, c, content)
	}
	return found
}

// TestModel puts, gets, rejects, drops, reopens, cuts the power and damages, in any order.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := quiet()
		o.Overwrite = true // both headers may be damaged
		dev, err := ublktest.NewDisk("cache", int64(o.geometry.Blocks)<<blockShift)
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		o.MemoryBytes = rapid.SampledFrom([]int64{0, 40 * entryMemory}).Draw(t, "memory")
		m := &model{t: t, o: o, dev: dev, d: openTest(t, dev, o), clean: true}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(*rapid.T) {
				c, content := testChunk(m.chunk())
				m.d.Put(c, content)
				if !get(t, m.d, c, content) && m.clean {
					t.Fatal("a chunk that was just put is not there")
				}
			},
			"get": func(*rapid.T) {
				c, content := testChunk(m.chunk())
				get(t, m.d, c, content)
			},
			"reject": func(*rapid.T) {
				c, content := testChunk(m.chunk())
				bad := m.d.Stats().BadSlots
				had := get(t, m.d, c, content)
				m.d.Reject(c)
				if get(t, m.d, c, content) {
					t.Fatal("a chunk that was rejected is still there")
				}
				if had && m.d.Stats().BadSlots == bad {
					t.Fatal("a chunk that was rejected is not counted")
				}
			},
			"index":  func(*rapid.T) { m.index() },
			"scrub":  func(*rapid.T) { m.scrub() },
			"reopen": func(*rapid.T) { m.reopen() },
			"cut": func(*rapid.T) {
				m.dev.CutSome(rapidRand(t))
				m.d = openTest(t, m.dev, m.o)
				m.clean = false
			},
			"flip": func(*rapid.T) {
				at := rapid.IntRange(0, len(m.dev.Bytes())-1).Draw(t, "byte")
				m.dev.Bytes()[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
				m.clean = false
			},
			"drop": func(*rapid.T) {
				if rapid.IntRange(0, 9).Draw(t, "really") > 0 {
					return
				}
				m.d.Drop()
				if m.d.Stats().Used != 0 || m.hits() != [modelChunks]bool{} {
					t.Fatal("something is left")
				}
			},
			"": func(*rapid.T) { m.check() },
		})
	})
}

func (m *model) index() {
	if err := m.d.writeIndex(); err != nil {
		m.t.Fatal(err)
	}
}

// scrub reads all chunks: after that none is bad.
func (m *model) scrub() {
	before := m.d.Stats()
	m.d.scrubPass(context.Background(), func(int) bool { return true })
	after := m.d.Stats()
	if m.clean && after.BadSlots != before.BadSlots {
		m.t.Fatalf("%d bad slots in a sound cache", after.BadSlots-before.BadSlots)
	}
	m.hits()
	if m.d.Stats().BadSlots != after.BadSlots {
		m.t.Fatal("bad slots after scrubbing")
	}
}

// reopen loses nothing.
func (m *model) reopen() {
	before := m.hits()
	m.index()
	m.d = openTest(m.t, m.dev, m.o)
	if m.clean && m.hits() != before {
		m.t.Fatal("other chunks are there than before")
	}
}

func (m *model) check() {
	checkTable(m.t, m.d.table)
	s := m.d.Stats()
	if m.clean && s.BadSlots != 0 && s.Why != "" || s.State != StateOn {
		m.t.Fatalf("%+v", s)
	}
}
