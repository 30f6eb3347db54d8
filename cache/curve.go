package cache

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// curveSteps are the thresholds that a curve tries, in sixteenths of the one that it begins with: from an eighth of it to eight times as much.
var curveSteps = [...]int64{2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128}

const (
	// mostKeys is how many chunks are sampled at most. Fewer are where memory is small: what is known of them takes one part in curveShare of it, but leastKeys are
	// there always.
	mostKeys   = 16 << 10
	leastKeys  = 512
	curveShare = 32

	// So many sampled requests per second are worked off, and curveBurst more at a time, which is some 60 boots. Where there are more, fewer chunks are sampled.
	// BenchmarkCurveTakes has what one takes, BenchmarkCurveCost what that is of a hit.
	curveRate  = 5_000
	curveBurst = 1 << 16

	// Requests count half after curveHalfLife. They are made to count less at times that lie curveTick apart.
	curveHalfLife = 24 * time.Hour
	curveTick     = time.Hour

	// coarseRoom is for how many sampled chunks a miniature has to have room, for what it tells to be worth something.
	coarseRoom = 32
)

const (
	ghostsPerKey = 4 // in all miniatures together: twice as many as they have slots, at most
	keyBytes     = int64(unsafe.Sizeof(sampledKey{})) + 2*4 + int64(len(curveSteps))*int64(unsafe.Sizeof(entry{})) + 2*ghostsPerKey*8
)

// keysFor is how many chunks are sampled at most where memory has a threshold, in bytes.
func keysFor(threshold int64) int {
	return int(max(leastKeys, min(mostKeys, threshold/curveShare/keyBytes)))
}

// curveBytes is what the curve takes of a threshold.
func curveBytes(threshold int64) int64 {
	return int64(keysFor(threshold))*keyBytes + int64(unsafe.Sizeof(curve{}))
}

// curve predicts what memory would miss with other thresholds, by a [miniature] for each. It is safe for concurrent use.
//
// All chunks are sampled at first. Whenever there is no number left for one more, or there are more requests than may be worked off, it is half as many from then
// on. So a small working set is seen in full, and a large one costs no more than that.
type curve struct {
	sampler
	policy  Policy
	machine int64                // bytes of memory that there are
	totals  func() requestTotals // takes locks of its own
	now     func() time.Time
	aside   func(f func()) // has something done while no request waits for it
	digests atomic.Int64   // bytes that they take
	images  atomic.Uint32  // sizes of chunks that open images have, a bit each
	missed  atomic.Uint64  // requests that memory as it is could not serve

	mu        sync.Mutex // guards what follows, and the head of the sampler; taken before all other locks
	threshold int64      // of the memory tier, in bytes
	keys      *keys
	entries   []entry
	tried     []*miniature // by threshold
	shift     int          // one of 1<<shift chunks is sampled
	fitted    fitting
	twice     int // the miniature of those who ask what twice as much memory would be good for; -1: none
	ghosts    uint64
	sampled   float64 // misses of memory as it is, as counted from the sample
	// correction is by what to multiply what the sample tells, in requests as in chunks: it has more or less than its share, by chance, and how many requests
	// memory as it is has missed is known.
	correction float64
	credit     int64 // sampled requests that may be worked off
	credited   time.Time

	began, aged time.Time
	uncorrected int           // sampled requests since correction was set
	last        requestTotals // what was added to sum so far
	sum         requestTotals // since it began
	lastMissed  uint64        // what was added to misses so far
	misses      float64       // of memory as it is, since it began
}

// densityUnits is how finely the room of miniatures follows how many chunks are sampled.
const densityUnits = 64

// fitting is what the room of miniatures depends on.
type fitting struct {
	shift   int
	density int // how many more or fewer of the chunks are sampled than should be, in densityUnits
	digests int64
	images  uint32
}

// requestTotals is what was asked of memory.
type requestTotals struct{ requests, bytes float64 }

func newCurve(p Policy, machine int64, totals func() requestTotals) *curve {
	v := &curve{policy: p, machine: machine, totals: totals, now: time.Now, aside: func(f func()) { go f() }}
	v.init()
	return v
}

// setThreshold says what the threshold is. Where that is none of those that are between the ones tried, all begins anew.
func (v *curve) setThreshold(bytes int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.threshold = bytes
	if n := len(v.tried); n == 0 || bytes < v.tried[0].threshold || bytes > v.tried[n-1].threshold {
		v.begin()
	}
	v.twice = -1
	for i, m := range v.tried {
		if m.threshold > bytes && m.threshold <= 2*bytes {
			v.twice = i
		}
	}
}

// begin has everything counted from now on, from empty memory.
func (v *curve) begin() {
	v.keys = newKeys(keysFor(v.threshold))
	v.entries = make([]entry, len(v.keys.all)*len(curveSteps))
	v.tried = nil
	for _, step := range curveSteps {
		bytes := v.threshold
		if step != 16 {
			bytes = v.threshold * step / 16 >> 20 << 20 // so that it can be named in whole MiB
		}
		if bytes >= MinMemory && (bytes <= v.machine || bytes <= 2*v.threshold) {
			v.tried = append(v.tried, newMiniature(v.policy, bytes, len(v.tried), v.entries, v.keys, v.gone))
		}
	}
	v.shift, v.correction = 0, 1
	v.below.Store(1 << hashBits)
	v.fit(v.wanted())
	v.began = v.now()
	v.aged, v.credited, v.credit = v.began, v.began, curveBurst
	v.last, v.sum = v.totals(), requestTotals{}
	v.lastMissed, v.misses, v.sampled = v.missed.Load(), 0, 0
}

// drop forgets which chunks are in memory, as memory did.
func (v *curve) drop() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.work(samplerSize)
	v.keys.clear()
	clear(v.entries)
	for i, m := range v.tried {
		fresh := newMiniature(v.policy, m.threshold, i, v.entries, v.keys, v.gone)
		fresh.misses, fresh.fetched = m.misses, m.fetched
		v.tried[i] = fresh
	}
	v.fit(v.wanted())
}

func (v *curve) wanted() fitting {
	return fitting{v.shift, int(math.Round(densityUnits / v.correction)), v.digests.Load(), v.images.Load()}
}

func (v *curve) fit(f fitting) {
	v.fitted = f
	for _, m := range v.tried {
		m.fit(1<<f.shift, float64(f.density)/densityUnits, f.digests, uint16(f.images))
	}
}

// hit notes that memory had a chunk that is sampled. It takes no lock but one that is free, and leaves out what is read again before anything else is: chunks are
// read in pieces.
func (v *curve) hit(key *Key, s *slot, c *class) {
	if uint32(v.tail.Load()) != s.seen.Load() {
		s.seen.Store(uint32(v.note(access{name: nameOf(key), hash: hashOf(key), class: uint8(sizeClassOf(c.slotBytes)), kind: accessHit})))
	}
}

// request notes a request for a chunk of an image that memory does not have, as a part of a stream of so many bytes.
func (v *curve) request(key *Key, kind accessKind, chunkBytes, stream int64) {
	if v == nil {
		return
	}
	if kind != accessFill {
		v.missed.Add(1)
	}
	if h := hashOf(key); v.samples(h) {
		v.note(access{name: nameOf(key), hash: h, stream: uint32(min(stream>>10, math.MaxUint32)), class: uint8(sizeClassOf(int(chunkBytes))), kind: kind})
	}
}

// note puts an access into the queue. With the last of a batch, it works off two, unless somebody does already: that bounds for how long a request waits. Where the
// sample may have to be halved, no request does.
func (v *curve) note(a access) uint64 {
	const most = 2 * samplerBatch
	at := v.put(a)
	if at%samplerBatch != 0 || !v.mu.TryLock() {
		return at
	}
	if v.credit < most || v.keys.n+most >= len(v.keys.all) {
		v.aside(func() {
			defer v.mu.Unlock()
			v.work(samplerSize)
		})
		return at
	}
	v.work(most)
	v.mu.Unlock()
	return at
}

// work takes so many accesses from the queue, if there are. It is called with mu held, as is all below.
func (v *curve) work(most int) {
	if f := v.wanted(); f != v.fitted {
		v.fit(f)
	}
	done := 0
	for ; done < most; done++ {
		a, ok := v.next()
		if !ok {
			break
		}
		v.take(a)
	}
	if v.uncorrected += done; v.uncorrected >= samplerSize {
		v.correct()
	}
	now := v.now()
	v.spend(int64(done), now)
	if now.Sub(v.aged) >= curveTick {
		v.age(now)
	}
}

// spend sees to it that no more requests are worked off than may be.
func (v *curve) spend(requests int64, now time.Time) {
	earned := now.Sub(v.credited)
	if earned > time.Millisecond {
		v.credited = now
		v.credit = min(v.credit+int64(earned.Seconds()*curveRate), curveBurst)
	}
	if v.credit -= requests; v.credit < 0 {
		v.halve()
		v.credit = curveRate // a second shows whether that is enough
	}
}

// take has all miniatures asked for a chunk.
func (v *curve) take(a access) {
	if !v.samples(a.hash) { // it was when it was put into the queue
		return
	}
	n := v.keys.find(a.name)
	if n == 0 && a.kind != accessPast {
		if n = v.number(a); n == 0 {
			return
		}
	}
	k := &v.keys.all[n] // of number 0, nothing is in
	in := k.in
	missed := uint16(1<<len(v.tried)-1) &^ in
	if a.kind == accessJoined {
		missed |= k.missed // they would have waited for the same fetch
	}
	v.count(a, missed)
	if n == 0 {
		return
	}
	if a.kind != accessHit { // less memory would have missed it as part of a stream like that which it came by
		k.stream = a.stream
	}
	for _, m := range v.tried {
		switch {
		case in&m.bit != 0:
			m.touch(n)
		case a.kind != accessPast:
			m.add(n, int64(k.stream)<<10 > m.scan)
		}
	}
	k.missed = missed
	v.gone(n)
}

// number gives a chunk a number, for which half of the others may have to go, or 0 where it is among them.
func (v *curve) number(a access) uint32 {
	for {
		n := v.keys.add(a.name, a.hash, a.class)
		if n != 0 {
			return n
		}
		if v.halve(); !v.samples(a.hash) {
			return 0
		}
	}
}

// count counts a request that some have missed.
func (v *curve) count(a access, missed uint16) {
	if a.kind == accessFill {
		return
	}
	each := float64(uint64(1) << v.shift)
	for _, m := range v.tried {
		if missed&m.bit == 0 {
			continue
		}
		m.misses += each
		if a.kind != accessJoined {
			m.fetched += each * float64(classBytes(int(a.class)))
		}
	}
	if a.kind == accessHit {
		return
	}
	v.sampled += each
	if v.twice >= 0 && missed&v.tried[v.twice].bit == 0 {
		v.ghosts += 1 << v.shift
	}
}

// gone gives the number of a chunk back that no miniature holds any more.
func (v *curve) gone(n uint32) {
	if v.keys.all[n].in == 0 {
		v.keys.remove(n)
	}
}

// halve has half as many chunks sampled from now on.
func (v *curve) halve() {
	if v.shift == hashBits {
		return
	}
	v.shift++
	v.below.Store(1 << (hashBits - v.shift))
	for n := range v.keys.all {
		k := &v.keys.all[n]
		if in := k.in; in != 0 && !v.samples(k.hash) {
			for _, m := range v.tried {
				if in&m.bit != 0 {
					m.remove(uint32(n))
				}
			}
		}
	}
	for _, m := range v.tried {
		m.thin()
	}
	v.fit(v.wanted())
}

// correct finds out by how much the sample is wrong about memory as it is.
func (v *curve) correct() {
	missed := v.missed.Load()
	v.misses += float64(missed - v.lastMissed)
	v.lastMissed, v.uncorrected = missed, 0
	const enough, most = 100, 2
	if v.shift > 0 && v.sampled >= enough*float64(uint64(1)<<v.shift) {
		v.correction = max(1./most, min(v.misses/v.sampled, most))
	}
}

// fold adds what was asked since the last time.
func (v *curve) fold() {
	v.correct()
	t := v.totals()
	v.sum.requests += t.requests - v.last.requests
	v.sum.bytes += t.bytes - v.last.bytes
	v.last = t
}

// age makes all that was counted count less.
func (v *curve) age(now time.Time) {
	v.fold()
	left := math.Exp2(-now.Sub(v.aged).Hours() / curveHalfLife.Hours())
	v.aged = now
	v.sum = requestTotals{v.sum.requests * left, v.sum.bytes * left}
	v.misses *= left
	v.sampled *= left
	for _, m := range v.tried {
		m.misses *= left
		m.fetched *= left
	}
}

// Curve is which part of the requests for chunks memory could not serve, and could not have served with other thresholds. Requests are those that [ReaderStats]
// counts, but for zeros, and those of others for whole chunks. They count half after a day.
type Curve struct {
	Policy         Policy    `json:"policy"`
	ThresholdBytes int64     `json:"threshold_bytes"`
	Since          time.Time `json:"since"`
	Requests       uint64    `json:"requests"`
	ReadBytes      uint64    `json:"read_bytes"` // of these
	MissRatio      float64   `json:"miss_ratio"` // measured, 0 to 1
	// GhostHits are requests, so far and each counting one, that memory could not serve, and that it could have served with a threshold of GhostBytes. That is
	// twice what it is, or a little less; 0 where there is no such threshold among the points.
	GhostHits  uint64       `json:"ghost_hits"`
	GhostBytes int64        `json:"ghost_bytes"`
	Points     []CurvePoint `json:"points"` // by threshold
	// One of SampledOneOf chunks was sampled last, and SampledChunks are known. LostRequests for them were not taken in, because too many came at once.
	SampledOneOf  int    `json:"sampled_one_of"`
	SampledChunks int    `json:"sampled_chunks"`
	LostRequests  uint64 `json:"lost_requests"`
}

// CurvePoint is what would have been with a threshold.
type CurvePoint struct {
	ThresholdBytes int64   `json:"threshold_bytes"`
	MissRatio      float64 `json:"miss_ratio"`    // predicted, 0 to 1
	FetchedBytes   uint64  `json:"fetched_bytes"` // of whole chunks that would have been fetched from tiers behind memory
	// Coarse says that too few chunks are sampled to tell.
	Coarse bool `json:"coarse,omitempty"`
}

// Curve returns the curve so far: since the cache was made, or since its threshold was set to one that is beyond all points.
func (c *Cache) Curve() Curve { return c.curve.report() }

func (v *curve) report() Curve {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.work(samplerSize)
	v.fold()
	r := Curve{
		Policy: v.policy, ThresholdBytes: v.threshold, Since: v.began, Requests: uint64(v.sum.requests + 0.5), ReadBytes: uint64(v.sum.bytes + 0.5),
		MissRatio: ratio(v.misses, v.sum.requests), GhostHits: v.ghosts,
		SampledOneOf: 1 << v.shift, SampledChunks: v.keys.n, LostRequests: v.lost.Load(),
	}
	if v.twice >= 0 {
		r.GhostBytes = v.tried[v.twice].threshold
	}
	for _, m := range v.tried {
		r.Points = append(r.Points, CurvePoint{m.threshold, ratio(m.misses*v.correction, v.sum.requests), uint64(m.fetched*v.correction + 0.5), m.coarse()})
	}
	return r
}

// ratio is between 0 and 1: requests that are under way are counted as missed before they are counted as requests.
func ratio(misses, requests float64) float64 {
	if requests == 0 {
		return 0
	}
	return min(misses/requests, 1)
}
