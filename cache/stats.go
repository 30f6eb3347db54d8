package cache

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// histogramBuckets is how many buckets a [Histogram] has: the last but one ends at about 67 s.
const histogramBuckets = 28

// histogram counts durations. The zero value is empty. It is safe for concurrent use.
type histogram struct {
	counts [histogramBuckets]atomic.Uint64
	nanos  atomic.Uint64
}

func (h *histogram) add(d time.Duration) {
	h.counts[min(bits.Len64(uint64(max(d, 0)/time.Microsecond)), histogramBuckets-1)].Add(1)
	h.nanos.Add(uint64(max(d, 0)))
}

// bucketBound is where a bucket ends, in seconds.
func bucketBound(i int) float64 { return float64(uint64(1)<<i) / 1e6 }

// Histogram is how often something took how long.
type Histogram struct {
	Count   uint64            `json:"count"`
	Seconds float64           `json:"seconds"` // all together
	Buckets []HistogramBucket `json:"buckets"` // without those that are empty
}

// HistogramBucket is how many were shorter than a bound, and not shorter than half of it.
type HistogramBucket struct {
	Below float64 `json:"below"` // seconds; of the longest, 0, which is none
	Count uint64  `json:"count"`
}

func (h *histogram) stats() Histogram {
	s := Histogram{Seconds: float64(h.nanos.Load()) / 1e9, Buckets: []HistogramBucket{}}
	for i := range h.counts {
		n := h.counts[i].Load()
		if n == 0 {
			continue
		}
		below := 0.0
		if i < histogramBuckets-1 {
			below = bucketBound(i)
		}
		s.Count += n
		s.Buckets = append(s.Buckets, HistogramBucket{below, n})
	}
	return s
}

// Cumulative returns how many took at most so many seconds, for all bounds that there are, whether or not one was that long.
func (h Histogram) Cumulative() map[float64]uint64 {
	all := make(map[float64]uint64, histogramBuckets-1)
	for i := range histogramBuckets - 1 {
		bound, n := bucketBound(i), uint64(0)
		for _, b := range h.Buckets {
			if b.Below != 0 && b.Below <= bound {
				n += b.Count
			}
		}
		all[bound] = n
	}
	return all
}

// tierCounts is what was asked of a tier.
type tierCounts struct {
	hits, misses, bytes                 atomic.Uint64
	errors, timeouts, rejected, skipped atomic.Uint64
	latency                             histogram
}

// TierStats is what was asked of a tier behind memory, for this node and for others.
type TierStats struct {
	Hits     uint64    `json:"hits"`
	Misses   uint64    `json:"misses"`
	Bytes    uint64    `json:"bytes"`    // of the hits
	Errors   uint64    `json:"errors"`   // with the time-outs
	Timeouts uint64    `json:"timeouts"` // calls that took too long
	Rejected uint64    `json:"rejected"` // chunks that were not what they should be
	Skipped  uint64    `json:"skipped"`  // while the tier was put aside
	Aside    bool      `json:"aside"`    // it did not answer, and is not asked
	Latency  Histogram `json:"latency"`
}

func (g *guard) stats() *TierStats {
	if g == nil {
		return nil
	}
	c := g.counts
	return &TierStats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Bytes: c.bytes.Load(), Errors: c.errors.Load(), Timeouts: c.timeouts.Load(),
		Rejected: c.rejected.Load(), Skipped: c.skipped.Load(), Aside: g.isAside(), Latency: c.latency.stats(),
	}
}

// originCounts is what was read from origins.
type originCounts struct {
	reads, chunks, bytes, errors atomic.Uint64
	latency                      histogram
}

// OriginStats is what was read from the origins of all images.
type OriginStats struct {
	Reads   uint64    `json:"reads"` // of neighbouring chunks in one go
	Chunks  uint64    `json:"chunks"`
	Bytes   uint64    `json:"bytes"` // of content: less may have been fetched, as it is compressed there
	Errors  uint64    `json:"errors"`
	Latency Histogram `json:"latency"`
}

func (c *originCounts) stats() OriginStats {
	return OriginStats{c.reads.Load(), c.chunks.Load(), c.bytes.Load(), c.errors.Load(), c.latency.stats()}
}

// servedCounts is what others asked for.
type servedCounts struct{ hits, misses, bytes atomic.Uint64 }

// ServedStats is what this cache gave to others.
type ServedStats struct {
	Hits   uint64 `json:"hits"`
	Misses uint64 `json:"misses"`
	Bytes  uint64 `json:"bytes"`
}

// Source says where the bytes of a read came from.
type Source int

// Sources.
const (
	FromMemory Source = iota
	FromDisk
	FromPeers
	FromAppliance
	FromOrigin
	FromZeros // chunks of zeros are nowhere
	sources

	fromNowhere Source = -1
)

// Sources is a set of them: bit s stands for Source s.
type Sources uint8

// Has tells whether a source is in the set.
func (s Sources) Has(one Source) bool { return s&(1<<one) != 0 }

// Part is what came from one source: how many parts of requests, each from one chunk, and their bytes.
type Part struct {
	Chunks uint64 `json:"chunks"`
	Bytes  uint64 `json:"bytes"`
}

func (p Part) plus(q Part) Part { return Part{p.Chunks + q.Chunks, p.Bytes + q.Bytes} }

// ReaderStats is what a device read, and where it came from.
type ReaderStats struct {
	Memory    Part `json:"memory"`
	Disk      Part `json:"disk"`
	Peers     Part `json:"peers"`
	Appliance Part `json:"appliance"`
	Origin    Part `json:"origin"`
	Zeros     Part `json:"zeros"`

	Reads  uint64    `json:"reads"`  // that memory alone could not serve
	Errors uint64    `json:"errors"` // among these
	Fetch  Histogram `json:"fetch"`  // how long these took
}

// plus adds up all but the histogram.
func (s ReaderStats) plus(t ReaderStats) ReaderStats {
	return ReaderStats{
		Memory: s.Memory.plus(t.Memory), Disk: s.Disk.plus(t.Disk), Peers: s.Peers.plus(t.Peers), Appliance: s.Appliance.plus(t.Appliance),
		Origin: s.Origin.plus(t.Origin), Zeros: s.Zeros.plus(t.Zeros), Reads: s.Reads + t.Reads, Errors: s.Errors + t.Errors,
	}
}

// Stats is what a cache holds and did.
type Stats struct {
	Policy    Policy      `json:"policy"`
	Memory    MemoryStats `json:"memory"`
	Disk      *TierStats  `json:"disk,omitempty"`
	Peers     *TierStats  `json:"peers,omitempty"`
	Appliance *TierStats  `json:"appliance,omitempty"`
	Origin    OriginStats `json:"origin"`
	Served    ServedStats `json:"served"`
	Readers   ReaderStats `json:"readers"` // of all devices, those that are gone too
	Images    int         `json:"images"`  // that are open
	Pages     int         `json:"pages"`   // of digests in memory
}

// readers returns what all of them read, but for how long it took. It is called with mu held.
func (c *Cache) readers() ReaderStats {
	s := c.gone
	for _, roots := range c.roots {
		for _, r := range roots {
			s = s.plus(r.stats())
		}
	}
	return s
}

// requestTotals returns what was asked of memory so far.
func (c *Cache) requestTotals() requestTotals {
	c.mu.Lock()
	s := c.readers()
	c.mu.Unlock()
	all := s.Memory.plus(s.Disk).plus(s.Peers).plus(s.Appliance).plus(s.Origin)
	return requestTotals{float64(all.Chunks + c.served.hits.Load() + c.served.misses.Load()), float64(all.Bytes + c.served.bytes.Load())}
}

// Stats returns the numbers so far.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	s := Stats{Policy: c.o.Policy, Readers: c.readers()}
	for _, roots := range c.roots {
		s.Images += len(roots)
	}
	threshold, digesting := c.threshold, c.digesting
	c.mu.Unlock()
	s.Readers.Fetch = c.fetch.stats()
	s.Memory = c.memory.stats()
	s.Pages = c.digests.count()
	s.Memory.ThresholdBytes = threshold
	s.Memory.UsedBytes += digesting
	s.Disk, s.Peers, s.Appliance = c.disk.Load().stats(), c.peers.stats(), c.appliance.stats()
	s.Origin = c.origin.stats()
	s.Served = ServedStats{c.served.hits.Load(), c.served.misses.Load(), c.served.bytes.Load()}
	return s
}
