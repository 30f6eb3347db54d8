package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"coppice/cache/prefetch"
	"coppice/image"
)

const (
	// recordedChunks bounds what is recorded of a device, recorders how many devices are recorded at a time.
	recordedChunks = 64 << 10
	recorders      = 16
	// readsAhead bounds the ranges that are read ahead at a time, for all devices, and streamReads those of one device.
	readsAhead  = 16
	streamReads = 4
	// replayReads is how many ranges a replay reads at a time while nobody waits.
	replayReads = 8
	// aheadShare is the part of the memory tier that one stream is read ahead at most, one in so many.
	aheadShare = 16
	// saveTime bounds how long the end of a device waits for its trace to be written.
	saveTime = 5 * time.Second
)

// prefetcher is what prefetching for all devices shares. The zero value is ready.
type prefetcher struct {
	recording atomic.Int64 // devices
	replaying atomic.Int64 // bytes that replays under way have read
	saving    sync.Mutex   // held while a trace is compared with the one that there is, and replaces it
	slots     slots

	traces, replayed, replayedBytes, aheadBytes atomic.Uint64
}

// slots bounds the ranges that are read ahead at a time. The zero value is ready.
type slots struct {
	make sync.Once
	c    chan struct{}
}

func (s *slots) take(ctx context.Context) error {
	s.make.Do(func() { s.c = make(chan struct{}, readsAhead) })
	select {
	case s.c <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *slots) give() { <-s.c }

// PrefetchStats tells what was read before anybody asked for it.
type PrefetchStats struct {
	Recording      int64  `json:"recording"`       // devices whose reads are being recorded
	Traces         uint64 `json:"traces"`          // that were kept
	Replays        uint64 `json:"replays"`         // of traces
	ReplayedBytes  uint64 `json:"replayed_bytes"`  // that they had to read
	ReadaheadBytes uint64 `json:"readahead_bytes"` // of sequential streams
}

func (p *prefetcher) stats() PrefetchStats {
	return PrefetchStats{p.recording.Load(), p.traces.Load(), p.replayed.Load(), p.replayedBytes.Load(), p.aheadBytes.Load()}
}

// note looks at a read before it is made. It waits for nothing.
func (r *imageRoot) note(off, n int64) {
	if rec := r.recorder.Load(); rec != nil {
		rec.Note(off, n)
	}
	if r.streams == nil {
		return
	}
	if further, ok := r.streams.Note(off, n); ok {
		select {
		case r.ahead <- further:
		default: // it is read when it is asked for
		}
	}
}

// startReadahead begins to read ahead of sequential streams, until the root is closed.
func (r *imageRoot) startReadahead() {
	c := r.owner.cache
	most := min(int64(*c.cfg.Readahead), c.Stats().Memory.ThresholdBytes/aheadShare)
	if most < int64(r.set.ChunkSize()) {
		return
	}
	r.streams = prefetch.NewStreams(r.set.Size(), r.set.ChunkSize(), most)
	r.ahead = make(chan prefetch.Range, streamReads)
	r.work.Go(func() {
		shared := &r.owner.prefetch
		job := prefetch.Job{
			From: slotReader{r.set.background, &shared.slots}, AtOnce: streamReads,
			Done: func(_, read int64) { shared.aheadBytes.Add(uint64(read)) },
		}
		for {
			select {
			case <-r.ctx.Done():
				return
			case further := <-r.ahead:
				_ = job.Run(r.ctx, further.Split(prefetch.MaxRange)) // who asks for it is told what is wrong
			}
		}
	})
}

// slotReader takes a slot for each read that has to wait.
type slotReader struct {
	prefetch.Reader
	slots *slots
}

func (r slotReader) Read(ctx context.Context, p []byte, off int64) error {
	if err := r.slots.take(ctx); err != nil {
		return err
	}
	defer r.slots.give()
	return r.Reader.Read(ctx, p, off)
}

// prefetchRoot replays what an earlier device on the same content asked for, and records what a new one does.
func (d *Daemon) prefetchRoot(b *backing) {
	root := b.image()
	if root == nil || root.reader == nil {
		return
	}
	root.startRecord(d.cfg.Cache.record())
	d.startReplay(root.set)
}

// startRecord records what is asked for from now on, for some time.
func (r *imageRoot) startRecord(limit time.Duration) {
	shared := &r.owner.prefetch
	if limit == 0 {
		return
	}
	if shared.recording.Add(1) > recorders {
		shared.recording.Add(-1)
		return
	}
	r.recorder.Store(prefetch.NewRecorder(r.set.ChunkSize(), recordedChunks))
	r.work.Go(func() {
		pause(r.ctx, limit)
		if r.ctx.Err() == nil {
			r.endRecord()
		}
	})
}

// endRecord keeps what was recorded, if anything is being recorded.
func (r *imageRoot) endRecord() {
	rec := r.recorder.Swap(nil)
	if rec == nil {
		return
	}
	shared := &r.owner.prefetch
	shared.recording.Add(-1)
	trace := r.set.trace(rec.Chunks())
	within(saveTime, func() {
		shared.saving.Lock()
		defer shared.saving.Unlock()
		kept, err := keepTrace(r.owner.cache.cfg.TracesPath, trace)
		if err != nil {
			r.owner.log.Warn("what a device asked its root for is not kept; the next one starts without it", "error", oneLine(err))
		} else if kept {
			shared.traces.Add(1)
			r.owner.log.Debug("trace of root kept", "root", trace.Root.String(), "chunks", len(trace.Chunks))
		}
	})
}

func (s *rootSet) trace(chunks []int64) *prefetch.Trace {
	return &prefetch.Trace{Root: s.ContentRoot(), SizeBytes: s.Size(), ChunkSize: s.ChunkSize(), Chunks: chunks}
}

// tracePath is where the trace of a content is kept.
func tracePath(dir string, content image.Digest) string {
	return filepath.Join(dir, hex.EncodeToString(content[:])+".trace")
}

// keepTrace writes a trace, unless there is one of the same content with more chunks: that of a device that did more.
func keepTrace(dir string, t *prefetch.Trace) (kept bool, err error) {
	if len(t.Chunks) == 0 {
		return false, nil
	}
	path := tracePath(dir, t.Root)
	if old, err := readTrace(path); err == nil && len(old.Chunks) > len(t.Chunks) {
		return false, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	return true, writeAtomically(path, t.Encode())
}

// readTrace reads a file with a trace.
func readTrace(path string) (*prefetch.Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, prefetch.MaxTraceBytes+1))
	if err != nil {
		return nil, err
	}
	t, err := prefetch.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return t, nil
}

// fits tells whether a trace is of this content.
func (s *rootSet) fits(t *prefetch.Trace) error {
	if t.Root != s.ContentRoot() || t.SizeBytes != s.Size() || t.ChunkSize != s.ChunkSize() {
		return fmt.Errorf("%w of this content: it is of %s, in chunks of %d bytes", prefetch.ErrBadTrace, t.Root, t.ChunkSize)
	}
	return nil
}

// replay is the prefetching of an image, made once for all devices on it.
type replay struct {
	work sync.WaitGroup

	mu     sync.Mutex // guards what follows
	closed bool
	cancel context.CancelFunc // nil: none is under way
}

// start runs do in a goroutine, unless one is under way or the image is closed.
func (p *replay) start(do func(context.Context)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.cancel != nil {
		return
	}
	var ctx context.Context
	ctx, p.cancel = context.WithCancel(context.Background())
	p.work.Go(func() {
		do(ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.cancel()
		p.cancel = nil
	})
}

// stop returns when nothing more is read.
func (p *replay) stop() {
	p.mu.Lock()
	p.closed = true
	if p.cancel != nil {
		p.cancel()
	}
	p.mu.Unlock()
	p.work.Wait()
}

// startReplay reads what an earlier device on the same content asked for, on this node or on another one, if that is known.
func (d *Daemon) startReplay(s *rootSet) {
	if *d.cfg.Cache.PrefetchPercent == 0 {
		return
	}
	s.replay.start(func(ctx context.Context) {
		log := d.log.With("root", s.ContentRoot().String())
		trace, from := d.findTrace(ctx, log, s)
		if trace == nil {
			return
		}
		began := time.Now()
		read, err := d.replay(ctx, s, trace)
		if err != nil && ctx.Err() == nil {
			log.Warn("prefetch ends early", "error", oneLine(err))
		}
		log.Debug("root prefetched", "trace", from, "chunks", len(trace.Chunks), "read_bytes", read, "ms", milliseconds(time.Since(began)))
	})
}

// fetchTime bounds how long it may take to find out what is attached to an image.
const fetchTime = 30 * time.Second

// findTrace returns the trace of the first device of this node on a content, or else the one that is attached to the image, and says which; nil where there is none.
func (d *Daemon) findTrace(ctx context.Context, log *slog.Logger, s *rootSet) (t *prefetch.Trace, from string) {
	t, err := readTrace(tracePath(d.cfg.Cache.TracesPath, s.ContentRoot()))
	if err == nil {
		err = s.fits(t)
	}
	switch {
	case err == nil:
		return t, "own"
	case !errors.Is(err, fs.ErrNotExist):
		log.Warn("what an earlier device asked for is not prefetched; the next device that is made writes a new trace", "error", oneLine(err))
	}
	if !*d.cfg.Cache.AttachedTraces {
		return nil, ""
	}
	if t, err = s.attachedTrace(ctx); err != nil {
		log.Debug("no trace is attached to the image, or none that is of use", "error", oneLine(err)) // it is advice: nobody has to have it
		return nil, ""
	}
	return t, "attached"
}

// attachedTrace reads the trace that somebody has attached to the image.
func (s *rootSet) attachedTrace(ctx context.Context) (*prefetch.Trace, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	data, err := s.TraceChunks(ctx)
	if err != nil {
		return nil, err
	}
	t, err := prefetch.Decode(data)
	if err != nil {
		return nil, err
	}
	return t, s.fits(t)
}

// replay reads the chunks of a trace, for as long as all replays that are under way stay within their share of the memory.
func (d *Daemon) replay(ctx context.Context, s *rootSet, t *prefetch.Trace) (read int64, err error) {
	shared := &d.roots.prefetch
	most := d.cache.Stats().Memory.ThresholdBytes / 100 * int64(*d.cfg.Cache.PrefetchPercent)
	var taken, got atomic.Int64
	err = prefetch.Job{
		From: s.background, AtOnce: replayReads, Busy: s.guests.waiting,
		Take: func(n int64) bool {
			taken.Add(n)
			return shared.replaying.Add(n) <= most
		},
		Done: func(_, read int64) { got.Add(read) },
	}.Run(ctx, t.Ranges(prefetch.MaxRange))
	shared.replaying.Add(-taken.Load())
	shared.replayed.Add(1)
	shared.replayedBytes.Add(uint64(got.Load()))
	return got.Load(), err
}

// waiting tells whether somebody waits for what he reads.
func (g *guests) waiting() bool { return g.reading.Load() > 0 }
