package union

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"
)

// sectorValue is one value that a sector had or may come to have.
type sectorValue struct {
	p   []byte      // a sector
	req *simRequest // that wrote it whole or in part; nil: from the start, or zeros
}

// simRequest is a write, for telling whether a block of it is torn.
type simRequest struct {
	first int   // sector
	at    []int // where in the history of each sector it stands
}

// sectorModel is what one sector may hold: history in order of submission, and three bounds of what must not be older.
type sectorModel struct {
	history   []sectorValue
	acked     int // acknowledged: survives the process
	floor     int // covered by a flush or FUA: survives the power
	witnessed int // covered, and the disk says so in two places: survives rot of one
	busy      bool
}

// layerModel is what is known of a layer.
type layerModel struct {
	name    string
	sealed  bool
	sectors []sectorModel

	// While a freeze is under way, the layer that it seals and the bounds of before.
	of         *layerModel
	acks, lows []int

	// Whether it must, or may, be there after a power cut and after the death of the process.
	mustCut, mustKill, mayCut, mayKill bool
	merged                             bool // gone, but no flush has covered that yet

	// proof is the sealed layer, this one or one below, whose freeze is to be witnessed before rot need be told from what
	// was never flushed. Nil: none.
	proof     *layerModel
	witnessed bool
}

// unproven tells whether rot may look like a tail of the log that was never flushed.
func (l *layerModel) unproven() bool { return l.of != nil || l.proof != nil && !l.proof.witnessed }

// storeModel is the oracle: all layers, and how far the disk has witnessed them.
type storeModel struct {
	layers map[string]*layerModel
	shots  []witness
	strict int // counts what made more survive a power cut
	acks   int // counts what made more survive the process
}

// witness is what was covered when a flush ended, and the log block that says so.
type witness struct {
	seq    uint64
	floors map[*layerModel][]int
	sealed *layerModel // that the flush made, or nil
}

func newStoreModel() *storeModel { return &storeModel{layers: map[string]*layerModel{}} }

func (m *storeModel) names() []string {
	var names []string
	for name := range m.layers {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// add makes a layer known that holds the given content and is being made.
func (m *storeModel) add(name string, sealed bool, contents [][]byte) *layerModel {
	l := &layerModel{name: name, sealed: sealed, mayCut: true, mayKill: true}
	for _, p := range contents {
		l.sectors = append(l.sectors, sectorModel{history: []sectorValue{{p: p}}})
	}
	m.layers[name] = l
	return l
}

// exists notes that the layer is there for good.
func (m *storeModel) exists(l *layerModel) {
	l.mustCut, l.mustKill = true, true
	m.strict++
}

// latest is the content of a layer that no request changes, as acknowledged.
func (l *layerModel) latest() [][]byte {
	out := make([][]byte, len(l.sectors))
	for s := range l.sectors {
		x := &l.sectors[s]
		out[s] = x.history[x.acked].p
	}
	return out
}

// acknowledged is what a flush that begins now must cover, for all layers.
func (m *storeModel) acknowledged() map[*layerModel][]int {
	all := make(map[*layerModel][]int, len(m.layers))
	for _, l := range m.layers {
		if l.sealed {
			continue
		}
		at := make([]int, len(l.sectors))
		for s := range l.sectors {
			at[s] = l.sectors[s].acked
		}
		all[l] = at
	}
	return all
}

// flushed raises the floors to what was acknowledged when the flush began. seq is the log block that the disk must call
// durable before that is witnessed.
func (m *storeModel) flushed(covered map[*layerModel][]int, merged []*layerModel, seq uint64) {
	for l, at := range covered {
		for s := range at {
			l.sectors[s].floor = max(l.sectors[s].floor, at[s])
		}
	}
	for _, l := range merged {
		if m.layers[l.name] == l {
			delete(m.layers, l.name)
		}
	}
	m.shots = append(m.shots, witness{seq: seq, floors: covered})
	m.strict++
}

// mergedNow returns the layers that were merged and may come back after a power cut.
func (m *storeModel) mergedNow() (all []*layerModel) {
	for _, l := range m.layers {
		if l.merged {
			all = append(all, l)
		}
	}
	return all
}

// witness takes over the floors that the disk confirms up to a log block.
func (m *storeModel) witness(seq uint64) {
	rest := m.shots[:0]
	for _, w := range m.shots {
		if w.seq > seq {
			rest = append(rest, w)
			continue
		}
		if w.sealed != nil {
			w.sealed.witnessed = true
		}
		for l, at := range w.floors {
			for s := range at {
				l.sectors[s].witnessed = max(l.sectors[s].witnessed, at[s])
			}
		}
	}
	m.shots = rest
}

// ordeal is what happened to a store before it is looked at.
type ordeal uint8

const (
	powerCut ordeal = iota
	processDeath
	rot // of what may not be told from a tail that was never flushed
)

func (o ordeal) String() string { return [...]string{"power cut", "death of the process", "rot"}[o] }

// allowed is the history of a sector and the first index in it that may be found.
func (l *layerModel) allowed(s int, o ordeal) ([]sectorValue, int) {
	if l.of != nil {
		x := &l.of.sectors[s]
		switch o {
		case processDeath:
			return x.history, l.acks[s]
		case rot:
			return x.history, min(l.lows[s], x.witnessed)
		}
		return x.history, l.lows[s]
	}
	x := &l.sectors[s]
	switch o {
	case processDeath:
		return x.history, x.acked
	case rot:
		return x.history, x.witnessed
	}
	return x.history, x.floor
}

// sectorCount is the number of sectors of a layer, which one that is being sealed has from the layer above.
func (l *layerModel) sectorCount() int {
	if l.of != nil {
		return len(l.of.sectors)
	}
	return len(l.sectors)
}

// check compares the content of a layer, by sector, with what is legal. Blocks in bad could not be read. blockOf tells the
// first sector of the block that a sector lies in.
func (l *layerModel) check(got []byte, bad []bool, o ordeal) error {
	n := l.sectorCount()
	var found [blockSize / sector]int
	for first := 0; first < n; first += len(found) {
		if bad != nil && bad[first/len(found)] {
			continue
		}
		end := min(first+len(found), n)
		for s := first; s < end; s++ {
			p := got[s*sector:][:sector]
			history, low := l.allowed(s, o)
			at := len(history) - 1
			for at >= low && !bytes.Equal(p, history[at].p) {
				at--
			}
			if at < low {
				return l.wrong(s, p, history, low, o)
			}
			found[s-first] = at
		}
		for s := first; s < end; s++ {
			history, _ := l.allowed(s, o)
			req := history[found[s-first]].req
			if req == nil {
				continue
			}
			for other := max(first, req.first); other < min(end, req.first+len(req.at)); other++ {
				if found[other-first] < req.at[other-req.first] {
					return fmt.Errorf("layer %q block %d is torn: sector %d has a write that sector %d of the same block is older than",
						l.name, first/len(found), s, other)
				}
			}
		}
	}
	return nil
}

func (l *layerModel) wrong(s int, p []byte, history []sectorValue, low int, o ordeal) error {
	what := "what it never held"
	for i := range history {
		if bytes.Equal(p, history[i].p) {
			what = fmt.Sprintf("value %d", i)
		}
	}
	return fmt.Errorf("layer %q sector %d (block %d) has %s after a %v; it may have values %d to %d", l.name, s, s/8, what, o, low, len(history)-1)
}

// contents reads every block of every layer of a store, in the order of their names.
type contents struct {
	names  []string
	sealed []bool
	data   [][]byte
	bad    [][]bool // by layer and block: could not be read
}

// read fills c from a store. Only a block that is damaged may be unreadable, and then c.bad tells.
func (c *contents) read(s *Store, base Base, g *simGeometry) error {
	c.names, c.sealed = c.names[:0], c.sealed[:0]
	c.bad = c.bad[:0]
	for i, info := range s.Info().Layers {
		if info.SizeBytes != g.deviceBytes {
			return fmt.Errorf("layer %q has %d bytes, not %d", info.Name, info.SizeBytes, g.deviceBytes)
		}
		c.names = append(c.names, info.Name)
		c.sealed = append(c.sealed, info.Sealed)
		if i == len(c.data) {
			c.data = append(c.data, nil)
		}
		if n := g.sectors() * sector; len(c.data[i]) != n {
			c.data[i] = make([]byte, n)
		}
		bad, err := c.readLayer(s.layers[info.Name], base, g, c.data[i])
		if err != nil {
			return fmt.Errorf("read layer %q: %w", info.Name, err)
		}
		c.bad = append(c.bad, bad)
	}
	return nil
}

// readLayer reads the windows of a layer, one after the other, to p, and sees to it that there is nothing between.
func (c *contents) readLayer(l *Layer, base Base, g *simGeometry, p []byte) (bad []bool, err error) {
	if g.windows == nil {
		return c.readWindow(l, base, p, 0)
	}
	for i, w := range g.windows {
		n := w.sectors(g.deviceBytes) * sector
		some, err := c.readWindow(l, base, p[:n], w.at<<blockShift)
		if err != nil {
			return nil, err
		}
		if some != nil {
			bad = ensure(bad, g)
			copy(bad[c.blocksBefore(g, i):], some)
		}
		p = p[n:]
		if end := w.at + w.blocks; end < (g.deviceBytes-1)>>blockShift {
			var beside [blockSize]byte
			switch err := l.readAt(base, beside[:], end<<blockShift); {
			case errors.Is(err, ErrCorrupt):
				bad = ensure(bad, g)
			case err != nil:
				return nil, err
			case beside != [blockSize]byte{}:
				return nil, fmt.Errorf("block %d was never written and is not zero", end)
			}
		}
	}
	return bad, nil
}

// ensure makes a list of blocks that cannot be read where there is none yet.
func ensure(bad []bool, g *simGeometry) []bool {
	if bad == nil {
		bad = make([]bool, (g.sectors()*sector+blockSize-1)>>blockShift)
	}
	return bad
}

func (c *contents) blocksBefore(g *simGeometry, i int) (n int) {
	for _, w := range g.windows[:i] {
		n += int(w.blocks)
	}
	return n
}

func (c *contents) readWindow(l *Layer, base Base, p []byte, at int64) (bad []bool, err error) {
	if err := l.readAt(base, p, at); err == nil {
		return nil, nil
	}
	bad = make([]bool, (len(p)+blockSize-1)>>blockShift)
	for b := range bad {
		off := b << blockShift
		err := l.readAt(base, p[off:min(off+blockSize, len(p))], at+int64(off))
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return nil, err
		}
		bad[b] = err != nil
	}
	return bad, nil
}

// equal tells whether two stores hold the same.
func (c *contents) equal(o *contents) error {
	if !slices.Equal(c.names, o.names) || !slices.Equal(c.sealed, o.sealed) {
		return fmt.Errorf("layers %q became %q", c.names, o.names)
	}
	for i := range c.names {
		if c.bad[i] == nil && o.bad[i] == nil && !bytes.Equal(c.data[i], o.data[i]) {
			return fmt.Errorf("content of layer %q became another", c.names[i])
		}
	}
	return nil
}

// check compares what a store holds with what is legal.
func (m *storeModel) check(c *contents, o ordeal, damaged bool) error {
	there := make(map[string]bool, len(c.names))
	for i, name := range c.names {
		there[name] = true
		l := m.layers[name]
		if l == nil || o == processDeath && !l.mayKill || o == powerCut && !l.mayCut {
			if damaged && o == rot {
				continue // an older state may have it
			}
			return fmt.Errorf("layer %q must not be there after a %v", name, o)
		}
		if l.sealed != c.sealed[i] {
			return fmt.Errorf("layer %q: sealed is %v", name, c.sealed[i])
		}
		if c.bad[i] != nil && !damaged {
			return fmt.Errorf("layer %q: blocks %v cannot be read", name, indexes(c.bad[i]))
		}
		if o == rot && l.unproven() {
			continue
		}
		if err := l.check(c.data[i], c.bad[i], o); err != nil {
			return err
		}
	}
	for name, l := range m.layers {
		must := l.mustCut && o == powerCut || l.mustKill && o == processDeath
		if must && !there[name] {
			return fmt.Errorf("layer %q is gone after a %v", name, o)
		}
	}
	return nil
}

func indexes(set []bool) (at []int) {
	for i, in := range set {
		if in {
			at = append(at, i)
		}
	}
	return at
}

// collapse makes a model of what was found: from there a store lives on.
func (c *contents) collapse() *storeModel {
	m := newStoreModel()
	for i, name := range c.names {
		data := slices.Clone(c.data[i])
		parts := make([][]byte, len(data)/sector)
		for s := range parts {
			parts[s] = data[s*sector:][:sector:sector]
		}
		m.exists(m.add(name, c.sealed[i], parts))
	}
	return m
}
