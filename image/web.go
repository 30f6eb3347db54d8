package image

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Web is an OCI layout on a web server, which has to answer requests for ranges, as all do for plain files.
type Web struct {
	base   string
	client *client
}

// OpenWeb returns the layout at an http or https URL. Nothing is read yet.
func OpenWeb(base string, o SourceOptions) (*Web, error) {
	u, err := url.Parse(base)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%.200q is not http://HOST/DIR or https://HOST/DIR: %w", base, ErrBadRef)
	}
	if u.User != nil {
		return nil, fmt.Errorf("%s: a password in a URL ends up in logs, and is refused: %w", u.Redacted(), ErrBadRef)
	}
	w := &Web{base: strings.TrimRight(base, "/")}
	w.client, _ = newClient(w, o)
	return w, nil
}

// String returns the URL.
func (w *Web) String() string { return w.base }

// Close closes connections that wait to be used again.
func (w *Web) Close() error {
	w.client.close()
	return nil
}

func (w *Web) blobURL(d Digest) string {
	return w.base + "/" + blobsDir + "/" + strings.TrimPrefix(d.String(), digestPrefix)
}

func (w *Web) index(ctx context.Context) (blobList, error) {
	data, err := w.client.fetch(ctx, w.base+"/"+ocispec.ImageIndexFile, http.Header{}, maxIndex, false)
	if err != nil {
		return nil, fmt.Errorf("read index of %s: %w", w, err)
	}
	return decodeIndex(data, w)
}

// Tags returns the names in the index.
func (w *Web) Tags(ctx context.Context) ([]string, error) {
	index, err := w.index(ctx)
	if err != nil {
		return nil, err
	}
	return index.tags(), nil
}

// resolve returns digest and size of the manifest that a name in the index means.
func (w *Web) resolve(ctx context.Context, tag string) (Digest, int64, error) {
	index, err := w.index(ctx)
	if err != nil {
		return Digest{}, 0, err
	}
	return index.find(tag, w)
}

// Manifest returns what a name in the index, or a digest, means.
func (w *Web) Manifest(ctx context.Context, name string) ([]byte, error) {
	digest, err := ParseDigest(name)
	if err != nil {
		if digest, _, err = w.resolve(ctx, name); err != nil {
			return nil, err
		}
	}
	data, err := w.client.fetch(ctx, w.blobURL(digest), http.Header{}, maxManifest, true)
	if err != nil {
		return nil, fmt.Errorf("manifest of %s at %s: %w", name, w, err)
	}
	return data, checkManifest(data, digest, name, w)
}

// ReadBlob asks for a range.
func (w *Web) ReadBlob(ctx context.Context, blob ocispec.Descriptor, p []byte, off int64) error {
	digest, err := ParseDigest(string(blob.Digest))
	if err != nil {
		return err
	}
	return w.client.readRange(ctx, w.blobURL(digest), blob, p, off)
}

// OpenBlob asks for a whole blob.
func (w *Web) OpenBlob(ctx context.Context, blob ocispec.Descriptor) (io.ReadCloser, error) {
	digest, err := ParseDigest(string(blob.Digest))
	if err != nil {
		return nil, err
	}
	r, err := w.client.open(ctx, w.blobURL(digest), blob)
	if err != nil {
		return nil, fmt.Errorf("blob %s at %s: %w", digest, w, err)
	}
	return r, nil
}
