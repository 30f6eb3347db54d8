package node

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"coppice/image"
)

// Index tells which index of its files a device's root has.
func (c *Client) Index(ctx context.Context, name string) (IndexInfo, error) {
	var info IndexInfo
	return info, about("read index of "+name, c.send(ctx, http.MethodGet, devicePath(name, "index"), nil, &info, true))
}

// IndexReader reads the index of the files of a device's root from the daemon, which verifies it. It may be read by any number of goroutines, until its context ends.
type IndexReader struct {
	ctx    context.Context
	client *Client
	info   IndexInfo
}

// IndexReader returns what reads an index that Index has told of.
func (c *Client) IndexReader(ctx context.Context, info IndexInfo) *IndexReader {
	return &IndexReader{ctx, c, info}
}

// Size returns the length of the index in bytes.
func (x *IndexReader) Size() int64 { return x.info.Statement.SizeBytes }

// ContentRoot identifies the content of the index.
func (x *IndexReader) ContentRoot() image.Digest { return x.info.Statement.Index }

// ReadAt asks the daemon.
func (x *IndexReader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read index at %d", off)
	}
	for n < len(p) && off < x.Size() {
		q := p[n:min(n+maxIndexRead, len(p))]
		q = q[:min(int64(len(q)), x.Size()-off)]
		query := url.Values{"index": {x.ContentRoot().String()}, "off": {fmt.Sprint(off)}, "len": {fmt.Sprint(len(q))}}
		if err := x.client.readBytes(x.ctx, x.client.http, http.MethodGet, devicePath(x.info.Device, "index", "data")+"?"+query.Encode(), nil, q); err != nil {
			return n, about("read index of "+x.info.Device, err)
		}
		n, off = n+len(q), off+int64(len(q))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readBytes fills p with what a call answers.
func (c *Client) readBytes(ctx context.Context, by *http.Client, method, path string, in any, p []byte) error {
	resp, err := c.requestBy(ctx, by, method, path, in, true)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return decodeAnswer(resp, nil)
	}
	if _, err := io.ReadFull(resp.Body, p); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}
