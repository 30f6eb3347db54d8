package union

import (
	"fmt"
	"sort"
	"sync"
)

// Blocks are checked against their checksums in the order in which they lie on the store, up to a MiB at once.
const (
	slotCheckBlocks = 256     // that are read at once
	slotCheckBatch  = 1 << 16 // that are put in order at once
	slotCheckers    = 2       // goroutines that read
)

// sortBySlot orders records of data by where they lie.
func sortBySlot(records []record) {
	sort.Slice(records, func(i, j int) bool { return records[i].Slot < records[j].Slot })
}

// slotRun returns how many of the records, sorted by slot, lie in one piece and can be read at once.
func slotRun(records []record) int {
	n := 1
	for n < len(records) && n < slotCheckBlocks && records[n].Slot == records[0].Slot+uint64(n) {
		n++
	}
	return n
}

// checkRun reads records that lie in one piece, and calls bad for each whose block cannot be read or has not the checksum that it should have.
func (s *Store) checkRun(run []record, buf []byte, bad func(r *record, why string)) {
	buf = buf[:len(run)<<blockShift]
	if _, err := s.disk.ReadAt(buf, s.sb.slotOffset(run[0].Slot)); err != nil {
		if len(run) == 1 {
			bad(&run[0], err.Error())
			return
		}
		for i := range run { // which of them
			s.checkRun(run[i:i+1], buf, bad)
		}
		return
	}
	for i := range run {
		if checksum(buf[i<<blockShift:(i+1)<<blockShift]) != run[i].CRC {
			bad(&run[i], "checksum wrong")
		}
	}
}

// dataIn returns the records of the data blocks of the layer itself in a region, without those of zeros.
func (l *Layer) dataIn(region uint64, dst []record) ([]record, error) {
	m, _ := l.content()
	dst, err := l.store.records(m, region, dst)
	data := dst[:0]
	for _, e := range dst {
		if e.Kind == kindData {
			e.Layer = l.entry.Number
			data = append(data, e)
		}
	}
	return data, err
}

func (l *Layer) regions() uint64 { return (l.blocks() + regionBlocks - 1) >> regionShift }

// checkData reads every data block of a store that nobody writes to.
func (rep *CheckReport) checkData(s *Store) error {
	c := dataChecker{s: s, rep: rep, runs: make(chan []record, slotCheckers)}
	var workers sync.WaitGroup
	for range slotCheckers {
		workers.Go(c.work)
	}
	names := make(map[uint32]string, len(s.layers))
	for _, l := range s.layers {
		names[l.entry.Number] = l.entry.Name
	}
	var err error
	for _, l := range s.inOrder() {
		err = rep.eachMapped(s, l, l.m, func(e *record) {
			if e.Kind == kindData {
				e.Layer = l.entry.Number
				c.add(e)
			}
		})
		if err != nil {
			break
		}
	}
	c.flush()
	close(c.runs)
	workers.Wait()
	rep.addData(s, c.bad, names)
	return err
}

// dataChecker puts records in order and has several goroutines read them.
type dataChecker struct {
	s     *Store
	rep   *CheckReport
	runs  chan []record
	batch []record

	mu  sync.Mutex
	bad []badBlock
}

type badBlock struct {
	record
	why string
}

func (c *dataChecker) add(e *record) {
	c.rep.DataBlocks++
	c.batch = append(c.batch, *e)
	if len(c.batch) >= slotCheckBatch {
		c.flush()
	}
}

func (c *dataChecker) flush() {
	sortBySlot(c.batch)
	for rest := c.batch; len(rest) > 0; {
		n := slotRun(rest)
		c.runs <- rest[:n]
		rest = rest[n:]
	}
	c.batch = nil // the goroutines still look at it
}

func (c *dataChecker) work() {
	var buf []byte
	for run := range c.runs {
		if len(buf) < len(run)<<blockShift {
			buf = alignedBuffer(len(run) << blockShift)
		}
		c.s.checkRun(run, buf, func(r *record, why string) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if len(c.bad) < maxProblems {
				c.bad = append(c.bad, badBlock{*r, why})
			}
		})
	}
}

// addData reports damaged blocks in the order in which they lie on the store.
func (rep *CheckReport) addData(s *Store, bad []badBlock, names map[uint32]string) {
	sort.Slice(bad, func(i, j int) bool { return bad[i].Slot < bad[j].Slot })
	for _, b := range bad {
		rep.add(s.dataProblem(names[b.Layer], &b.record, b.why))
	}
}

// dataProblem says which bytes of which device a damaged block is.
func (s *Store) dataProblem(layer string, r *record, why string) Problem {
	off := r.Block << blockShift
	return Problem{"data", s.sb.slotOffset(r.Slot), fmt.Sprintf("layer %q block %d (bytes %d to %d of its device): %s",
		layer, r.Block, off, off+blockSize-1, why), false}
}
