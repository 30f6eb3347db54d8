package union

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/google/uuid"

	"coppice/ublk/ublktest"
)

// simStats counts what a run, or many, looked at.
type simStats struct {
	Runs, Events, States, Images      uint64 // states are distinct: an image, and what it must hold
	Kills, Rots, Lives, CutRecoveries uint64 // of the states
	Exhaustive, Sampled               uint64 // events after which every subset was looked at, or a choice of them
	Torn, Refused, Deepest            uint64
}

func (s *simStats) add(o *simStats) {
	s.Runs += o.Runs
	s.Events += o.Events
	s.States += o.States
	s.Images += o.Images
	s.Kills += o.Kills
	s.Rots += o.Rots
	s.Lives += o.Lives
	s.CutRecoveries += o.CutRecoveries
	s.Exhaustive += o.Exhaustive
	s.Sampled += o.Sampled
	s.Torn += o.Torn
	s.Refused += o.Refused
	s.Deepest = max(s.Deepest, o.Deepest)
}

// looker builds the states that the disk of a run may be left in, and looks at each.
type looker struct {
	*bench
	stable  *stable
	seen    map[uint64]struct{} // states
	images  map[uint64]struct{}
	strict  int // storeModel.strict when it looked last
	acks    int
	had     int // writes pending then
	silent  bool
	pending []*ublktest.WriteRecord
	kept    []byte // by pending write: what the state has of it
	extra   string // what else happened to it
	spoiled bool   // and it was damage
}

// bench is the memory that looking takes. One goroutine uses it, for one run after the other.
type bench struct {
	img           image
	first, second contents
	dir           string // for run directories
	lives         *bench // for second lives
}

func (lk *looker) begin(r *simRun) {
	lk.stable = newStable(r.disk)
	lk.seen, lk.images = map[uint64]struct{}{}, map[uint64]struct{}{}
	lk.witness(r)
}

// after looks at what a step may have made possible.
func (lk *looker) after(r *simRun) {
	if !r.changed && r.model.strict == lk.strict {
		if r.model.acks != lk.acks {
			lk.acks = r.model.acks
			lk.maybeKill(r)
		}
		return
	}
	became := false
	if r.changed {
		if became = lk.stable.follow(r.disk); became {
			lk.witness(r)
		}
	}
	stricter := r.model.strict != lk.strict
	lk.pending = r.disk.Volatile()
	grown := r.changed && !became && !stricter && len(lk.pending) == lk.had+1
	lk.had, lk.strict, lk.acks, r.changed = len(lk.pending), r.model.strict, r.model.acks, false
	if lk.silent {
		return
	}
	r.stats.Events++
	if r.life > 0 {
		if r.pick.IntN(3) == 0 {
			lk.random(r)
		}
		return
	}
	r.stats.Deepest = max(r.stats.Deepest, uint64(lk.had))
	lk.cuts(r, grown)
	lk.maybeKill(r)
	if r.cfg.damage > 0 && r.pick.IntN(r.cfg.damage) == 0 {
		lk.damage(r)
	}
}

// witness finds out which log block the durable content confirms, whichever one block of the log rots in both copies: the
// start of the log, or what two blocks of it call durable.
func (lk *looker) witness(r *simRun) {
	var sb superblock
	p := lk.stable.content
	if sb.decode(p[:blockSize], 0) != nil {
		var b superblock
		if b.decode(p[superBBlock<<blockShift:][:blockSize], 0) != nil {
			return
		}
		sb = b
	}
	claims := map[uint64]uint64{} // by block
	var h logHeader
	for _, first := range []uint64{sb.LogA, sb.LogB} {
		for i := range sb.LogBlocks {
			if h.decode(p[(first+i)<<blockShift:][:blockSize], sb.UUID) && h.Seq >= sb.LogStart {
				claims[h.Seq] = h.Durable
			}
		}
	}
	durable := sb.LogStart - 1
	if all := slices.Sorted(maps.Values(claims)); len(all) > 1 {
		durable = max(durable, all[len(all)-2])
	}
	r.model.witness(durable)
}

// keep makes the image of those pending writes that want is true for.
func (lk *looker) keep(want func(i int) bool) {
	lk.img.reset(lk.stable.content)
	lk.kept, lk.extra = lk.kept[:0], ""
	for i, w := range lk.pending {
		lk.kept = append(lk.kept, '-')
		if want(i) {
			lk.img.put(w.Data, w.Off, nil)
			lk.kept[i] = 'k'
		}
	}
}

// cuts looks at power cuts: at every subset of the pending writes where they are few, else at a choice.
func (lk *looker) cuts(r *simRun, grown bool) {
	n := len(lk.pending)
	if n <= r.cfg.exhaustive {
		from := 0
		if grown {
			from = 1 << (n - 1) // the others were looked at before
		}
		for mask := from; mask < 1<<n; mask++ {
			lk.keep(func(i int) bool { return mask>>i&1 != 0 })
			lk.judge(r, powerCut, false)
		}
		r.stats.Exhaustive++
	} else {
		r.stats.Sampled++
		lk.keep(func(int) bool { return false })
		lk.judge(r, powerCut, false)
		lk.keep(func(int) bool { return true })
		lk.judge(r, powerCut, false)
		lk.keep(func(i int) bool { return i == n-1 })
		lk.judge(r, powerCut, false)
		k := r.pick.IntN(n)
		lk.keep(func(i int) bool { return i < k })
		lk.judge(r, powerCut, false)
		k = r.pick.IntN(n)
		lk.keep(func(i int) bool { return i != k })
		lk.judge(r, powerCut, false)
	}
	if n == 0 || r.cfg.scope {
		return
	}
	lk.random(r)
	lk.torn(r)
	if n > 1 {
		lk.reordered(r)
	}
}

// random keeps some of the pending writes, whole or in part.
func (lk *looker) random(r *simRun) {
	share := []float64{0.2, 0.5, 0.8}[r.pick.IntN(3)]
	lk.keep(func(int) bool { return r.pick.Float64() < share })
	how := r.pick.IntN(6)
	spoil := r.pick.IntN(r.cfg.spoils) == 0
	for i := range lk.pending {
		switch {
		case lk.kept[i] == 'k':
		case spoil:
			lk.spoil(r, i)
		case how < 3 && r.pick.IntN(3) == 0:
			lk.tear(r, i)
		}
	}
	lk.judge(r, powerCut, false)
}

// torn keeps the newest pending write, or another, in part.
func (lk *looker) torn(r *simRun) {
	n := len(lk.pending)
	i := n - 1
	if r.pick.IntN(2) == 0 {
		i = r.pick.IntN(n)
	}
	others := r.pick.IntN(3)
	lk.keep(func(k int) bool { return k != i && (others == 1 || others == 2 && r.pick.IntN(2) == 0) })
	lk.tear(r, i)
	r.stats.Torn++
	lk.judge(r, powerCut, false)
}

// tear lays some sectors of a write over the image: a prefix, or any, or garbage.
func (lk *looker) tear(r *simRun, i int) {
	w := lk.pending[i]
	lk.kept[i] = 't'
	switch n := len(w.Data) / sector; r.pick.IntN(5) {
	case 0, 1:
		end := 1 + r.pick.IntN(n)
		lk.img.put(w.Data, w.Off, func(s int) bool { return s < end })
	case 2:
		lk.spoil(r, i)
	default:
		lk.img.put(w.Data, w.Off, func(int) bool { return r.pick.IntN(2) == 0 })
	}
}

// spoil leaves of a write neither what was there before nor what it wrote. Blocks that the write does not change stay: a checkpoint
// may repeat blocks of the log that a commit under way writes too, with the same content.
func (lk *looker) spoil(r *simRun, i int) {
	lk.kept[i] = 'g'
	w := lk.pending[i]
	for at := 0; at < len(w.Data); at += blockSize {
		off := w.Off + int64(at)
		if bytes.Equal(w.Data[at:][:blockSize], lk.stable.content[off:][:blockSize]) {
			continue
		}
		garbage := lk.img.fresh()
		fill(garbage, r.pick.Uint64())
		lk.img.put(garbage, off, nil)
	}
}

// reordered keeps two writes to one block in the other order.
func (lk *looker) reordered(r *simRun) {
	for i, v := range lk.pending {
		for k, w := range lk.pending[i+1:] {
			if v.Off < w.Off+int64(len(w.Data)) && w.Off < v.Off+int64(len(v.Data)) {
				lk.keep(func(int) bool { return true })
				lk.img.put(v.Data, v.Off, nil)
				lk.extra = fmt.Sprintf("write %d after write %d", i, i+1+k)
				lk.judge(r, powerCut, false)
			}
		}
	}
}

// maybeKill looks at the death of the process now and then.
func (lk *looker) maybeKill(r *simRun) {
	if r.life == 0 && r.cfg.runDir && !lk.silent && (r.cfg.scope || r.pick.IntN(r.cfg.kills) == 0) {
		lk.kill(r)
	}
}

// kill looks at the death of the process: what it had begun to write may arrive or not.
func (lk *looker) kill(r *simRun) {
	ring, err := r.ring()
	if err != nil {
		r.fail(fmt.Errorf("read ring: %w", err), "")
		return
	}
	lk.keep(func(int) bool { return false })
	for i, w := range lk.pending { // there, but not durable
		lk.kept[i] = 'k'
		lk.img.write(w.Data, w.Off)
	}
	ghosts := 0
	for _, e := range r.sim.InFlight() {
		if e.Kind == ublktest.Write && e.Disk == r.disk && r.pick.IntN(2) == 0 {
			lk.img.write(e.Data, e.Off)
			ghosts++
		}
	}
	lk.extra = fmt.Sprintf("and %d writes of the dead process that arrived late", ghosts)
	if err := leaveRing(lk.dir, ring); err != nil {
		r.fail(fmt.Errorf("leave ring: %w", err), "")
		return
	}
	r.stats.Kills++
	lk.judgeWith(r, processDeath, false, hashBlock(ring))
}

// damage looks at a disk that not only lost power but has lost, displaced or changed a block.
func (lk *looker) damage(r *simRun) {
	lk.spoiled = true
	defer func() { lk.spoiled = false }()
	all := r.pick.IntN(2) == 0
	lk.keep(func(int) bool { return all })
	var sb superblock
	if sb.decode(lk.img.block(superABlock), 0) != nil && sb.decode(lk.img.block(superBBlock), 0) != nil {
		return
	}
	flip := func(b int) {
		p := lk.img.fresh()
		copy(p, lk.img.block(b))
		at := r.pick.IntN(blockSize)
		p[at] ^= 1 << r.pick.IntN(8)
		lk.img.set(b, p)
		lk.extra += fmt.Sprintf("%s rots at byte %d; ", lk.place(&sb, int64(b)<<blockShift), at)
	}
	r.stats.Rots++
	log := r.pick.IntN(int(sb.LogBlocks))
	super := superBlocks[r.pick.IntN(2)]
	switch r.pick.IntN(9) {
	case 0: // one copy of a log block
		flip(log + int([]uint64{sb.LogA, sb.LogB}[r.pick.IntN(2)]))
		lk.judge(r, powerCut, false)
	case 1: // both
		flip(log + int(sb.LogA))
		flip(log + int(sb.LogB))
		lk.judge(r, rot, true)
	case 2: // one superblock
		flip(int(super))
		lk.judge(r, powerCut, false)
	case 3: // both
		flip(superABlock)
		flip(superBBlock)
		lk.judge(r, rot, true)
	case 4, 5: // anything else
		flip(int(sb.SlotBase) + r.pick.IntN(int(sb.Slots)))
		lk.judge(r, rot, true)
	case 6: // a write that the disk lost though it said otherwise
		lk.lose(r, &sb, func(int) bool { return true })
	case 7:
		lk.lose(r, &sb, func(b int) bool { return int64(b) == super })
	default:
		lk.displace(r, &sb)
	}
}

// lose brings back what one of the blocks held before it changed last.
func (lk *looker) lose(r *simRun, sb *superblock, of func(block int) bool) {
	var lost []int
	for b, p := range lk.stable.before {
		if p != nil && lk.img.blocks[b] == nil && of(b) {
			lost = append(lost, b)
		}
	}
	if len(lost) == 0 {
		return
	}
	b := lost[r.pick.IntN(len(lost))]
	lk.img.set(b, lk.stable.before[b])
	lk.extra = "lost write: " + lk.place(sb, int64(b)<<blockShift)
	if uint64(b) < sb.SlotBase { // there is another copy
		lk.judge(r, powerCut, false)
		return
	}
	lk.judge(r, rot, true)
}

// displace lets a pending write arrive at another place than its own.
func (lk *looker) displace(r *simRun, sb *superblock) {
	if len(lk.pending) == 0 {
		return
	}
	i := r.pick.IntN(len(lk.pending))
	w := lk.pending[i]
	lk.keep(func(k int) bool { return k != i })
	blocks := len(lk.stable.hashes) - len(w.Data)>>blockShift
	off := int64(r.pick.IntN(blocks)) << blockShift
	lk.img.put(w.Data, off, nil)
	lk.kept[i] = 'm'
	lk.extra = "it went to " + lk.place(sb, off)
	lk.judge(r, rot, true)
}

func (lk *looker) judge(r *simRun, o ordeal, damaged bool) { lk.judgeWith(r, o, damaged, 0) }

// judgeWith looks at the image unless the same one, with the same to demand of it, was looked at before.
func (lk *looker) judgeWith(r *simRun, o ordeal, damaged bool, ring uint64) {
	if r.failed != nil {
		return
	}
	key := lk.stable.key(&lk.img) + ring
	owed := r.model.strict
	if o == processDeath {
		owed = r.model.acks
	}
	state := mix(int(o)+4*owed, key)
	if damaged {
		state ^= 1
	}
	if _, ok := lk.seen[state]; ok {
		return
	}
	lk.seen[state] = struct{}{}
	if _, ok := lk.images[key]; !ok {
		lk.images[key] = struct{}{}
		r.stats.Images++
	}
	r.stats.States++
	if err := lk.verify(r, o, damaged); err != nil {
		r.fail(err, lk.describe(o))
	}
}

// verify recovers a store from the image, compares all that it holds with the model, and recovers it again.
func (lk *looker) verify(r *simRun, o ordeal, damaged bool) error {
	opts := StoreOptions{boot: uuid.UUID{3}}
	if o == processDeath {
		opts = StoreOptions{RunDir: lk.dir, boot: r.boot}
	}
	if r.cfg.relapses && o == powerCut && !lk.spoiled && lk.newer() >= 0 {
		if err := lk.relapses(r, opts); err != nil {
			return err
		}
	}
	share := r.cfg.recuts
	if o == processDeath {
		share = r.cfg.kills
	}
	if !damaged && r.pick.IntN(share) == 0 {
		var err error
		if o, opts, err = lk.cutRecovery(r, o, opts); err != nil {
			return err
		}
	}
	return lk.recovered(r, o, opts, damaged)
}

// recovered looks at what a recovery that comes to its end makes of the image.
func (lk *looker) recovered(r *simRun, o ordeal, opts StoreOptions, damaged bool) error {
	if err := lk.open(r, opts, &lk.first); err != nil {
		if damaged && errors.Is(err, errRefused) {
			r.stats.Refused++
			return nil
		}
		return err
	}
	if err := r.model.check(&lk.first, o, damaged); err != nil {
		return err
	}
	if !damaged {
		rep, err := checkDisk("leaf", &lk.img, CheckOptions{})
		if err != nil {
			return fmt.Errorf("check: %w", err)
		}
		for _, p := range rep.Problems {
			if !p.Repairable {
				return fmt.Errorf("check: %v", p)
			}
		}
	}
	if err := lk.open(r, opts, &lk.second); err != nil {
		return fmt.Errorf("second recovery: %w", err)
	}
	if err := lk.second.equal(&lk.first); err != nil {
		return fmt.Errorf("second recovery: %w", err)
	}
	if r.life == 0 && !damaged && r.pick.IntN(16) == 0 {
		return lk.live(r)
	}
	return nil
}

var errRefused = errors.New("store refused")

// open recovers a store from the image and reads all of it.
func (lk *looker) open(r *simRun, opts StoreOptions, into *contents) error {
	s, err := openOn("leaf", &lk.img, opts)
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	defer func() { _ = s.pending.close() }()
	return into.read(s, r.base, &r.cfg.geometry)
}

// cutRecovery begins to open the store and stops it at a write or sync, by another death of the process or by a power cut.
func (lk *looker) cutRecovery(r *simRun, o ordeal, opts StoreOptions) (ordeal, StoreOptions, error) {
	r.stats.CutRecoveries++
	lk.img.left = r.pick.IntN(14)
	s, err := openOn("leaf", &lk.img, opts)
	switch {
	case err == nil:
		_ = s.pending.close()
	case !errors.Is(err, errHalted):
		return o, opts, fmt.Errorf("%w: %w", errRefused, err)
	}
	lk.extra += fmt.Sprintf(" recovery stopped (%v)", err)
	if o == processDeath && r.pick.IntN(2) == 0 {
		lk.img.left = -1
		return o, opts, nil
	}
	lk.img.cut(r.pick)
	return powerCut, StoreOptions{boot: uuid.UUID{4}}, nil
}

// newer tells which superblock names a later state than the other, where both can be read and one does; else it is negative.
func (lk *looker) newer() int {
	var sbs [2]superblock
	for i, b := range superBlocks {
		if sbs[i].decode(lk.img.block(int(b)), 0) != nil {
			return -1
		}
	}
	return slices.IndexFunc(sbs[:], func(sb superblock) bool { return sb.Generation > min(sbs[0].Generation, sbs[1].Generation) })
}

// relapses cuts the power at each write and sync of a recovery that has to level the superblocks, and then has the newer one rot, where
// both can be read still: the other one must do.
func (lk *looker) relapses(r *simRun, opts StoreOptions) error {
	begin, extra := lk.img.save(), lk.extra
	defer func() { lk.img.restore(begin) }()
	for left := 0; ; left++ {
		lk.img.left = left
		s, err := openOn("leaf", &lk.img, opts)
		if err == nil {
			_ = s.pending.close()
			break
		}
		if !errors.Is(err, errHalted) {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		lk.img.cut(r.late)
		lk.extra = fmt.Sprintf("%s recovery stopped (%v)", extra, err)
		if i := lk.newer(); i >= 0 {
			p := lk.img.fresh()
			copy(p, lk.img.block(int(superBlocks[i])))
			p[r.late.IntN(blockSize)] ^= 1 << r.late.IntN(8)
			lk.img.set(int(superBlocks[i]), p)
			lk.extra += fmt.Sprintf("; superblock %c rots", 'A'+i)
		}
		r.stats.CutRecoveries++
		if err := lk.recovered(r, powerCut, StoreOptions{boot: uuid.UUID{4}}, false); err != nil {
			return err
		}
		lk.img.restore(begin)
	}
	lk.extra = extra
	return nil
}

// live lets the recovered store live on for a while: requests, flushes, layers, and power cuts of its own.
func (lk *looker) live(r *simRun) error {
	if lk.lives == nil {
		lk.lives = &bench{dir: lk.dir}
	}
	r.stats.Lives++
	l := &simRun{
		cfg: r.cfg, stats: r.stats, life: r.life + 1, stamp: r.stamp, base: r.base, boot: r.boot, pick: r.pick, late: r.late,
		rng: rand.New(rand.NewPCG(r.pick.Uint64(), 34)), model: lk.first.collapse(), look: looker{bench: lk.lives},
	}
	var err error
	if l.disk, err = ublktest.NewDisk("leaf", lk.img.Size()); err != nil {
		return err
	}
	lk.img.copyTo(l.disk.Bytes())
	l.disk.Settle()
	if err := l.serve(l.openOptions()); err != nil {
		l.end()
		return fmt.Errorf("second life: %w", err)
	}
	l.live(drawScript(l.rng, &l.cfg, 3+l.rng.IntN(7)), 0)
	l.end()
	if l.failed != nil {
		lk.extra += "\n  second life:\n    " + strings.Join(l.failed.trace, "\n    ") + "\n" + l.failed.state
		return fmt.Errorf("second life: %w", l.failed.err)
	}
	return nil
}

// place names an offset of the store.
func (lk *looker) place(sb *superblock, off int64) string {
	b := uint64(off) >> blockShift
	switch {
	case b == superABlock:
		return "superblock A"
	case b == superBBlock:
		return "superblock B"
	case b >= sb.LogA && b < sb.LogA+sb.LogBlocks:
		return fmt.Sprintf("log A block %d", b-sb.LogA)
	case b >= sb.LogB && b < sb.LogB+sb.LogBlocks:
		return fmt.Sprintf("log B block %d", b-sb.LogB)
	case b >= sb.SlotBase:
		return fmt.Sprintf("slot %d", b-sb.SlotBase)
	}
	return fmt.Sprintf("block %d", b)
}

// describe tells what the state that is looked at has of the pending writes.
func (lk *looker) describe(o ordeal) string {
	var sb superblock
	if sb.decode(lk.stable.content[:blockSize], 0) != nil {
		_ = sb.decode(lk.stable.content[superBBlock<<blockShift:][:blockSize], 0)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "state after a %v; pending writes:\n", o)
	words := map[byte]string{'k': "kept", '-': "lost", 't': "torn", 'g': "garbage", 'm': "misdirected"}
	for i, w := range lk.pending {
		fmt.Fprintf(&b, "  %2d %s, %d blocks: %s\n", i, lk.place(&sb, w.Off), len(w.Data)>>blockShift, words[lk.kept[i]])
	}
	if lk.extra != "" {
		fmt.Fprintf(&b, "  %s\n", lk.extra)
	}
	return b.String()
}
