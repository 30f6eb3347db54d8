package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"coppice/internal/flight"
)

const (
	// maxRun and maxGap bound a range request: bytes of one, and bytes between two chunks that are worth fetching for nothing.
	maxRun = 4 << 20
	maxGap = 16 << 10

	// window is how many chunks a long read has in hand at a time.
	windowBytes = 16 << 20
)

// stats counts what an image asked its source for.
type stats struct{ requests, bytes atomic.Int64 }

// ReadStats is what an image asked its source for since it was opened, beside manifest and config.
type ReadStats struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
}

// ReadStats returns the numbers so far.
func (im *Image) ReadStats() ReadStats {
	return ReadStats{im.stats.requests.Load(), im.stats.bytes.Load()}
}

// ReadAt is [Image.Read] without an end to the patience.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= im.g.size {
		if off == im.g.size || len(p) == 0 {
			return 0, io.EOF
		}
		return 0, fmt.Errorf("read at %d: beyond the image of %d bytes", off, im.g.size)
	}
	n := int(min(int64(len(p)), im.g.size-off))
	if err := im.Read(context.Background(), p[:n], off); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Read fills p from byte off on. The range lies within the image. Every byte is verified. After an error, p holds anything.
func (im *Image) Read(ctx context.Context, p []byte, off int64) error {
	return im.g.read(p, off, func(p []byte, off int64) error { return im.readWindow(ctx, p, off) })
}

// read cuts a range that lies within the image into windows, which end where chunks do.
func (g geometry) read(p []byte, off int64, window func(p []byte, off int64) error) error {
	if off < 0 || int64(len(p)) > g.size-off {
		return fmt.Errorf("read %d bytes at %d: beyond the image of %d bytes", len(p), off, g.size)
	}
	size := int64(g.chunkSize)
	for len(p) > 0 {
		n := int(min(int64(len(p)), (off+windowBytes)/size*size-off))
		if err := window(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// want is a chunk that a read needs.
type want struct {
	index int64
	ref   chunkRef
	dst   []byte // where its bytes go, from byte skip of the chunk on
	skip  int
	fl    *flight.Flight[[]byte]
}

func (im *Image) readWindow(ctx context.Context, p []byte, off int64) error {
	wants, err := im.plan(ctx, p, off)
	if err != nil {
		return err
	}
	mine := claimAll(im.ctx, &im.flights, wants)
	defer leaveAll(&im.flights, wants)
	for _, run := range runs(mine) {
		im.spawn(func() {
			ctx, cancel := together(im.ctx, run)
			defer cancel()
			im.fetch(ctx, run, func(w want, content []byte, err error) { im.flights.Land(w.index, w.fl, content, err) })
		})
	}
	for _, w := range wants {
		data, err := w.fl.Wait(ctx)
		if err != nil {
			return err
		}
		copy(w.dst, data[w.skip:])
	}
	return nil
}

// claimAll claims the flight of each want, and returns those that the caller has to see to.
func claimAll(ctx context.Context, f *flight.Group[int64, []byte], wants []want) (mine []want) {
	for i := range wants {
		fl, first := f.Claim(ctx, wants[i].index)
		wants[i].fl = fl
		if first {
			mine = append(mine, wants[i])
		}
	}
	return mine
}

// together returns the context of one fetch of several chunks, which ends when nobody waits for any of them.
func together(ctx context.Context, wants []want) (context.Context, context.CancelFunc) {
	flights := make([]*flight.Flight[[]byte], len(wants))
	for i, w := range wants {
		flights[i] = w.fl
	}
	return flight.Together(ctx, flights)
}

func leaveAll(f *flight.Group[int64, []byte], wants []want) {
	for _, w := range wants {
		f.Leave(w.index, w.fl)
	}
}

// wants returns the chunks that fill p from byte off on.
func (g geometry) wants(p []byte, off int64) []want {
	size := int64(g.chunkSize)
	all := make([]want, 0, int64(len(p))/size+2)
	for len(p) > 0 {
		w := want{index: off / size, skip: int(off % size)}
		n := min(len(p), g.chunkLen(w.index)-w.skip)
		w.dst = p[:n]
		p, off = p[n:], off+int64(n)
		all = append(all, w)
	}
	return all
}

// plan finds the chunks that fill p, and clears what is zeros.
func (im *Image) plan(ctx context.Context, p []byte, off int64) ([]want, error) {
	var wants []want
	for _, w := range im.g.wants(p, off) {
		if im.cached(w) {
			continue
		}
		ref, held, err := im.locate(ctx, w.index)
		switch {
		case err != nil:
			return nil, err
		case held:
			w.ref = ref
			wants = append(wants, w)
		default:
			clear(w.dst)
		}
	}
	return wants, nil
}

// cached fills what a chunk in the cache has.
func (im *Image) cached(w want) bool {
	if im.chunks == nil {
		return false
	}
	content, ok := im.chunks.Get(w.index)
	if ok {
		copy(w.dst, content[w.skip:])
	}
	return ok
}

// spawn runs f in a goroutine that Close waits for.
func (im *Image) spawn(f func()) {
	im.work.Add(1)
	go func() {
		defer im.work.Done()
		f()
	}()
}

// runs cuts chunks into range requests: chunks of a pack that lie next to each other, or nearly so.
func runs(wants []want) [][]want {
	slices.SortFunc(wants, func(a, b want) int {
		return cmp.Or(cmp.Compare(a.ref.place.pack, b.ref.place.pack), cmp.Compare(a.ref.place.offset, b.ref.place.offset))
	})
	var out [][]want
	start := 0
	for i := 1; i <= len(wants); i++ {
		if i == len(wants) || !joins(wants[start].ref.place, wants[i-1].ref.place, wants[i].ref.place) {
			out = append(out, wants[start:i:i])
			start = i
		}
	}
	if len(wants) == 0 {
		return nil
	}
	return out
}

// joins reports whether a place is read in one go with those from first to last.
func joins(first, last, next place) bool {
	return next.pack == first.pack && next.offset <= last.end()+maxGap && max(next.end(), last.end())-first.offset <= maxRun
}

func (p place) end() int64 { return p.offset + int64(p.stored) }

// load returns the contents of some chunks, verified; nil is zeros. It does not wait for others that want the same: it ends with ctx.
func (im *Image) load(ctx context.Context, some span) ([][]byte, error) {
	var wants []want
	for index := some.from; index < some.to; index++ {
		ref, held, err := im.locate(ctx, index)
		if err != nil {
			return nil, err
		}
		if held {
			wants = append(wants, want{index: index, ref: ref})
		}
	}
	contents, errs := make([][]byte, some.to-some.from), make([]error, some.to-some.from)
	var fetches sync.WaitGroup
	for _, run := range runs(wants) {
		fetches.Go(func() {
			im.fetch(ctx, run, func(w want, content []byte, err error) {
				contents[w.index-some.from], errs[w.index-some.from] = content, err
			})
		})
	}
	fetches.Wait()
	return contents, cmp.Or(errs...)
}

// fetch reads and verifies the chunks of one run, and hands them over.
func (im *Image) fetch(ctx context.Context, run []want, got func(w want, content []byte, err error)) {
	stored, err := im.readRun(ctx, run)
	if err != nil {
		for _, w := range run {
			got(w, nil, err)
		}
		return
	}
	base := run[0].ref.place.offset
	each(run, func(w want) {
		content := make([]byte, im.g.chunkLen(w.index))
		err := unpack(content, stored[w.ref.place.offset-base:][:w.ref.place.stored], w.ref.digest)
		if err != nil {
			content, err = nil, im.corrupt("chunk", fmt.Sprint(w.index), "%w", err)
		} else if im.chunks != nil {
			im.chunks.Add(w.index, content)
		}
		got(w, content, err)
	})
}

// each calls f for every element, on several CPUs where there are some.
func each[T any](all []T, f func(T)) {
	workers := min(runtime.GOMAXPROCS(0), (len(all)+7)/8)
	if workers <= 1 {
		for _, v := range all {
			f(v)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(all)); i = next.Add(1) - 1 {
				f(all[i])
			}
		})
	}
	wg.Wait()
}

// readRun reads the stored bytes of a run, from its first byte to its last.
func (im *Image) readRun(ctx context.Context, run []want) ([]byte, error) {
	first := run[0].ref.place
	end := first.end()
	for _, w := range run {
		end = max(end, w.ref.place.end())
	}
	stored := make([]byte, end-first.offset)
	blob := im.manifest.Packs[first.pack]
	err := im.request(ctx, func() error { return im.src.ReadBlob(ctx, blob, stored, first.offset) })
	if err != nil {
		return nil, fmt.Errorf("read %d bytes of pack %d of %s from %s: %w", len(stored), first.pack, im.name, im.src, err)
	}
	im.stats.bytes.Add(int64(len(stored)))
	return stored, nil
}

// request does a request when one of the slots is free.
func (im *Image) request(ctx context.Context, do func() error) error {
	if im.slots != nil {
		select {
		case im.slots <- struct{}{}:
			defer func() { <-im.slots }()
		case <-ctx.Done():
			return im.ended(ctx.Err())
		}
	}
	im.stats.requests.Add(1)
	return im.ended(do())
}

// ended says so where an error came of closing the image.
func (im *Image) ended(err error) error {
	if im.ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return ErrClosed
	}
	return err
}

// Chunk returns the digest of a chunk, and whether it is all zeros, which have none.
func (im *Image) Chunk(ctx context.Context, index int64) (d Digest, zeros bool, err error) {
	if index < 0 || index >= im.g.chunks() {
		return d, false, fmt.Errorf("chunk %d: the image has %d", index, im.g.chunks())
	}
	ref, held, err := im.locate(ctx, index)
	return ref.digest, !held && err == nil, err
}

// digests returns the digests of n chunks from index first on; that of zeros is the zero Digest.
func (im *Image) digests(ctx context.Context, first int64, n int) ([]Digest, error) {
	all := make([]Digest, n)
	for done := 0; done < n; {
		index := first + int64(done)
		part := all[done:min(n, done+fanOut-int(index&(fanOut-1)))]
		done += len(part)
		p, err := im.leafPage(ctx, index)
		if err != nil {
			return nil, err
		}
		if p == nil {
			continue
		}
		for i := range part {
			if k, held := p.find(int(index&(fanOut-1)) + i); held {
				part[i] = p.digest(k)
			}
		}
	}
	return all, nil
}

// ReadChunk fills p with the content of a chunk, and returns its length. p is at least as long as that.
func (im *Image) ReadChunk(ctx context.Context, p []byte, index int64) (int, error) {
	if index < 0 || index >= im.g.chunks() {
		return 0, fmt.Errorf("chunk %d: the image has %d", index, im.g.chunks())
	}
	n := im.g.chunkLen(index)
	if len(p) < n {
		return 0, fmt.Errorf("chunk %d: has %d bytes, and there is room for %d", index, n, len(p))
	}
	return n, im.readWindow(ctx, p[:n], index*int64(im.g.chunkSize))
}

// locate finds a chunk in the table. held is false where it is all zeros.
func (im *Image) locate(ctx context.Context, index int64) (c chunkRef, held bool, err error) {
	p, err := im.leafPage(ctx, index)
	if err != nil || p == nil {
		return c, false, err
	}
	k, held := p.find(int(index & (fanOut - 1)))
	if !held {
		return c, false, nil
	}
	c = p.chunk(k)
	return c, true, im.checkChunk(index, &c)
}

// checkChunk compares an entry with what the manifest says of the packs.
func (im *Image) checkChunk(index int64, c *chunkRef) error {
	bad := func(format string, args ...any) error {
		return im.corrupt("table entry", fmt.Sprint(index), format, args...)
	}
	switch {
	case int(c.place.pack) >= len(im.manifest.Packs):
		return bad("pack %d, and there are %d", c.place.pack, len(im.manifest.Packs))
	case c.place.stored < 1 || int(c.place.stored) > im.g.chunkLen(index):
		return bad("%d bytes stored, of a chunk of %d", c.place.stored, im.g.chunkLen(index))
	case c.place.offset < 0 || c.place.offset > im.manifest.Packs[c.place.pack].Size-int64(c.place.stored):
		return bad("lies beyond the end of pack %d", c.place.pack)
	case c.digest == im.zeros[0] || c.digest == im.zeros[1]:
		return bad("zeros are stored as a chunk")
	}
	return nil
}

// leafPage returns the page of level 0 with a chunk's entry, or nil where all of its entries are zeros.
func (im *Image) leafPage(ctx context.Context, index int64) (*page, error) {
	ref, ok, err := im.leafRef(index, im.reading(ctx, index))
	if err != nil || !ok {
		return nil, err
	}
	return im.page(ctx, ref, 0, index)
}

// leafRef returns the reference of the page of level 0 with a chunk's entry, and false where all of its entries are zeros. get is asked for the pages above.
func (im *Image) leafRef(index int64, get func(ref PageRef, level int) (*page, error)) (ref PageRef, ok bool, err error) {
	if im.config.Root == nil {
		return ref, false, nil
	}
	ref = *im.config.Root
	for level := im.g.levels() - 1; level > 0; level-- {
		p, err := get(ref, level)
		if err != nil {
			return ref, false, err
		}
		k, held := p.find(int(index >> (level * fanShift) & (fanOut - 1)))
		if !held {
			return ref, false, nil
		}
		if ref, err = im.childRef(p, k, index); err != nil {
			return ref, false, err
		}
	}
	return ref, true, nil
}

// pageKey is all that a page was verified against: two references that differ in anything do not share a page.
type pageKey struct {
	ref          PageRef
	level, limit int
}

// page returns a page from the cache or the source.
func (im *Image) page(ctx context.Context, ref PageRef, level int, index int64) (*page, error) {
	key := pageKey{ref, level, im.g.entries(level, index)}
	if p, ok := im.pages.Get(key); ok {
		return p, nil
	}
	fl, mine := im.pageFlights.Claim(im.ctx, key)
	defer im.pageFlights.Leave(key, fl)
	if mine {
		im.spawn(func() {
			p, err := im.readPage(fl.Context(), key, index)
			if err == nil {
				im.pages.Add(key, p)
			}
			im.pageFlights.Land(key, fl, p, err)
		})
	}
	return fl.Wait(ctx)
}

func (im *Image) readPage(ctx context.Context, key pageKey, index int64) (*page, error) {
	raw := make([]byte, key.ref.Length)
	err := im.request(ctx, func() error { return im.src.ReadBlob(ctx, im.manifest.Table, raw, key.ref.Offset) })
	if err != nil {
		return nil, fmt.Errorf("read table of %s from %s: %w", im.name, im.src, err)
	}
	im.stats.bytes.Add(int64(len(raw)))
	p := (*page)(nil)
	if err = verifyPage(raw, &key.ref); err == nil {
		p, err = decodePage(raw, key.level, key.limit)
	}
	if err != nil {
		return nil, im.corrupt("table page", fmt.Sprintf("of level %d over chunk %d", key.level, index), "%w", err)
	}
	return p, nil
}
