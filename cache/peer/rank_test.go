package peer

import (
	"fmt"
	"slices"
	"testing"

	"coppice/cache"
)

// The order is a protocol: nodes of all versions have to agree on it.
func TestScoresNeverChange(t *testing.T) {
	key := cache.Key{1, 2, 3, 4, 5, 6, 7, 8}
	for url, want := range map[string]string{
		"https://node-1.example:443": "484aea1150f8d29a",
		"https://node-2.example:443": "fdbd41c3b70e6802",
	} {
		if got := fmt.Sprintf("%x", score(seedOf(url), key)); got != want {
			t.Errorf("%s: %s, not %s", url, got, want)
		}
	}
}

func urlsOf(n int) (urls []string) {
	for i := range n {
		urls = append(urls, fmt.Sprintf("http://10.0.0.%d:8440", i+1))
	}
	return urls
}

// asked returns the URLs that a client would ask to fetch a chunk.
func asked(c *Client, chunk cache.Chunk) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return urlsIn(c.fetchers(chunk))
}

func urlsIn(turns []turn) (urls []string) {
	for _, t := range turns {
		urls = append(urls, t.r.url)
	}
	return urls
}

// All nodes agree who is first for a chunk, every peer is first for its share, and the loss of one moves only what was its own.
func TestOrderIsSharedAndFair(t *testing.T) {
	const n = 10
	urls := urlsOf(n)
	pic := draw(10, 2000, 8)
	var all []*Client
	for _, u := range urls {
		all = append(all, dial(t, Options{Self: u}, urls...))
	}
	outsider, fewer := dial(t, Options{}, urls...), dial(t, Options{}, urls[1:]...)
	first := map[string]int{}
	for _, chunk := range pic.order {
		order := asked(outsider, chunk)
		if len(order) != owners || order[0] == order[1] {
			t.Fatalf("%q", order)
		}
		first[order[0]]++
		left := asked(fewer, chunk)
		if order[0] != urls[0] && left[0] != order[0] || order[0] == urls[0] && left[0] != order[1] {
			t.Fatalf("%q, and without the first peer %q", order, left)
		}
		for i, c := range all {
			got := asked(c, chunk)
			switch {
			case urls[i] == order[0] && len(got) != 0:
				t.Fatalf("the first of all asks %q", got)
			case urls[i] == order[1] && (len(got) != 1 || got[0] != order[0]):
				t.Fatalf("the second asks %q, not %q", got, order[:1])
			case urls[i] != order[0] && urls[i] != order[1] && fmt.Sprint(got) != fmt.Sprint(order):
				t.Fatalf("another one asks %q, not %q", got, order)
			}
		}
	}
	for u, k := range first {
		if k < 140 || k > 260 {
			t.Errorf("%s is first for %d of %d chunks", u, k, len(pic.order))
		}
	}
}

// A fetch is asked for only of who stands further up, whatever lists nodes have, so no request comes back to where it began.
func TestNoLoops(t *testing.T) {
	urls := urlsOf(12)
	pic := draw(11, 300, 8)
	a, b := dial(t, Options{Self: urls[0]}, urls[:8]...), dial(t, Options{Self: urls[1]}, append(urls[1:2:2], append(urls[4:12:12], urls[0])...)...)
	for _, chunk := range pic.order {
		fromA := asked(a, chunk)
		fromB := asked(b, chunk)
		for _, x := range fromA {
			for _, y := range fromB {
				if x == urls[1] && y == urls[0] {
					t.Fatal("two ask each other for a fetch")
				}
			}
		}
	}
}

// Before the origin, the first of those is asked that are known to have the image open, for what it has.
func TestWhoIsAskedForWhatItHas(t *testing.T) {
	urls := urlsOf(6)
	c := dial(t, Options{Self: urls[0]}, urls...)
	pic := draw(13, 100, 8)
	holders := func(chunk cache.Chunk) []string {
		c.mu.Lock()
		defer c.mu.Unlock()
		return urlsIn(c.holders(chunk))
	}
	outsider := dial(t, Options{}, urls[1:]...)
	if got, want := holders(pic.order[0]), asked(outsider, pic.order[0]); len(got) != strangers || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("while nothing is known %q are asked, not %q", got, want)
	}
	c.list[1].roots.learn(pic.root, false)
	if got := holders(pic.order[0]); len(got) != strangers || slices.Contains(got, urls[1]) || slices.Contains(got, urls[0]) {
		t.Errorf("%q are asked", got)
	}
	for _, r := range c.list[:3] {
		r.roots.learn(pic.root, true)
	}
	c.list[4].roots.learn(pic.root, false)
	few := dial(t, Options{}, urls[1:3]...)
	for _, chunk := range pic.order {
		if got, want := holders(chunk), asked(few, chunk); len(got) != 1 || got[0] != want[0] {
			t.Fatalf("%q, not %q", got, want[:1])
		}
	}
}

// Appliances are asked all, one after the other, in an order that spreads the load.
func TestAppliancesAreAskedAll(t *testing.T) {
	urls := urlsOf(3)
	c := dial(t, Options{All: true}, urls...)
	first := map[string]int{}
	for _, chunk := range draw(12, 300, 8).order {
		got := asked(c, chunk)
		if len(got) != 3 {
			t.Fatalf("%q", got)
		}
		first[got[0]]++
	}
	for u, k := range first {
		if k < 60 || k > 140 {
			t.Errorf("%s is first for %d of 300 chunks", u, k)
		}
	}
}
