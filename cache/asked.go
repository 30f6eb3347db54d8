package cache

import (
	"context"
	"sync"
	"time"

	"coppice/image"
)

const (
	// askedAgain is how long a content that somebody else asked for, and that could not be opened, is not tried to open again.
	askedAgain = 5 * time.Second
	// askedMost is how many contents are tried to open in that time: nobody makes a node look for one made-up content after the other.
	askedMost = 16
)

// asked opens contents that others ask for. The zero value opens none.
type asked struct {
	open func(ctx context.Context, content image.Digest) // guarded by the cache's mu

	looking sync.Mutex                 // held while a content is opened; guards when
	when    map[image.Digest]time.Time // it was last tried
}

// OnAsked sets what is called with a content that others want chunks of and that is not open, one call at a time: it opens the image with that content if there is one here that is not open for it only
// because nobody here has asked, as the index of a root. A content is not asked for again for some seconds.
func (c *Cache) OnAsked(open func(ctx context.Context, content image.Digest)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked.open = open
}

// openAsked returns when a content was tried to open, by this call or another one.
func (c *Cache) openAsked(ctx context.Context, content image.Digest) {
	c.mu.Lock()
	open := c.asked.open
	c.mu.Unlock()
	if open == nil || content == (image.Digest{}) {
		return
	}
	a := &c.asked
	a.looking.Lock()
	defer a.looking.Unlock()
	now := time.Now()
	for other, at := range a.when {
		if now.Sub(at) > askedAgain {
			delete(a.when, other)
		}
	}
	if _, tried := a.when[content]; tried || len(a.when) >= askedMost {
		return
	}
	if a.when == nil {
		a.when = map[image.Digest]time.Time{}
	}
	a.when[content] = now
	open(ctx, content)
}
