package union

import (
	"errors"
	"fmt"
	"io"
)

// Dump prints the structures of a store that nobody has open for writing, as they lie there, with what is
// damaged marked as such: superblocks, catalog, runs, and the live blocks of both log copies.
func Dump(w io.Writer, path string) error {
	d, err := openDisk(path, true)
	if err != nil {
		return fmt.Errorf("dump store: %w", err)
	}
	err = dumpDisk(w, path, d)
	if err := errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("dump store %s: %w", path, err)
	}
	return nil
}

// dumper remembers the first error of the writer.
type dumper struct {
	w   io.Writer
	s   *Store
	err error
}

func (d *dumper) printf(format string, a ...any) {
	if d.err == nil {
		_, d.err = fmt.Fprintf(d.w, format, a...)
	}
}

func dumpDisk(w io.Writer, path string, dk disk) error {
	d := &dumper{w: w, s: &Store{path: path, disk: dk, readOnly: true, pager: newPager(), layers: map[string]*Layer{}}}
	d.superblocks()
	if err := d.s.readSuperblocks(); err != nil {
		d.printf("no superblock is usable: %v\n", err)
		return d.err
	}
	d.catalog()
	if err := d.log(); err != nil {
		return err
	}
	return d.err
}

func (d *dumper) superblocks() {
	buf := alignedBuffer(blockSize)
	for i, block := range superBlocks {
		off := block << blockShift
		d.printf("superblock %c at byte %d\n", 'A'+i, off)
		if _, err := d.s.disk.ReadAt(buf, off); err != nil {
			d.printf("  unreadable: %v\n", err)
			continue
		}
		var sb superblock
		if err := sb.decode(buf, off); err != nil {
			d.printf("  unusable: %v\n", err)
			continue
		}
		d.printf("  version %d, generation %d, UUID %s\n", formatVersion, sb.Generation, sb.UUID)
		d.printf("  store of %d blocks; log copies of %d blocks at %d and %d; %d slots from block %d\n",
			sb.SizeBlocks, sb.LogBlocks, sb.LogA, sb.LogB, sb.Slots, sb.SlotBase)
		if sb.CacheBlocks > 0 {
			d.printf("  region of a block cache of %d blocks at %d\n", sb.CacheBlocks, sb.cacheBlock())
		}
		d.printf("  log start %d; catalog of %d blocks at slot %d, generation %d; next layer %d\n",
			sb.LogStart, sb.CatalogBlocks, sb.CatalogSlot, sb.CatalogGeneration, sb.NextLayer)
		d.printf("  boot id of the opener %s\n", sb.BootID)
	}
}

func (d *dumper) catalog() {
	s := d.s
	if err := s.loadCatalog(); err != nil {
		d.printf("catalog at slot %d\n  damaged: %v\n", s.sb.CatalogSlot, err)
		return
	}
	d.printf("catalog of %d layers\n", len(s.layers))
	for _, info := range s.layerInfos() {
		l := s.layers[info.Name]
		d.printf("  layer %d %q, UUID %s, device of %d bytes, made %s\n", l.entry.Number, info.Name, info.UUID, info.SizeBytes,
			info.Created.Format("2006-01-02T15:04:05Z"))
		d.printf("    pin: kind %d, %d bytes, digest %x\n", info.Pin.Kind, info.Pin.SizeBytes, info.Pin.Digest[:8])
		d.sectorMap("own", l.m, &l.entry.Map)
		if l.flat != nil {
			d.sectorMap("flat", l.flat, &l.entry.Flat)
		}
	}
	d.printf("bitmap of owned slots: %d of %d\n", s.slots.ownedSlots(), s.sb.Slots)
	for _, p := range s.slots.bitmapEntries() {
		if p.Slot == noSlot {
			d.printf("  page %d: all owned\n", p.Index)
			continue
		}
		d.printf("  page %d in slot %d, CRC-32C %#08x\n", p.Index, p.Slot, p.CRC)
	}
}

func (d *dumper) sectorMap(what string, m *sectorMap, e *mapEntry) {
	d.printf("    %s map %d: %d bytes of data\n", what, m.number, m.data<<blockShift)
	for _, p := range e.Pages {
		d.printf("      directory page %d in slot %d, CRC-32C %#08x\n", p.Index, p.Slot, p.CRC)
	}
	for i, seg := range e.Segments {
		d.printf("      segment of generation %d: %d of %d records alive, in", seg.Generation, m.store.segments[i].live, seg.Records)
		for _, x := range seg.Extents {
			d.printf(" slots %d to %d", x.Slot, x.Slot+uint64(x.Count)-1)
		}
		d.printf("\n")
	}
	err := d.s.eachRegion(m, func(_ uint64, records []record) error {
		for i := range records {
			d.record("      ", &records[i])
		}
		return nil
	})
	if err != nil {
		d.printf("      damaged: %v\n", err)
	}
}

func (d *dumper) record(indent string, r *record) {
	switch r.Kind {
	case kindZero:
		d.printf("%sblocks %d to %d read as zeros\n", indent, r.Block, r.Block+r.Slot-1)
		return
	case kindSeal:
		d.printf("%ssealed as layer %d, %d bytes of UUID and name follow\n", indent, r.Block, r.CRC)
		return
	case kindText:
		d.printf("%stext\n", indent)
		return
	case kindMerge:
		d.printf("%smerged with layer %d below\n", indent, r.Block)
		return
	}
	d.printf("%sblock %d in slot %d, CRC-32C %#08x\n", indent, r.Block, r.Slot, r.CRC)
}

func (d *dumper) log() error {
	s := d.s
	sources, release, err := s.readLog()
	if err != nil {
		return err
	}
	defer release()
	for c, src := range sources {
		first := [...]uint64{s.sb.LogA, s.sb.LogB}[c]
		d.printf("log copy %c, blocks from %d on\n", 'A'+c, s.sb.LogStart)
		// In order of sequence numbers. What lies further from the start than the ring is long is of another state.
		var h logHeader
		found := make(map[uint64]uint64)
		var highest uint64
		for i := range src.blocks {
			if h.decode(src.mem[i<<blockShift:][:blockSize], s.sb.UUID) && h.Seq >= s.sb.LogStart && h.Seq%src.blocks == i &&
				h.Seq-s.sb.LogStart < s.sb.LogBlocks {
				found[h.Seq] = i
				highest = max(highest, h.Seq)
			}
		}
		for seq := s.sb.LogStart; seq <= highest; seq++ {
			i, ok := found[seq]
			if !ok {
				d.printf("  block %d missing\n", seq)
				continue
			}
			d.logBlock(src.mem[i<<blockShift:][:blockSize], int64(first+i)<<blockShift)
		}
	}
	return nil
}

func (d *dumper) logBlock(p []byte, off int64) {
	var h logHeader
	h.decodeFields(p, d.s.sb.UUID)
	d.printf("  block %d at byte %d: %d records, durable to %d\n", h.Seq, off, h.Count, h.Durable)
	var r record
	for i := range h.Count {
		r.decode(p[logHeaderSize+i*recordSize:])
		d.record(fmt.Sprintf("    layer %d: ", r.Layer), &r)
	}
}
