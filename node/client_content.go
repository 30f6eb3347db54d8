package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/http"
	"net/url"

	"coppice/union"
)

// WithContent calls do with the content of a sealed layer, which the daemon reads, or this process itself where none runs; cfg says then how
// a root that is an image is reached.
func WithContent(ctx context.Context, c *Client, cfg ImageConfig, r ContentRequest, do func(LayerContent) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	did := false
	err := receive(ctx, c, http.MethodPost, "contents", r, func(o OpenedContent) error {
		did = true
		err := do(&remoteContent{ctx: ctx, client: c, OpenedContent: o})
		if err == nil {
			err = errDone
		}
		return err
	})
	switch {
	case errors.Is(err, errDone):
		return nil
	case CodeOf(err) == CodeNoDaemon && !did:
		return withContentOffline(c.runDir, cfg, r, do)
	case err == nil:
		err = errCutShort
	}
	return about("read layer "+r.Layer, err)
}

// PrepareContent makes ready to seal what a device holds, for its content to be read; WithDeviceContent or CancelContent with the token is to follow soon.
func (c *Client) PrepareContent(ctx context.Context, name string, r ReadRequest) (PreparedFreeze, error) {
	var p PreparedFreeze
	return p, about("read "+name, c.send(ctx, http.MethodPost, devicePath(name, "content"), r, &p, true))
}

// CancelContent takes a prepared reading back, or ends one.
func (c *Client) CancelContent(ctx context.Context, name, token string) error {
	return about("cancel reading "+name, c.send(ctx, http.MethodDelete, devicePath(name, "content", token), nil, &struct{}{}, true))
}

// WithDeviceContent seals what a device holds, and calls do with its content as it was then. When do has returned, nothing is left of the seal.
func (c *Client) WithDeviceContent(ctx context.Context, name, token string, do func(LayerContent, OpenedCut) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := receive(ctx, c, http.MethodPost, devicePath(name, "content", token), nil, func(o OpenedCut) error {
		err := do(&remoteContent{ctx: ctx, client: c, OpenedContent: o.OpenedContent}, o)
		// Where that fails the daemon does the same, a little later, because the connection is closed.
		if ended := c.CancelContent(ctx, name, token); err == nil {
			err = ended
		}
		if err == nil {
			err = errDone
		}
		return err
	})
	switch {
	case errors.Is(err, errDone):
		return nil
	case err == nil:
		err = errCutShort
	}
	return about("read "+name, err)
}

var errDone = errors.New("done")

// remoteContent is a content that the daemon has open.
type remoteContent struct {
	ctx    context.Context
	client *Client
	OpenedContent
}

// Size returns the size of the device in bytes.
func (c *remoteContent) Size() int64 { return c.SizeBytes }

// Pin identifies the root.
func (c *remoteContent) Pin() union.Pin { return c.OpenedContent.Pin }

// Root refers to it.
func (c *remoteContent) Root() string { return c.OpenedContent.Root }

func (c *remoteContent) path(what string, query url.Values) string {
	return "contents/" + url.PathEscape(c.Token) + "/" + what + "?" + query.Encode()
}

// ReadAt asks the daemon.
func (c *remoteContent) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < c.SizeBytes {
		q := p[n:min(n+maxContentRead, len(p))]
		q = q[:min(int64(len(q)), c.SizeBytes-off)]
		if err := c.read(q, off); err != nil {
			return n, err
		}
		n, off = n+len(q), off+int64(len(q))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (c *remoteContent) read(p []byte, off int64) error {
	query := url.Values{"off": {fmt.Sprint(off)}, "len": {fmt.Sprint(len(p))}}
	return c.client.readBytes(c.ctx, c.client.contents, http.MethodGet, c.path("data", query), nil, p)
}

// ReadRanges asks the daemon for as many at once as it takes; what is longer it asks for by itself.
func (c *remoteContent) ReadRanges(p []byte, ranges []ContentRange) error {
	for len(ranges) > 0 {
		n, bytes := 0, int64(0)
		for n < min(len(ranges), maxContentRanges) && bytes+ranges[n].Len <= maxRangesBytes {
			bytes += ranges[n].Len
			n++
		}
		var err error
		if n == 0 {
			n, bytes = 1, ranges[0].Len
			_, err = c.ReadAt(p[:bytes], ranges[0].Off)
		} else {
			err = c.client.readBytes(c.ctx, c.client.contents, http.MethodPost, c.path("ranges", nil), RangesRequest{ranges[:n]}, p[:bytes])
		}
		if err != nil {
			return err
		}
		p, ranges = p[bytes:], ranges[n:]
	}
	return nil
}

// NextData asks the daemon. Where it does not know, there may be data.
func (c *remoteContent) NextData(off int64) int64 {
	var n NextContent
	query := url.Values{"off": {fmt.Sprint(off)}}
	if err := c.client.send(c.ctx, http.MethodGet, c.path("next", query), nil, &n, true); err != nil {
		return off
	}
	if n.Next < 0 {
		return math.MaxInt64
	}
	return max(off, n.Next)
}

// Changed asks the daemon.
func (c *remoteContent) Changed() iter.Seq2[union.ChangedExtent, error] {
	return func(yield func(union.ChangedExtent, error) bool) {
		complete := false
		err := receive(c.ctx, c.client, http.MethodGet, c.path("changed", nil), nil, func(p ChangedPart) error {
			for _, x := range p.Extents {
				if !yield(x, nil) {
					return errDone
				}
			}
			complete = p.Total != nil
			return nil
		})
		if err == nil && !complete {
			err = errCutShort
		}
		if err != nil && !errors.Is(err, errDone) {
			yield(union.ChangedExtent{}, err)
		}
	}
}

// Prints asks the daemon.
func (c *remoteContent) Prints() iter.Seq2[union.BlockPrint, error] {
	return func(yield func(union.BlockPrint, error) bool) {
		complete := false
		err := receive(c.ctx, c.client, http.MethodGet, c.path("prints", nil), nil, func(p PrintsPart) error {
			if len(p.Blocks)%printBytes != 0 {
				return fmt.Errorf("read the daemon's answer: %d bytes of prints", len(p.Blocks))
			}
			for b := p.Blocks; len(b) > 0; b = b[printBytes:] {
				if !yield(union.BlockPrint{Block: binary.LittleEndian.Uint64(b), Print: binary.LittleEndian.Uint64(b[8:])}, nil) {
					return errDone
				}
			}
			complete = len(p.Blocks) == 0
			return nil
		})
		if err == nil && !complete {
			err = errCutShort
		}
		if err != nil && !errors.Is(err, errDone) {
			yield(union.BlockPrint{}, err)
		}
	}
}
