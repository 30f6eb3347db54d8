package disk

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
)

// Options say how to open a cache. The zero value is useful.
type Options struct {
	// SizeBytes makes a regular file, or extends it, to this size. A cache whose file or device has become larger or smaller is made anew. 0:
	// as it is.
	SizeBytes int64
	// Overwrite makes a cache also of what holds something else. It is for places that belong to the cache in any case.
	Overwrite bool
	// MemoryBytes bounds the index in memory; 0: a thousandth of the cache's size, which is enough for chunks of 24 KiB on average. Where
	// chunks are smaller, a part of the space stays unused.
	MemoryBytes int64
	// QueueBytes bounds the chunks that wait to be written; 0: 8 MiB.
	QueueBytes int64
	// ReadTimeout is how long a read may take, at most 2 s; 0: half a second.
	ReadTimeout time.Duration
	// ScrubBytesPerSecond bounds how fast chunks are read to look for rot; 0: 2 MiB, negative: they are not.
	ScrubBytesPerSecond int64
	// IndexEvery is how often the index is written, at most an hour; 0: every 30 s. What was put later is lost in a power cut.
	IndexEvery time.Duration
	// Log is told when the cache turns itself off and on; nil: the default logger.
	Log *slog.Logger

	uuid     uuid.UUID     // of a cache that is made; zero: a random one
	geometry *geometry     // of a cache that is made; nil: the usual one for the size
	retry    time.Duration // until what failed is tried again for the first time; 0: firstRetry
	inline   bool          // no goroutines in the background: Put writes
	patient  bool          // ReadTimeout may be longer, and Close waits as long: the machine that a test runs on may be busy
}

const (
	defaultQueue  = 8 << 20
	defaultRead   = 500 * time.Millisecond
	maxRead       = 2 * time.Second
	defaultScrub  = 2 << 20
	defaultIndex  = 30 * time.Second
	memoryShare   = 1000
	leastMemory   = 1 << 20
	firstRetry    = time.Second
	lastRetry     = 30 * time.Second
	maxQueued     = 1024 // chunks
	maxReads      = 64   // at a time
	maxBadReads   = 3    // in a row
	yieldTime     = 20 * time.Millisecond
	writePiece    = 128 << 10
	closePatience = 5 * time.Second
)

func (o *Options) complete() error {
	setDefault(&o.QueueBytes, defaultQueue)
	setDefault(&o.ReadTimeout, defaultRead)
	setDefault(&o.ScrubBytesPerSecond, defaultScrub)
	setDefault(&o.IndexEvery, defaultIndex)
	setDefault(&o.retry, firstRetry)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	switch {
	case o.SizeBytes != 0 && o.SizeBytes < MinBytes && o.geometry == nil:
		return fmt.Errorf("a size of %d bytes, need at least %d: %w", o.SizeBytes, MinBytes, ErrTooSmall)
	case o.MemoryBytes < 0, o.QueueBytes < 0:
		return fmt.Errorf("memory of %d bytes and a queue of %d: neither can be negative", o.MemoryBytes, o.QueueBytes)
	case o.ReadTimeout < 0 || o.ReadTimeout > maxRead && !o.patient:
		return fmt.Errorf("a read timeout of %s: it is above 0 and at most %s", o.ReadTimeout, maxRead)
	case o.IndexEvery < 0 || o.IndexEvery > time.Hour:
		return fmt.Errorf("an index written every %s: it is above 0 and at most an hour", o.IndexEvery)
	}
	return nil
}

func setDefault[T ~int64](v *T, to T) {
	if *v == 0 {
		*v = to
	}
}

// maxSlots is how many slots the memory has room for: those of one segment at least.
func (o *Options) maxSlots(g *geometry) int {
	memory := o.MemoryBytes
	if memory == 0 {
		memory = max(int64(g.Blocks)<<blockShift/memoryShare, leastMemory)
	}
	return int(max(int64(g.SegmentBlocks), (memory-int64(g.Buckets)*bucketMemory)/entryMemory))
}
