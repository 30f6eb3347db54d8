package node

import (
	"context"
	"fmt"
	"iter"
	"math"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"coppice/cache/prefetch"
)

// CacheWarmRequest says which chunks of a device's root to bring into the cache.
type CacheWarmRequest struct {
	// Trace is the absolute path of a file with a list of them. "" means all that are not zeros.
	Trace string `json:"trace,omitempty"`
}

// CacheWarmEvent is one line of the answer: progress, or the report at the end.
type CacheWarmEvent struct {
	Done   int64            `json:"done,omitempty"` // bytes
	Total  int64            `json:"total,omitempty"`
	Report *CacheWarmReport `json:"report,omitempty"`
}

// CacheWarmReport is what warming has done.
type CacheWarmReport struct {
	Device     string  `json:"device"`
	Bytes      int64   `json:"bytes"`       // that are in the cache, or were
	ReadBytes  int64   `json:"read_bytes"`  // of them, that had to be read
	TotalBytes int64   `json:"total_bytes"` // of the root, or of what the list names
	Partly     bool    `json:"partly"`      // it ended because more does not fit
	MS         float64 `json:"ms"`
}

// WarmCache brings what a device's root has into the cache, behind those who read it, and tells the progress. It ends when the memory tier is full
// where there is no disk tier: more would push out what came before. It ends early with ctx and with the daemon; what has come stays.
func (d *Daemon) WarmCache(ctx context.Context, name string, r CacheWarmRequest, emit func(CacheWarmEvent) error) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer d.ops.Done()
	_, s, err := d.holdRoot(name)
	if err != nil {
		return err
	}
	defer func() { _ = d.roots.leave(s) }() // the device has it, or closes it
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(d.quit, func() {
		cancel(fail(CodeStopping, "start again when it has been started again", "the daemon is stopping"))
	})()
	w := warming{ctx: ctx, s: s, report: CacheWarmReport{Device: name, TotalBytes: s.Size()}}
	ranges := w.data()
	if r.Trace != "" {
		if ranges, err = w.listed(r.Trace); err != nil {
			return err
		}
	}
	began := time.Now()
	err = w.run(ranges, d.roomToWarm(), func(e CacheWarmEvent) {
		if err := emit(e); err != nil {
			cancel(clientGone(err))
		}
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return fmt.Errorf("read root: %w", err)
	}
	w.report.MS = milliseconds(time.Since(began))
	d.log.Info("cache warmed", "device", name, "bytes", w.report.Bytes, "read_bytes", w.report.ReadBytes, "partly", w.report.Partly)
	return emit(CacheWarmEvent{Report: &w.report})
}

// roomToWarm is how many bytes can be brought into the cache without pushing out the first of them.
func (d *Daemon) roomToWarm() int64 {
	if d.cache.disk.Load() != nil {
		return math.MaxInt64
	}
	return d.cache.Stats().Memory.ThresholdBytes / 16 * 15 // what is known of the chunks takes some
}

// warming is one image being brought into the cache.
type warming struct {
	ctx    context.Context
	s      *rootSet
	report CacheWarmReport
	zeros  atomic.Int64 // bytes passed over
}

// listed goes through what a file names.
func (w *warming) listed(path string) (iter.Seq[prefetch.Range], error) {
	const hint = "give a trace of this root: coppice cache trace NAME FILE"
	if !filepath.IsAbs(path) {
		return nil, fail(CodeBadRequest, "give an absolute path", "trace %q is not an absolute path", path)
	}
	t, err := readTrace(path)
	if err == nil {
		err = w.s.fits(t)
	}
	if err != nil {
		return nil, fail(CodeBadRequest, hint, "read trace: %w", err)
	}
	w.report.TotalBytes = 0
	for r := range t.Ranges(prefetch.MaxRange) {
		w.report.TotalBytes += r.Len
	}
	return t.Ranges(prefetch.MaxRange), nil
}

// data goes through all that is not zeros, as far as the table can be read.
func (w *warming) data() iter.Seq[prefetch.Range] {
	return func(yield func(prefetch.Range) bool) {
		size := w.s.Size()
		for off := int64(0); off < size; {
			next, err := w.s.NextData(w.ctx, off)
			if err != nil {
				next = off // the read finds out what is wrong
			}
			next = min(next, size)
			w.zeros.Add(next - off)
			if off = next; off == size {
				return
			}
			n := min((off+prefetch.MaxRange)/prefetch.MaxRange*prefetch.MaxRange, size) - off
			if !yield(prefetch.Range{Off: off, Len: n}) {
				return
			}
			off += n
		}
	}
}

func (w *warming) run(ranges iter.Seq[prefetch.Range], room int64, tell func(CacheWarmEvent)) error {
	var taken, done, read atomic.Int64
	var telling sync.Mutex
	var pace pace
	err := prefetch.Job{
		From: w.s.background, AtOnce: replayReads, Busy: w.s.guests.waiting,
		Take: func(n int64) bool { return taken.Add(n) <= room },
		Done: func(n, had int64) {
			read.Add(had)
			sum := done.Add(n) + w.zeros.Load()
			telling.Lock()
			defer telling.Unlock()
			if pace.due() {
				tell(CacheWarmEvent{Done: min(sum, w.report.TotalBytes), Total: w.report.TotalBytes})
			}
		},
	}.Run(w.ctx, ranges)
	w.report.Bytes, w.report.ReadBytes, w.report.Partly = done.Load(), read.Load(), taken.Load() > room
	return err
}

// CacheTrace returns what a device has asked its root for in its first minutes, while that is being recorded, else what is on record of the
// content: see [prefetch.Trace].
func (d *Daemon) CacheTrace(name string) ([]byte, error) {
	v, s, err := d.holdRoot(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.roots.leave(s) }() // the device has it, or closes it
	if root := v.imageRoot(); root != nil {
		if rec := root.recorder.Load(); rec != nil {
			if chunks := rec.Chunks(); len(chunks) > 0 {
				return s.trace(chunks).Encode(), nil
			}
		}
	}
	t, err := readTrace(tracePath(d.cfg.Cache.TracesPath, s.ContentRoot()))
	if err != nil {
		return nil, fail(CodeNotFound, "have the device read something; record in coppice.toml, section cache, says for how long that is recorded",
			"nothing is on record of what the root of device %s was asked for", name)
	}
	return t.Encode(), nil
}
