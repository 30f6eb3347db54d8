package peer

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"coppice/cache"
	"coppice/image"
)

const (
	chunksPath = "/v1/chunks/"
	// idHeader has the [NewID] of who asks.
	idHeader = "Coppice-Node"
	maxID    = 64
	// urlHeader has the URL of who asks, where it is a peer itself.
	urlHeader = "Coppice-Peer"
	// maxQuery is longer than any query that is right.
	maxQuery = 256
	// maxIndex is beyond the last chunk of the largest image, 1 PiB in chunks of 4 KiB, and beyond the parts of its table.
	maxIndex = 2 * cache.TableIndex
)

// target returns path and query of a request for a chunk: held asks for what is there without a fetch.
func target(c cache.Chunk, held bool) string {
	to := chunksPath + c.Key.String() + "?len=" + strconv.Itoa(c.Len)
	if !held {
		to += "&root=" + c.Root.String() + "&index=" + strconv.FormatInt(c.Index, 10)
	}
	return to
}

// parseRequest is the inverse of target. The root of a chunk that is not to be fetched is zero.
func parseRequest(digest, query string) (cache.Chunk, error) {
	var c cache.Chunk
	fail := func(what string) (cache.Chunk, error) {
		return cache.Chunk{}, fmt.Errorf("%s: %w", what, ErrBadRequest)
	}
	if len(query) > maxQuery {
		return fail("query too long")
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return fail("query cannot be parsed")
	}
	if c.Key, err = image.ParseDigest(digest); err != nil || c.Key == (image.Digest{}) {
		return fail("no digest")
	}
	for name, v := range values {
		if len(v) != 1 || name != "len" && name != "root" && name != "index" {
			return fail("len, root and index are known, each once")
		}
	}
	n, err := strconv.ParseUint(values.Get("len"), 10, 31)
	if err != nil || n == 0 || n > image.MaxChunkSize {
		return fail("len is not that of a chunk")
	}
	c.Len = int(n)
	if values.Has("root") != values.Has("index") {
		return fail("root and index belong together")
	}
	if !values.Has("root") {
		return c, nil
	}
	if c.Root, err = image.ParseDigest(values.Get("root")); err != nil || c.Root == (image.Digest{}) {
		return fail("root is not a content root")
	}
	at, err := strconv.ParseUint(values.Get("index"), 10, 63)
	if err != nil || at >= maxIndex {
		return fail("index is not that of a chunk")
	}
	c.Index = int64(at)
	return c, nil
}

// statusOf returns what an error is answered with.
func statusOf(err error) int {
	if isMiss(err) {
		return http.StatusNotFound
	}
	return http.StatusBadGateway
}
