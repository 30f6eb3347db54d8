package cache

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"coppice/image"
)

// A content that somebody else asks for is tried to open once in a while, and not many of them.
func TestOthersAskForWhatIsNotOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Cache
		content := func(n byte) image.Digest { return image.Digest{n, 1} }
		c.openAsked(t.Context(), content(0)) // nobody opens any
		var tried []image.Digest
		c.OnAsked(func(_ context.Context, d image.Digest) { tried = append(tried, d) })
		c.openAsked(t.Context(), image.Digest{})
		for range 3 {
			c.openAsked(t.Context(), content(0))
		}
		if want := []image.Digest{content(0)}; !slices.Equal(tried, want) {
			t.Errorf("tried %x", tried)
		}
		for i := range byte(100) {
			c.openAsked(t.Context(), content(i))
		}
		if len(tried) != askedMost {
			t.Errorf("tried %d contents, not %d", len(tried), askedMost)
		}
		time.Sleep(askedAgain + time.Second)
		tried = nil
		c.openAsked(t.Context(), content(0))
		if len(tried) != 1 || len(c.asked.when) != 1 {
			t.Errorf("tried %d after a while, %d remembered", len(tried), len(c.asked.when))
		}
	})
}

// A content that is opened because somebody asks for it is served at once.
func TestAskedContentIsServed(t *testing.T) {
	c, o := newCache(t, Options{}), &fakeOrigin{size: 1 << 20, chunk: 64 * kib}
	c.OnAsked(func(_ context.Context, content image.Digest) {
		if content == o.ContentRoot() {
			open(t, c, o)
		}
	})
	p := make([]byte, 64*kib)
	if err := c.Serve(within(t), o.named(3), p); err != nil || !bytes.Equal(p, o.content(3)) {
		t.Errorf("%v, or other content", err)
	}
	if err := c.Serve(within(t), (&fakeOrigin{seed: 1, size: 1 << 20, chunk: 64 * kib}).named(3), p); !errors.Is(err, ErrMiss) {
		t.Errorf("a content that nobody has: %v", err)
	}
}
