package cache

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"coppice/image"
	"coppice/internal/flight"
)

// digestPage is the digests of neighbouring chunks of an image. It is not changed.
type digestPage struct {
	digests [pageChunks]image.Digest
	used    atomic.Bool // since the hand was there
}

const (
	pageShift  = 10 // of the number of a chunk
	pageChunks = 1 << pageShift
	pageBytes  = int64(unsafe.Sizeof(digestPage{}))
	placeBytes = int64(unsafe.Sizeof(atomic.Pointer[digestPage]{}))

	// digestShare is the part of the threshold that pages of digests have, one in so many, and leastPages how many there may be at any threshold.
	digestShare = 16
	leastPages  = 8
)

// pageBudget is how many pages of digests there may be at a threshold.
func pageBudget(threshold int64) int { return int(max(leastPages, threshold/digestShare/pageBytes)) }

// digestPages bounds how many pages the roots hold, by CLOCK.
type digestPages struct {
	charge func(bytes int64) // counts towards the threshold

	mu   sync.Mutex
	most int
	all  []pagePlace
	hand int
}

type pagePlace struct {
	root   *Root
	number int64
}

func (p pagePlace) page() *atomic.Pointer[digestPage] { return &p.root.pages[p.number] }

// setMost bounds the number of pages from now on.
func (d *digestPages) setMost(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.most = n
	for len(d.all) > n {
		d.removeAt(d.oldest())
	}
}

// add takes a page in.
func (d *digestPages) add(place pagePlace, page *digestPage) {
	d.charge(pageBytes)
	d.mu.Lock()
	defer d.mu.Unlock()
	if place.page().Swap(page) != nil { // the place is there
		d.charge(-pageBytes)
		return
	}
	for len(d.all) >= d.most {
		d.removeAt(d.oldest())
	}
	d.all = append(d.all, place)
}

// oldest moves the hand to a page that was not used since it came by.
func (d *digestPages) oldest() int {
	for ; ; d.hand++ {
		if d.hand >= len(d.all) {
			d.hand = 0
		}
		if !d.all[d.hand].page().Load().used.Swap(false) {
			return d.hand
		}
	}
}

func (d *digestPages) removeAt(i int) {
	d.all[i].page().Store(nil)
	d.charge(-pageBytes)
	last := len(d.all) - 1
	d.all[i] = d.all[last]
	d.all = d.all[:last]
}

// removeRoot forgets the pages of a root.
func (d *digestPages) removeRoot(r *Root) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := len(d.all) - 1; i >= 0; i-- {
		if d.all[i].root == r {
			d.removeAt(i)
		}
	}
}

func (d *digestPages) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.all)
}

// digest returns that of a chunk which exists, or nil where its page is not in memory. It does not wait.
func (r *Root) digest(index int64) *image.Digest {
	page := r.pages[index>>pageShift].Load()
	if page == nil {
		return nil
	}
	if !page.used.Load() {
		page.used.Store(true)
	}
	return &page.digests[index&(pageChunks-1)]
}

// digestOf returns the digest of a chunk, whose page it reads where that is missing.
func (r *Root) digestOf(ctx context.Context, index int64) (image.Digest, error) {
	if d := r.digest(index); d != nil {
		return *d, nil
	}
	page, err := r.loadPage(ctx, index>>pageShift)
	if err != nil {
		return image.Digest{}, fmt.Errorf("read digest of chunk %d: %w", index, err)
	}
	return page.digests[index&(pageChunks-1)], nil
}

// loadPage reads a page of digests, once for all who want it.
func (r *Root) loadPage(ctx context.Context, number int64) (*digestPage, error) {
	fl, mine := r.pageFlights.Claim(r.ctx, number)
	defer r.pageFlights.Leave(number, fl)
	there := r.pages[number].Load()
	switch {
	case !mine:
	case there != nil: // since the caller looked, another flight has landed
		r.pageFlights.Land(number, fl, there, nil)
	case !r.spawn(func() { r.readPage(number, fl) }):
		r.pageFlights.Land(number, fl, nil, image.ErrClosed)
	}
	page, err := fl.Wait(ctx)
	return page, r.ended(err)
}

// readPage reads a page for a flight, and lands it.
func (r *Root) readPage(number int64, fl *flight.Flight[*digestPage]) {
	page := new(digestPage)
	first := number << pageShift
	r.shareTable(fl.Context(), number)
	err := r.origin.Digests(fl.Context(), first, page.digests[:min(pageChunks, r.chunks-first)])
	if err == nil {
		r.cache.digests.add(pagePlace{r, number}, page)
	}
	r.pageFlights.Land(number, fl, page, err)
}
