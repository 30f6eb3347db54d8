package peer

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"coppice/cache"
)

// seedOf is what a peer is ordered by. Nodes that compute it in different ways would read a root several times, so it never changes.
func seedOf(url string) uint64 {
	sum := sha256.Sum256([]byte("coppice peer 1\n" + url))
	return binary.LittleEndian.Uint64(sum[:])
}

// score orders the peers for a chunk: the highest comes first. It is the finalizer of MurmurHash3, which maps seeds one to one.
func score(seed uint64, key cache.Key) uint64 {
	x := seed ^ binary.LittleEndian.Uint64(key[:])
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// strangers is how many peers are asked what they have while nothing is known of them.
const strangers = 3

// turn is one peer that is asked for a chunk.
type turn struct {
	r     *remote
	score uint64
}

// fetchers returns who is asked to fetch a chunk, in this order: of a peer, only those before itself. mu is held.
func (c *Client) fetchers(chunk cache.Chunk) []turn {
	own, isPeer := c.self()
	mine := score(own, chunk.Key)
	turns := c.order(chunk, func(t turn) bool {
		return (c.o.All || !isPeer || t.score > mine) && !t.r.roots.lacks(chunk.Root)
	})
	if c.o.All {
		return turns
	}
	return turns[:min(len(turns), owners)]
}

// holders returns who is asked what it has already of an image: the first one that is known to have it open, or, while that is known of nobody, the
// first of those of whom nothing is known. mu is held.
func (c *Client) holders(chunk cache.Chunk) []turn {
	others := c.order(chunk, func(t turn) bool { return t.r.url != c.selfURL && !t.r.roots.lacks(chunk.Root) })
	for _, t := range others {
		if t.r.roots.has(chunk.Root) {
			return []turn{t}
		}
	}
	return others[:min(len(others), strangers)]
}

// order returns the peers that can be asked and that fit, in their order for a chunk. mu is held.
func (c *Client) order(chunk cache.Chunk, fits func(turn) bool) (out []turn) {
	for _, r := range c.list {
		if t := (turn{r, score(r.seed, chunk.Key)}); r.usable() && fits(t) {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b turn) int { return cmp.Compare(b.score, a.score) })
	return out
}
