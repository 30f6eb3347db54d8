package idxshare

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"

	"coppice/idxshare/ext4"
)

// ByteRange is a part of a device.
type ByteRange struct{ Off, Len int64 }

// DeltaInput is what a delta is made of.
type DeltaInput struct {
	// Base is the index of the root.
	Base *Index
	// Previous is a delta that was made over the same base before; nil: none.
	Previous *Index
	// Content is what the device reads at one moment, Size bytes of it.
	Content io.ReaderAt // if it is a [RangesReader], too, what is known to be needed is read with few questions
	Size    int64
	// Changed goes through all ranges whose content may be another than when Previous was made, or else than the root's. They are in order and do not overlap.
	Changed iter.Seq2[ByteRange, error]
}

// DeltaOptions say how to make a delta.
type DeltaOptions struct {
	Source     string // of its header
	Generation uint64 // of its header
	Digests    bool   // of files whose content changed, too; otherwise they have none
}

// VolumeHow says how a volume was brought up to date.
type VolumeHow string

// How a volume was brought up to date.
const (
	VolumeUntouched VolumeHow = "untouched" // nothing of it changed
	VolumeDelta     VolumeHow = "delta"     // what changed was read
	VolumeWhole     VolumeHow = "whole"     // all of it was read: it is another file system than before
	VolumeGone      VolumeHow = "gone"      // there is no file system any more that is known here
	VolumeStale     VolumeHow = "stale"     // it changed, and its type is not one that deltas are made of: it is shown as it was
)

// VolumeReport tells what was done about a volume.
type VolumeReport struct {
	Volume  int       `json:"volume"`
	Type    string    `json:"type"`
	How     VolumeHow `json:"how"`
	Why     string    `json:"why,omitempty"`
	Changed int64     `json:"changed_blocks"` // of the file system, what its journal replaces included
}

// DeltaReport tells what it took to make a delta.
type DeltaReport struct {
	Volumes []VolumeReport `json:"volumes"`
	// LeftOut are partitions that the base does not have, and of which nothing is in the delta.
	LeftOut []LeftOut `json:"left_out,omitempty"`
	// Table says why the partition table cannot be read, so that what was known of it holds on.
	Table string `json:"table,omitempty"`
	// Reads and ReadBytes are what was read of the content, in multiples of 4 KiB; DigestBytes of them were read for digests.
	Reads       int64 `json:"reads"`
	ReadBytes   int64 `json:"read_bytes"`
	DigestBytes int64 `json:"digest_bytes"`
	Inodes      int64 `json:"inodes"`      // that were looked at
	Files       int64 `json:"files"`       // that the delta has anew
	Deleted     int64 `json:"deleted"`     // inodes that are not in use any more
	Directories int64 `json:"directories"` // that were listed
	Kept        int64 `json:"kept"`        // files that were taken over from the delta before
}

// BuildDelta writes an index of what changed to path, which [NewView] takes together with the base. It reads of the content what changed, and little else.
//
// Blocks that changed are of inode tables, and then their inodes are compared with what is known of them; or they are a directory's, which is listed
// anew; or of the map or the content of a file, which counts as changed then, whatever its times say. What the journal replaces counts as changed, too.
func BuildDelta(ctx context.Context, path string, in DeltaInput, o DeltaOptions) (DeltaReport, error) {
	d := &deltaMaker{in: in, o: o, content: &contentReader{r: in.Content, size: in.Size}}
	if err := d.make(ctx, path); err != nil {
		return d.report, fmt.Errorf("index what changed: %w", err)
	}
	return d.report, nil
}

type deltaMaker struct {
	in      DeltaInput
	o       DeltaOptions
	content *contentReader
	before  *View
	w       *Writer
	report  DeltaReport
	done    map[place]bool // inodes that the delta says anew, or that are no more
	listed  map[place]bool // directories likewise
}

func (d *deltaMaker) make(ctx context.Context, path string) (err error) {
	d.done, d.listed = map[place]bool{}, map[place]bool{}
	h := Header{Source: d.o.Source, Size: d.in.Size, Digests: d.o.Digests, Delta: true, Base: d.in.Base.Header().Source, Generation: d.o.Generation}
	if p := d.in.Previous; p != nil && (!p.Header().Delta || p.Header().Base != h.Base) {
		return badInputf("the delta before stands on %q, this one on %q", p.Header().Base, h.Base)
	}
	if d.before, err = NewView(ctx, d.in.Base, d.in.Previous); err != nil {
		return err
	}
	if d.w, err = Create(path, h); err != nil {
		return err
	}
	defer d.w.Abort()
	layout, err := d.layout()
	if err != nil {
		return err
	}
	for _, l := range layout {
		if err := d.volume(ctx, l); err != nil {
			return fmt.Errorf("volume %d (%s): %w", l.ID, l.Type, err)
		}
	}
	if err := d.keep(ctx); err != nil {
		return err
	}
	d.report.Reads, d.report.ReadBytes = d.content.reads, d.content.bytes
	return d.w.Finish()
}

// volume brings one file system up to date.
func (d *deltaMaker) volume(ctx context.Context, l laidVolume) error {
	v, changed := l.Volume, l.changed
	d.report.Volumes = append(d.report.Volumes, VolumeReport{Volume: v.ID, Type: v.Type, How: VolumeUntouched, Changed: changed.blocks()})
	report := &d.report.Volumes[len(d.report.Volumes)-1]
	if v.Type == vanished {
		report.How, report.Why = VolumeGone, "no partition begins where it did"
		return d.vanish(ctx, v)
	}
	if len(changed) == 0 {
		return d.w.AddVolume(v)
	}
	if !v.Mapped || !isExt(v.Type) {
		report.How, report.Why = VolumeStale, "its files are not known by blocks: build an index of the device"
		return d.w.AddVolume(v)
	}
	fs, err := ext4.Open(io.NewSectionReader(d.content, v.Start, v.Length), v.Length)
	if errors.Is(err, ext4.ErrNotExt4) || errors.Is(err, ext4.ErrUnsupported) {
		report.How, report.Why = VolumeGone, err.Error()
		return d.vanish(ctx, v)
	}
	if err != nil {
		return err
	}
	w := &volumeDelta{deltaMaker: d, v: v, fs: fs, report: report, changed: changed}
	return w.make(ctx)
}

// vanish says that there is nothing in a volume any more. What is there the next time is another one, if only because nothing is known of it.
func (d *deltaMaker) vanish(ctx context.Context, v Volume) error {
	v.UUID, v.Label = "", ""
	if err := d.w.AddVolume(v); err != nil {
		return err
	}
	if err := d.forgetAll(ctx, v); err != nil {
		return err
	}
	return d.replaceMetadata(v)
}

// forgetAll says that nothing that was known of a volume holds.
func (d *deltaMaker) forgetAll(ctx context.Context, v Volume) error {
	known, err := d.before.filesIn(ctx, v.ID, 0, MaxInode)
	if err != nil {
		return err
	}
	for _, inode := range slices.Sorted(maps.Keys(known)) {
		if err := d.forget(place{v.ID, inode}, known[inode]); err != nil {
			return err
		}
	}
	return nil
}

// replaceMetadata says that what was known of the file system's own blocks does not hold.
func (d *deltaMaker) replaceMetadata(v Volume) error {
	d.done[place{v.ID, 0}] = true
	return d.w.ReplaceFile(v.ID, 0)
}

// forget says that an inode is not in use any more.
func (d *deltaMaker) forget(p place, was *File) error {
	if d.done[p] {
		return nil
	}
	d.done[p] = true
	d.report.Deleted++
	err := d.w.ReplaceFile(p.volume, p.inode)
	if err == nil && was.IsDirectory() {
		d.listed[p] = true
		err = d.w.ReplaceDirectory(p.volume, p.inode)
	}
	return err
}

// keep takes over from the delta before what still holds.
func (d *deltaMaker) keep(ctx context.Context) error {
	x := d.in.Previous
	if x == nil {
		return nil
	}
	err := x.Replaced(ctx, func(volume int, inode uint64, directory bool) error {
		switch p := (place{volume, inode}); {
		case directory && !d.listed[p]:
			return d.w.ReplaceDirectory(volume, inode)
		case !directory && !d.done[p]:
			d.report.Kept++
			return d.w.ReplaceFile(volume, inode)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = x.Files(ctx, func(f *File) error {
		if d.done[place{f.Volume, f.Inode}] {
			return nil
		}
		return d.w.AddFile(f)
	})
	if err != nil {
		return err
	}
	err = x.Names(ctx, func(n Name) error {
		if d.listed[place{n.Volume, n.Parent}] {
			return nil
		}
		return d.w.AddName(n)
	})
	if err != nil {
		return err
	}
	return x.Extents(ctx, func(e Extent) error {
		if d.done[place{e.Volume, e.Inode}] {
			return nil
		}
		return d.w.AddExtent(e)
	})
}

// volumeDelta brings one ext4 file system up to date.
type volumeDelta struct {
	*deltaMaker
	v       Volume
	fs      *ext4.FS
	report  *VolumeReport
	changed blockSet
	// Inodes of which other blocks than their own changed.
	directories, maps, contents map[uint64]bool
	seen                        map[uint64]bool // of them, those that were compared
	internal                    []*ext4.Inode   // of those that were looked at
	listing                     []blockRange    // blocks of those directories, and of those maps
	own                         []blockRange    // blocks that changed and were known to be the file system's own
}

func (d *volumeDelta) make(ctx context.Context) error {
	info := d.fs.Info()
	d.v.Type, d.v.Label = info.Type, info.Label
	why, err := d.another(ctx, info)
	if err != nil {
		return err
	}
	d.v.UUID, d.v.BlockSize = info.UUID.String(), info.BlockSize
	if err := d.w.AddVolume(d.v); err != nil {
		return err
	}
	if why != "" {
		d.report.Why = why
		return d.whole(ctx)
	}
	d.report.How = VolumeDelta
	if err := d.addReplayed(ctx); err != nil {
		return err
	}
	d.report.Changed = d.changed.blocks()
	tables := d.tables(info)
	if err := d.owners(ctx, d.changed.without(tables)); err != nil {
		return err
	}
	d.planReads(info)
	if err := d.inodes(ctx, info); err != nil {
		return err
	}
	if err := d.others(ctx); err != nil {
		return err
	}
	return d.metadata(ctx, false)
}

// metadata puts the blocks that are the file system's own into the delta, unless all of them were known: they change when it is made larger or smaller, and with the few
// inodes that it has for itself.
func (d *volumeDelta) metadata(ctx context.Context, all bool) error {
	var own []Extent
	err := d.fs.Regions(func(first, count uint64, _ ext4.PlaceKind) error {
		own = append(own, Extent{Volume: d.v.ID, Kind: ExtentMetadata, Physical: int64(first), Length: int64(count)})
		return nil
	})
	if err != nil {
		return err
	}
	regions := len(own)
	deep, err := d.mapChanged(ctx)
	if err != nil {
		return err
	}
	for _, i := range d.internal {
		err := d.ownOf(ctx, i, all || deep, func(e Extent) error {
			own = append(own, e)
			return nil
		})
		if err != nil {
			return err
		}
	}
	// A file system that is resized gets or loses groups, or another length of the last one, at the end.
	if !all {
		check := own[regions:]
		check = append(check, own[max(0, regions-ownRegions):regions]...)
		known := true
		for _, e := range check {
			if known, err = d.before.hasExtent(ctx, e); err != nil || !known {
				break
			}
		}
		if err != nil || known {
			return err
		}
	}
	// All of them, those of inodes in blocks that did not change included.
	return d.putMetadata(ctx, own[:regions])
}

// ownRegions is how many of the last regions are looked at.
const ownRegions = 8

// putMetadata replaces what is the file system's own: regions, and the blocks of inodes that it has for itself.
func (d *volumeDelta) putMetadata(ctx context.Context, regions []Extent) error {
	if err := d.replaceMetadata(d.v); err != nil {
		return err
	}
	for _, e := range regions {
		if err := d.w.AddExtent(e); err != nil {
			return err
		}
	}
	return d.fs.Scan(ctx, func(i *ext4.Inode) error {
		if d.fs.Internal(i) == "" {
			return nil
		}
		return d.ownOf(ctx, i, true, d.w.AddExtent)
	})
}

// ownOf calls fn with the blocks of an inode that the file system has for itself, but for those that its layout has already. Without deep it goes no further than to the
// first block of the inode's map.
func (d *volumeDelta) ownOf(ctx context.Context, i *ext4.Inode, deep bool, fn func(Extent) error) error {
	err := d.fs.Extents(ctx, i, func(e ext4.Extent) error {
		if d.fs.Place(uint64(e.Physical)).Kind == ext4.PlaceOther {
			if err := fn(Extent{Volume: d.v.ID, Kind: ExtentMetadata, Physical: e.Physical, Length: e.Length}); err != nil {
				return err
			}
		}
		if e.Kind == ext4.ExtentTree && !deep {
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) {
		err = nil
	}
	return err
}

// mapChanged tells whether a block changed that may be of the map of an inode that the file system has for itself: one that was its own, and that neither its layout has nor
// its journal. The map by which a file system can grow has a block for each of its groups, and is not read where an inode beside it changed.
func (d *volumeDelta) mapChanged(ctx context.Context) (bool, error) {
	journal := d.fs.JournalInode()
	var log blockSet
	if journal != 0 {
		i, err := d.fs.Inode(ctx, journal)
		if err != nil {
			return false, err
		}
		var all []blockRange
		err = d.fs.Extents(ctx, i, func(e ext4.Extent) error {
			if e.Kind == ext4.ExtentData {
				all = append(all, blockRange{e.Physical, e.Length})
			}
			return nil
		})
		if err != nil {
			return false, err
		}
		log = blockSet(nil).with(all)
	}
	for _, r := range blockSet(nil).with(d.own).without(log) {
		for b := r.first; b < r.end(); b++ {
			if d.fs.Place(uint64(b)).Kind == ext4.PlaceOther {
				return true, nil
			}
		}
	}
	return false, nil
}

// another tells why the file system is not the one that was known, "" if it is: made anew, its root directory has another time of creation.
func (d *volumeDelta) another(ctx context.Context, info ext4.Info) (string, error) {
	if d.v.UUID == "" {
		return "it is new", nil
	}
	if u := info.UUID.String(); u != d.v.UUID {
		return fmt.Sprintf("the file system is another one: %s, was %s", u, d.v.UUID), nil
	}
	if info.BlockSize != d.v.BlockSize {
		return fmt.Sprintf("it was made anew, in blocks of %d bytes", info.BlockSize), nil
	}
	const rootDirectory = 2
	was, err := d.before.fileOrNil(ctx, place{d.v.ID, rootDirectory})
	if err != nil {
		return "", err
	}
	now, err := d.fs.Inode(ctx, rootDirectory)
	if err != nil {
		return "", err
	}
	if was == nil || was.Crtime != now.Crtime.UnixNano() || was.Generation != now.Generation {
		return "it was made anew", nil
	}
	return "", nil
}

// whole indexes all of the file system, and forgets what was there.
func (d *volumeDelta) whole(ctx context.Context) error {
	d.report.How = VolumeWhole
	known, err := d.before.filesIn(ctx, d.v.ID, 0, MaxInode)
	if err != nil {
		return err
	}
	err = d.fs.Scan(ctx, func(i *ext4.Inode) error {
		d.deltaMaker.report.Inodes++
		if d.fs.Internal(i) != "" {
			return nil
		}
		return d.put(ctx, i, known[uint64(i.Number)], true, true)
	})
	if err != nil {
		return err
	}
	if err := d.forgetAll(ctx, d.v); err != nil {
		return err
	}
	return d.metadata(ctx, true)
}

// addReplayed counts as changed what the journal replaces, unless nothing of the journal changed: then it was so before.
func (d *volumeDelta) addReplayed(ctx context.Context) error {
	var replayed []blockRange
	for block := range d.fs.Replayed() {
		replayed = append(replayed, blockRange{int64(block), 1})
	}
	if len(replayed) == 0 {
		return nil
	}
	journal, err := d.fs.Inode(ctx, d.fs.JournalInode())
	if err != nil {
		return err
	}
	written := false
	err = d.fs.Extents(ctx, journal, func(e ext4.Extent) error {
		written = written || d.changed.touches(blockRange{e.Physical, e.Length})
		return nil
	})
	if err != nil || !written {
		return err
	}
	d.changed = d.changed.with(replayed)
	return nil
}

// tables returns where the inode tables lie, in order.
func (d *volumeDelta) tables(info ext4.Info) blockSet {
	var all []blockRange
	for n := range info.Groups {
		g := d.fs.Group(n)
		all = append(all, blockRange{int64(g.Table), int64(g.TableBlocks)})
	}
	return blockSet(nil).with(all)
}

// ownersGap is how many blocks that did not change are asked for with those around them, which spares a question.
const ownersGap = 16

// owners finds whose blocks changed. Attributes are not indexed, and their blocks change in files that did not, which share them.
func (d *volumeDelta) owners(ctx context.Context, blocks blockSet) error {
	d.directories, d.maps, d.contents, d.seen = map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{}
	for i := 0; i < len(blocks); {
		k := i + 1
		for k < len(blocks) && blocks[k].first-blocks[k-1].end() <= ownersGap {
			k++
		}
		run := blockRange{blocks[i].first, blocks[k-1].end() - blocks[i].first}
		extents, err := d.before.extentsIn(ctx, d.v.ID, run)
		if err != nil {
			return err
		}
		for _, e := range extents {
			if !blocks[i:k].touches(blockRange{e.Physical, e.Length}) {
				continue
			}
			switch e.Kind {
			case ExtentDirectory:
				d.directories[e.Inode] = true
				d.listing = append(d.listing, blockRange{e.Physical, e.Length})
			case ExtentTree:
				d.maps[e.Inode] = true
				d.listing = append(d.listing, blockRange{e.Physical, e.Length})
			case ExtentData:
				d.contents[e.Inode] = true
			case ExtentMetadata:
				d.own = append(d.own, blocks[i:k].in(blockRange{e.Physical, e.Length})...)
			}
		}
		i = k
	}
	return nil
}

// planReads tells the content what will be read of it: blocks of inodes that changed, and directories of which a block did.
func (d *volumeDelta) planReads(info ext4.Info) {
	var tables []blockRange
	for n := range info.Groups {
		g := d.fs.Group(n)
		perBlock := uint32(info.BlockSize / info.InodeSize)
		tables = append(tables, d.changed.in(blockRange{int64(g.Table), int64((g.Initialised + perBlock - 1) / perBlock)})...)
	}
	var plan []ByteRange
	for _, r := range blockSet(nil).with(slices.Concat(tables, d.listing)) {
		plan = append(plan, ByteRange{d.v.Start + r.first*int64(d.v.BlockSize), r.count * int64(d.v.BlockSize)})
	}
	d.content.plan(plan)
}

// inodes compares the inodes whose blocks changed with what was known of them.
func (d *volumeDelta) inodes(ctx context.Context, info ext4.Info) error {
	perBlock := uint32(info.BlockSize / info.InodeSize)
	for n := range info.Groups {
		g := d.fs.Group(n)
		for _, r := range d.changed.in(blockRange{int64(g.Table), int64(g.TableBlocks)}) {
			index := uint32(r.first-int64(g.Table)) * perBlock
			count := min(uint32(r.count)*perBlock, g.Inodes-index)
			if err := d.compare(ctx, g.FirstInode+index, count); err != nil {
				return err
			}
		}
		// A table may have been cut short without being written.
		if g.Initialised < g.Inodes {
			if err := d.forgetRange(ctx, uint64(g.FirstInode+g.Initialised), uint64(g.FirstInode+g.Inodes-1)); err != nil {
				return err
			}
		}
	}
	return d.forgetRange(ctx, info.Inodes+1, MaxInode)
}

// forgetRange says that inodes are not in use any more.
func (d *volumeDelta) forgetRange(ctx context.Context, first, last uint64) error {
	known, err := d.before.filesIn(ctx, d.v.ID, first, last)
	if err != nil {
		return err
	}
	for inode, was := range known {
		if err := d.forget(place{d.v.ID, inode}, was); err != nil {
			return err
		}
	}
	return nil
}

// compare looks at inodes in blocks that changed.
func (d *volumeDelta) compare(ctx context.Context, first, count uint32) error {
	known, err := d.before.filesIn(ctx, d.v.ID, uint64(first), uint64(first)+uint64(count)-1)
	if err != nil {
		return err
	}
	err = d.fs.ScanRange(ctx, first, count, func(i *ext4.Inode) error {
		d.deltaMaker.report.Inodes++
		if d.fs.Internal(i) != "" {
			d.internal = append(d.internal, i)
			return nil
		}
		was := known[uint64(i.Number)]
		delete(known, uint64(i.Number))
		return d.inode(ctx, i, was)
	})
	if err != nil {
		return err
	}
	for inode, was := range known {
		if err := d.forget(place{d.v.ID, inode}, was); err != nil {
			return err
		}
	}
	return nil
}

// inode puts an inode into the delta, if it or what belongs to it is another than before.
func (d *volumeDelta) inode(ctx context.Context, i *ext4.Inode, was *File) error {
	number := uint64(i.Number)
	if d.directories[number] || d.maps[number] || d.contents[number] {
		d.seen[number] = true
	}
	now := fileOf(d.v.ID, i)
	if was == nil || was.Generation != now.Generation || was.Mode&ModeType != now.Mode&ModeType || was.Crtime != now.Crtime {
		return d.put(ctx, i, was, true, true)
	}
	moved, err := d.moved(ctx, i)
	if err != nil {
		return err
	}
	moved = moved || d.maps[number] || d.contents[number] || d.directories[number]
	same, read := sameFile(was, now)
	switch {
	case same && !moved:
		return nil
	case same && i.Type() == ext4.ModeRegular:
		return d.suspect(ctx, i, was)
	case read && !moved:
		return d.put(ctx, i, was, false, false)
	}
	content := moved && !d.coarse() || was.Size != now.Size || was.Mtime != now.Mtime || was.Blocks != now.Blocks || i.Flags&ext4.FlagInlineData != 0
	if !content && was.Digest != nil && i.Type() == ext4.ModeRegular {
		if content, err = d.remapped(ctx, i); err != nil {
			return err
		}
	}
	return d.put(ctx, i, was, true, content)
}

// coarse tells that a unit in which changes are known has parts of several blocks of the file system, so that a block may count as changed because of its neighbour.
func (d *volumeDelta) coarse() bool {
	return d.v.BlockSize < readUnit || d.v.Start%readUnit != 0
}

// suspect decides about a file of which only blocks changed, and nothing that its inode says: by its digest where that is known and wanted, and otherwise by whether the
// blocks are its own for sure.
func (d *volumeDelta) suspect(ctx context.Context, i *ext4.Inode, was *File) error {
	another := !d.coarse()
	if d.o.Digests && was.Digest != nil {
		digest, err := d.digest(ctx, i)
		if err != nil {
			return err
		}
		another = !bytes.Equal(digest, was.Digest)
	}
	if !another {
		if remapped, err := d.remapped(ctx, i); err != nil || !remapped {
			return err
		}
	}
	return d.put(ctx, i, was, true, another)
}

// moved tells whether an inode has a block that changed, as far as it knows its blocks without reading more: what is written to other blocks, and mapped by an inode that
// says nothing of it, as by a defragmenter, is found so.
func (d *volumeDelta) moved(ctx context.Context, i *ext4.Inode) (moved bool, err error) {
	err = d.fs.Extents(ctx, i, func(e ext4.Extent) error {
		if e.Kind != ext4.ExtentXattr {
			moved = d.changed.touches(blockRange{e.Physical, e.Length})
		}
		if moved || e.Kind == ext4.ExtentTree {
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) {
		err = nil
	}
	return moved, err
}

// remapped tells whether an inode has an extent that it did not have before.
func (d *volumeDelta) remapped(ctx context.Context, i *ext4.Inode) (bool, error) {
	another := false
	err := d.fs.Extents(ctx, i, func(e ext4.Extent) error {
		if e.Kind != ext4.ExtentData || another {
			return nil
		}
		known, err := d.before.hasExtent(ctx, extentOf(d.v.ID, i, e))
		another = !known
		return err
	})
	return another, err
}

// sameFile compares what is known of an inode with what is there, but for the target and the digest; read says that it differs in the time of the last access alone.
func sameFile(was, now *File) (same, read bool) {
	a, b := *was, *now
	a.Target, b.Target, a.Digest, b.Digest = nil, nil, nil, nil
	same = equalFiles(&a, &b)
	a.Atime = b.Atime
	return same, !same && equalFiles(&a, &b)
}

func equalFiles(a, b *File) bool {
	return a.Volume == b.Volume && a.Inode == b.Inode && a.Generation == b.Generation && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && a.Size == b.Size &&
		a.Links == b.Links && a.Blocks == b.Blocks && a.Rdev == b.Rdev && a.Atime == b.Atime && a.Mtime == b.Mtime && a.Ctime == b.Ctime && a.Crtime == b.Crtime &&
		bytes.Equal(a.Target, b.Target) && bytes.Equal(a.Digest, b.Digest)
}

// others puts those into the delta of which only blocks changed, and not the inode.
func (d *volumeDelta) others(ctx context.Context) error {
	for _, set := range []map[uint64]bool{d.directories, d.maps, d.contents} {
		for _, number := range slices.Sorted(maps.Keys(set)) {
			p := place{d.v.ID, number}
			if d.done[p] || d.seen[number] {
				continue
			}
			d.seen[number] = true
			was, err := d.before.fileOrNil(ctx, p)
			if err != nil || was == nil { // nil: something of the file system's own
				if err != nil {
					return err
				}
				continue
			}
			i, err := d.fs.Inode(ctx, uint32(number))
			if err != nil {
				return err
			}
			d.deltaMaker.report.Inodes++
			if !i.InUse() { // in a table that was not written: the index contradicts itself
				return corruptf("inode %d is not in use, and was not changed", number)
			}
			if err := d.inode(ctx, i, was); err != nil {
				return err
			}
		}
	}
	return nil
}

// put adds an inode to the delta. A directory is listed where its names may be others; content says that a file's content may be another.
func (d *volumeDelta) put(ctx context.Context, i *ext4.Inode, was *File, list, content bool) error {
	p := place{d.v.ID, uint64(i.Number)}
	d.done[p] = true
	d.deltaMaker.report.Files++
	f := fileOf(d.v.ID, i)
	if err := d.complete(ctx, f, i, was, content); err != nil {
		return err
	}
	if err := d.w.ReplaceFile(p.volume, p.inode); err != nil {
		return err
	}
	if err := d.w.AddFile(f); err != nil {
		return err
	}
	err := d.fs.Extents(ctx, i, func(e ext4.Extent) error { return d.w.AddExtent(extentOf(p.volume, i, e)) })
	if err != nil {
		return err
	}
	if f.IsDirectory() && list || was != nil && was.IsDirectory() && !f.IsDirectory() {
		return d.list(ctx, p, i)
	}
	return nil
}

// complete adds what an inode does not say itself: where a symbolic link leads, and the digest.
func (d *volumeDelta) complete(ctx context.Context, f *File, i *ext4.Inode, was *File, content bool) (err error) {
	switch f.Mode & ModeType {
	case ModeSymlink:
		f.Target, err = d.fs.Readlink(ctx, i)
		if errors.Is(err, ext4.ErrEncrypted) {
			err = nil
		}
	case ModeRegular:
		switch {
		case !content && was != nil:
			f.Digest = was.Digest
		case d.o.Digests:
			f.Digest, err = d.digest(ctx, i)
		}
	}
	return err
}

// list replaces the names of a directory, or takes them away where there is none any more.
func (d *volumeDelta) list(ctx context.Context, p place, i *ext4.Inode) error {
	d.listed[p] = true
	if err := d.w.ReplaceDirectory(p.volume, p.inode); err != nil || i.Type() != ext4.ModeDir {
		return err
	}
	d.deltaMaker.report.Directories++
	return d.fs.ReadDir(ctx, i, func(e ext4.DirEntry) error {
		return d.w.AddName(nameOf(p.volume, i, e))
	})
}

func (d *volumeDelta) digest(ctx context.Context, i *ext4.Inode) ([]byte, error) {
	before := d.content.bytes
	defer func() { d.deltaMaker.report.DigestBytes += d.content.bytes - before }()
	c, err := d.fs.Content(ctx, i)
	if errors.Is(err, ext4.ErrEncrypted) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, io.NewSectionReader(c, 0, c.Size()), make([]byte, 1<<18)); err != nil {
		return nil, fmt.Errorf("digest of inode %d: %w", i.Number, err)
	}
	return h.Sum(nil), nil
}
