package union

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// Store is an open leaf store. One process has it open for writing at a time, and all devices
// of that process whose leaves lie in it share it.
type Store struct {
	path     string
	disk     disk
	readOnly bool
	log      *modLog
	slots    *slotAllocator
	epochs   *epochs
	pager    *pager
	pending  *pendingRing
	recovery Recovery
	space    space
	fence    *fence      // nil: no lease is held
	opened   atomic.Bool // recovered, and ready to be failed
	seen     *LeaseInfo  // where it is read-only
	// flattening is held while sealed layers' maps are read without their locks. It is taken before mu.
	flattening  sync.Mutex
	flattener   sync.Mutex    // held while a goroutine flattens
	catalogNeed atomic.Uint64 // slots that the next catalog may take
	volatile    bool          // the records under replay are pending ones
	superseded  []uint64      // slots that lost their owner by those
	scrub       scrubState
	quietAt     uint64      // where the log stood at the last round of the background work
	untidied    float64     // what untidy said before the last tidying
	tidying     atomic.Bool // a checkpoint is made for the sake of the maps' size alone
	cramped     uint64      // free slots that the last tidying wanted and there were not; guarded by mu
	behind      []int64     // blocks of superblock copies that do not hold sb, while opening

	mu           sync.Mutex // guards what follows, and every change of catalog and superblock
	sb           superblock
	catalogSlots []extent
	stale        []extent // slots of maps that only the state on the store names
	layers       map[string]*Layer
	closed       bool

	kick    chan struct{}
	stop    chan struct{}
	stopped chan struct{} // nil: no background work
	inline  bool          // spawn does without a goroutine
}

// FormatOptions say how to make a store.
type FormatOptions struct {
	Force     bool      // overwrite what is there
	SizeBytes int64     // regular files: create it or extend it to this size; 0: as it is
	UUID      uuid.UUID // zero: a random one
	// CacheBytes reserves so much of the store, rounded down to 4 KiB, for a block cache; 0: nothing, otherwise at least
	// [MinCacheBytes]. It stays so much for as long as the store exists.
	CacheBytes int64

	geometry *superblock // nil: the usual one for the size
}

// StoreOptions say how to open a store.
type StoreOptions struct {
	// ReadOnly leaves the store as it is, unrecovered: for looking, not for devices.
	ReadOnly bool
	// RunDir is a directory on tmpfs in which the records that are not in both log copies yet survive the death of the
	// process. Empty: they do not.
	RunDir string
	// Lease says how to claim the store against other nodes. A read-only opening does not.
	Lease LeaseOptions
	// NoLease leaves the lease alone: for copies, which no other node can reach.
	NoLease bool
	// FullWait is how long writes wait for space where there is none: to be made by growing the store, raising a quota or removing
	// something. Zero: they get ENOSPC at once.
	FullWait time.Duration
	// Notify, if not nil, is told when the store or a layer with a quota gets fuller or emptier, from a goroutine that it must not
	// hold up for long.
	Notify func(SpaceEvent)

	claim  bool      // take the lease
	boot   uuid.UUID // id of the running kernel; zero: read it
	inline bool      // no goroutines: a simulation repeats itself
}

// Recovery tells what opening a store found and did.
type Recovery struct {
	LogBlocks       int     `json:"log_blocks"`   // log blocks applied
	Records         int     `json:"records"`      // records applied
	Dropped         int     `json:"dropped"`      // unflushed records whose data had not arrived
	Repaired        int     `json:"repaired"`     // log blocks and superblocks that only one copy held
	FromProcess     int     `json:"from_process"` // log blocks taken over from a process that died
	DurationSeconds float64 `json:"duration_seconds"`
}

// StoreInfo describes a store.
type StoreInfo struct {
	Path       string      `json:"path"`
	UUID       string      `json:"uuid"`
	Version    int         `json:"version"`
	Generation uint64      `json:"generation"`
	SizeBytes  int64       `json:"size_bytes"`
	SlotBytes  int64       `json:"slot_bytes"` // room for data and runs
	FreeBytes  int64       `json:"free_bytes"` // of it, reserves included
	Space      SpaceInfo   `json:"space"`
	Lease      *LeaseInfo  `json:"lease,omitempty"`  // against other nodes
	Fenced     string      `json:"fenced,omitempty"` // why this process writes to it no more
	LogBytes   int64       `json:"log_bytes"`        // of one copy
	LogUsed    int64       `json:"log_used_bytes"`   // since the last checkpoint
	CacheBytes int64       `json:"cache_bytes"`      // reserved for a block cache
	Failed     bool        `json:"failed"`           // a write or flush of the device failed
	Recovery   Recovery    `json:"recovery"`
	Scrub      ScrubStatus `json:"scrub"`
	Layers     []LayerInfo `json:"layers"`
}

// Format makes a store on a block device or in a regular file, and refuses a target that holds anything
// (any byte that is not zero in its first or last MiB) unless forced. A target that it refuses stays as it was.
func Format(path string, o FormatOptions) (*StoreInfo, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("format %s: %w", path, err)
	}
	created := false
	if o.SizeBytes > 0 {
		var err error
		if created, err = createFile(path); err != nil {
			return nil, fmt.Errorf("format %s: %w", path, err)
		}
	}
	info, err := formatPath(path, o)
	if err != nil && created {
		err = errors.Join(err, os.Remove(path))
	}
	return info, err
}

func (o *FormatOptions) validate() error {
	o.CacheBytes &^= blockSize - 1
	if o.CacheBytes != 0 && o.CacheBytes < MinCacheBytes {
		return fmt.Errorf("%d bytes for a cache, need at least %d: %w", o.CacheBytes, MinCacheBytes, ErrTooSmall)
	}
	if o.SizeBytes != 0 {
		return o.fits(o.SizeBytes)
	}
	return nil
}

// fits fails where a store of so many bytes is too small.
func (o *FormatOptions) fits(sizeBytes int64) error {
	switch {
	case sizeBytes < MinStoreBytes:
		return fmt.Errorf("%d bytes, need at least %d: %w", sizeBytes, MinStoreBytes, ErrTooSmall)
	case sizeBytes-o.CacheBytes < MinStoreBytes:
		return fmt.Errorf("%d bytes, of which %d for a cache leave %d, need at least %d: %w",
			sizeBytes, o.CacheBytes, sizeBytes-o.CacheBytes, MinStoreBytes, ErrTooSmall)
	}
	return nil
}

func createFile(path string) (created bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, f.Close()
}

func formatPath(path string, o FormatOptions) (*StoreInfo, error) {
	d, err := openDisk(path, false)
	if err != nil {
		return nil, fmt.Errorf("format store: %w", err)
	}
	var info *StoreInfo
	if err = refuseLeased(d); err == nil {
		err = growFile(d, o)
	}
	if err == nil {
		info, err = formatDisk(path, d, o)
	}
	if err == nil {
		err = leaveMark(d, uuid.MustParse(info.UUID))
	}
	if err := errors.Join(err, d.Close()); err != nil {
		return nil, fmt.Errorf("format %s: %w", path, err)
	}
	return info, nil
}

func growFile(d *fileDisk, o FormatOptions) error {
	if d.size >= o.SizeBytes {
		return nil
	}
	if d.block {
		return fmt.Errorf("size of %d bytes asked for, has %d: only a regular file can be extended: %w", o.SizeBytes, d.size, ErrTooSmall)
	}
	if !o.Force {
		if err := checkEmpty(d); err != nil {
			return err
		}
	}
	if err := d.f.Truncate(o.SizeBytes); err != nil {
		return err
	}
	d.size = o.SizeBytes
	return nil
}

func formatDisk(path string, d disk, o FormatOptions) (*StoreInfo, error) {
	sb := o.geometry
	if sb == nil {
		if err := o.fits(d.Size()); err != nil {
			return nil, err
		}
		usual := withCache(d.Size(), o.CacheBytes)
		sb = &usual
	}
	if !o.Force {
		if err := checkEmpty(d); err != nil {
			return nil, err
		}
	}
	if err := checkOtherUUID(d, o.UUID); err != nil {
		return nil, err
	}
	sb.UUID = o.UUID
	if sb.UUID == uuid.Nil {
		sb.UUID = uuid.New()
	}
	s := &Store{path: path, disk: d, sb: *sb, slots: newSlotAllocator(sb.Slots), pager: newPager(), layers: map[string]*Layer{}}
	s.space.setUp(StoreOptions{})
	s.log = newModLog(sb.UUID, sb.LogBlocks, make([]byte, sb.pendingBlocks()<<blockShift), sb.LogStart)
	if err := s.writeState(sb.LogStart); err != nil {
		return nil, err
	}
	s.findSpace()
	info := s.Info()
	return &info, nil
}

func checkEmpty(d disk) error {
	const edge = 1 << 20
	buf := alignedBuffer(edge + blockSize)
	for _, off := range []int64{0, max(0, d.Size()-edge) &^ (blockSize - 1)} {
		want := min(int64(len(buf)), d.Size()-off)
		// The last block may be cut short. Asking for all of it keeps the length a multiple for O_DIRECT.
		n, err := d.ReadAt(buf[:(want+blockSize-1)&^(blockSize-1)], off)
		if int64(n) < want {
			return fmt.Errorf("read at byte %d: %w", off, err)
		}
		if i := nonZero(buf[:want]); i < int(want) {
			return fmt.Errorf("byte %d is %#02x: %w; nothing was written: give another target, or overwrite this one with --force",
				off+int64(i), buf[i], ErrNotEmpty)
		}
	}
	return nil
}

// nonZero returns where the first byte is that is not zero, or len(p).
func nonZero(p []byte) int {
	i := 0
	for len(p)-i >= blockSize && isZero(p[i:i+blockSize]) {
		i += blockSize
	}
	for i < len(p) && p[i] == 0 {
		i++
	}
	return i
}

// checkOtherUUID keeps the log blocks of a store that is overwritten from being taken for those of the new one.
func checkOtherUUID(d disk, id uuid.UUID) error {
	sb, err := readSuperblock(d)
	if err != nil || sb.UUID != id {
		return nil
	}
	return fmt.Errorf("UUID %s is that of the store that is there: leave it away, or give another", id)
}

// OpenStore opens a store, recovers what its log holds, and, unless read-only, claims it for this process.
func OpenStore(path string, o StoreOptions) (*Store, error) {
	d, err := openDisk(path, o.ReadOnly)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	o.claim = !o.ReadOnly && !o.NoLease
	s, err := openOn(path, d, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), d.Close())
	}
	if !o.ReadOnly {
		s.stopped = make(chan struct{})
		go s.background()
	}
	return s, nil
}

// openOn opens a store without its background work.
func openOn(path string, d disk, o StoreOptions) (*Store, error) {
	s := &Store{
		path: path, disk: d, readOnly: o.ReadOnly, pager: newPager(), layers: map[string]*Layer{},
		kick: make(chan struct{}, 1), stop: make(chan struct{}), inline: o.inline,
	}
	s.space.setUp(o)
	if o.claim {
		if err := s.claim(o.Lease); err != nil {
			return nil, err
		}
	}
	err := s.recover(o)
	if err == nil {
		s.opened.Store(true)
		if !s.fence.open() {
			err = ErrFenced
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.unclaim())
	}
	if o.ReadOnly {
		if l, err := readLease(d, s.sb.UUID); err == nil && s.sb.LogA > leaseBlock {
			s.seen = l.info()
		}
	}
	s.findSpace()
	return s, nil
}

// spawn runs f on a goroutine, or at once.
func (s *Store) spawn(f func()) {
	if s.inline {
		f()
		return
	}
	go f()
}

// Path returns what the store was opened as.
func (s *Store) Path() string { return s.path }

// UUID identifies the store.
func (s *Store) UUID() uuid.UUID { return s.sb.UUID }

// File returns the store's open file.
func (s *Store) File() *os.File { return s.disk.File() }

// CacheRegion returns the part of the store's file that is reserved for a block cache; a length of 0 means that there is none, or that the store
// is open read-only. It is for one user in the process that has the store open, which gives it up before the store is closed. The file is
// open with O_DIRECT where possible: offsets, lengths and buffers are multiples of 4 KiB. Its user must neither flush it, because the
// kernel tells one caller only that a flush failed, nor close or lock it. Nothing fences the region: after the lease was broken
// two nodes may write there at once, so what is in it must prove itself.
func (s *Store) CacheRegion() (f *os.File, off, length int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sb.CacheBlocks == 0 || s.readOnly {
		return nil, 0, 0
	}
	return s.disk.File(), int64(s.sb.cacheBlock()) << blockShift, int64(s.sb.CacheBlocks) << blockShift
}

// Info describes the store as it is now.
func (s *Store) Info() StoreInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	info := StoreInfo{
		Path: s.path, UUID: s.sb.UUID.String(), Version: formatVersion, Generation: s.sb.Generation,
		SizeBytes: int64(s.sb.SizeBlocks) << blockShift, SlotBytes: int64(s.sb.Slots) << blockShift,
		FreeBytes: int64(s.slots.freeSlots()) << blockShift, LogBytes: int64(s.sb.LogBlocks) << blockShift,
		CacheBytes: int64(s.sb.CacheBlocks) << blockShift, Recovery: s.recovery, Scrub: s.ScrubStatus(),
	}
	s.log.mu.Lock()
	info.LogUsed = int64(s.log.target()+1-s.log.start) << blockShift
	info.Failed = s.log.failed
	s.log.mu.Unlock()
	info.Lease = s.leaseInfo()
	if s.fence != nil {
		if why := s.fence.reason.Load(); why != nil {
			info.Fenced = *why
		}
	}
	info.Space = s.spaceInfo()
	info.Layers = s.layerInfos()
	return info
}

// layerInfos describes the layers in order of their names. The caller holds mu.
func (s *Store) layerInfos() []LayerInfo {
	infos := make([]LayerInfo, 0, len(s.layers))
	for _, l := range s.layers {
		infos = append(infos, l.infoLocked())
	}
	sort.Slice(infos, func(i, j int) bool { return infos[i].Name < infos[j].Name })
	return infos
}

const (
	backgroundTick = time.Second
	// flushAfterBlocks of log hold the records of some 64 MiB of writes.
	flushAfterBlocks = 64 << 20 >> blockShift / recordsPerLog
)

// background commits records that no flush has asked for within a second, moves the log's
// start on before the log is full, and brings superseded slots back.
func (s *Store) background() {
	defer close(s.stopped)
	var watch sync.WaitGroup
	watch.Go(s.watchSpace)
	defer watch.Wait()
	tick := time.NewTicker(backgroundTick)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-s.kick:
		case <-tick.C:
		}
		s.maintain()
		s.startFlatten()
	}
}

// startFlatten builds missing views beside the background work, which must not wait for them.
func (s *Store) startFlatten() {
	if s.unflattened() == nil || !s.flattener.TryLock() {
		return
	}
	go func() {
		defer s.flattener.Unlock()
		if err := s.flatten(); err != nil {
			slog.Warn("sealed layers are looked up one by one: their common map cannot be made", "store", s.path, "error", err)
		}
	}()
}

// maintain is one round of the background work.
func (s *Store) maintain() {
	_ = s.commit() // which tells of a failure itself
	s.epochs.collect()
	s.pager.trim()
	if !s.space.watched.Load() {
		s.tendSpace()
	}
	s.log.mu.Lock()
	due := s.log.nearlyFull() || s.pager.crowded() || s.space.recount.Load()
	at := s.log.next*recordsPerLog + uint64(s.log.count)
	quiet := at == s.quietAt
	s.quietAt = at
	failed := s.log.failed
	s.log.mu.Unlock()
	untidy, again := 0.0, false
	if !due && quiet && !failed {
		untidy, again = s.untidy()
	}
	tidy := untidy > 0 && (again || untidy != s.untidied)
	if failed || !due && !tidy {
		return
	}
	if tidy {
		s.untidied = untidy // and not again if nothing can be gained
	}
	s.tidying.Store(tidy)
	defer s.tidying.Store(false)
	if err := s.Checkpoint(); err != nil && !s.log.hasFailed() {
		slog.Error("checkpoint failed", "store", s.path, "error", err)
	}
}

// untidy is how many blocks of maps that take much more of the store than they need hold nothing that is alive, and whether there is
// now the space that the last tidying lacked.
func (s *Store) untidy() (dead float64, again bool) {
	if !s.mu.TryLock() {
		return 0, false
	}
	defer s.mu.Unlock()
	for _, l := range s.inOrder() {
		for _, m := range [...]*sectorMap{l.m, l.flat} {
			if m == nil {
				continue
			}
			m.mu.Lock()
			dead += m.store.untidy()
			m.mu.Unlock()
		}
	}
	return dead, s.cramped > 0 && s.slots.freeSlots() >= s.cramped
}

// wakeBackground makes the background work begin now. It never blocks.
func (s *Store) wakeBackground() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// commit makes all records so far durable, as a flush of a guest does, from a goroutine.
func (s *Store) commit() error {
	l := s.log
	l.mu.Lock()
	target := l.target()
	return s.commitUntil(func() bool { return target <= l.durable })
}

// flush makes all records so far durable, and all that was written to the store before.
func (s *Store) flush() error {
	l := s.log
	l.mu.Lock()
	want := l.begun + 1
	return s.commitUntil(func() bool { return l.flushed >= want })
}

// commitUntil waits for the commit under way, and leads one where done is not true then. All flushes of a store are commits, so there
// is one at a time: a kernel tells one caller only that a flush has failed, and another's that ended meanwhile
// would count though nobody knows what it covered. The caller holds the log's lock, which commitUntil gives back.
func (s *Store) commitUntil(done func() bool) error {
	l := s.log
	for !l.failed && !done() && l.committing {
		l.ended.Wait()
	}
	if l.failed || done() {
		var err error
		var ready opList
		if l.failed {
			err, ready = errFailed, l.drop()
		} else {
			ready.take(&l.stalled)
		}
		l.mu.Unlock()
		resumeAll(ready)
		return err
	}
	from, to := l.begin(false)
	l.mu.Unlock()
	err := s.writeLog(from, to)
	if err == nil && !seeded(bugCommitNoFlush) {
		err = s.disk.Sync()
	}
	if !s.endCommit(to, false, err) && err == nil {
		err = errFailed
	}
	return err
}

func (s *Store) writeLog(from, to uint64) error {
	segs, n := s.log.ringPieces(from, to)
	for _, seg := range segs[:n] {
		for _, first := range [...]uint64{s.sb.LogA, s.sb.LogB} {
			if seeded(bugCommitOneCopy) && first == s.sb.LogA {
				continue
			}
			if _, err := s.disk.WriteAt(seg.p, s.logOffset(first, seg.seq)); err != nil {
				return err
			}
		}
	}
	return nil
}

// logOffset is where the block of a sequence number lies in the copy that begins at block first.
func (s *Store) logOffset(first, seq uint64) int64 {
	return int64(first+seq%s.sb.LogBlocks) << blockShift
}

// endCommit frees what the commit superseded and resumes who waited for it. It reports whether the commit counts.
func (s *Store) endCommit(to uint64, fua bool, err error) bool {
	s.log.mu.Lock()
	first := err != nil && !s.log.failed
	ready := s.log.end(to, fua, err != nil)
	failed := s.log.failed
	if (!fua || seeded(bugFUAFrees)) && len(s.log.taken) > 0 {
		s.epochs.retire(s.log.taken)
		s.log.pending.Add(-countSlots(s.log.taken))
		s.log.taken = s.log.taken[:0]
	}
	s.log.mu.Unlock()
	resumeAll(ready)
	s.spaceFreed()
	if first {
		s.tellFailure(err)
	}
	return !failed
}

func resumeAll(ready opList) {
	for o := ready.pop(); o != nil; o = ready.pop() {
		o.r.Post(cookieWake, 0)
	}
}

// PrepareClose does ahead, beside requests, what Close would take long for: it makes the views of sealed layers that are missing, or waits for who does, and a
// checkpoint. What requests change meanwhile is left to Close.
func (s *Store) PrepareClose() error {
	// Without its view a layer is looked up one by one; who flattens in the background tells why it cannot be made.
	_ = s.flatten()
	return s.Checkpoint()
}

// Close commits, checkpoints and gives the store up. No device on it may be open.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	for _, l := range s.layers {
		if l.opened || l.readers > 0 || l.detach != nil {
			s.mu.Unlock()
			return fmt.Errorf("close store %s: layer %q: %w", s.path, l.entry.Name, ErrLayerInUse)
		}
	}
	s.closed = true
	s.mu.Unlock()
	if s.readOnly {
		return s.disk.Close()
	}
	if s.stopped != nil {
		close(s.stop)
		<-s.stopped
		s.flattener.Lock() // and never given back
	}
	boot := s.sb.BootID
	err := s.commit()
	if err == nil {
		err = s.finalCheckpoint()
	}
	if err == nil {
		err = s.pending.leave(&s.sb, boot)
	}
	return errors.Join(err, s.pending.close(), s.unclaim(), s.disk.Close())
}

// finalCheckpoint leaves an empty log and no boot id behind.
func (s *Store) finalCheckpoint() error {
	s.mu.Lock()
	s.sb.BootID = uuid.Nil
	s.mu.Unlock()
	return s.Checkpoint()
}

func pendingPath(runDir string, id uuid.UUID) string {
	return filepath.Join(runDir, "stores", id.String()+".log")
}
