package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"coppice/image"
	"coppice/union"
)

const (
	// rootCacheBytes is what an open image keeps of its chunks.
	rootCacheBytes = 32 << 20
	// openRootTime bounds how long it takes to find out what a root is.
	openRootTime = 60 * time.Second
	// rootPatience is how long a read waits for a source that fails, before it fails too.
	rootPatience = 60 * time.Second
)

const rootHint = "--root takes a raw disk image or block device that the daemon can read, or an image: oci:DIR:NAME:TAG, http://HOST/DIR:NAME:TAG or HOST/REPOSITORY:TAG"

// open opens a root by its reference.
func (a *roots) open(text string) (union.Base, error) {
	base, err := a.openRef(text)
	if err == nil {
		return base, nil
	}
	hint := rootHint
	if errors.Is(err, image.ErrRefused) {
		hint = "give the daemon's user credentials in docker's configuration"
	}
	return nil, fail(CodeBadRoot, hint, "%w", err)
}

func (a *roots) openRef(text string) (union.Base, error) {
	ref, err := image.ParseRef(text)
	if err != nil {
		return nil, err
	}
	if ref.Kind == image.KindFile {
		return union.OpenRaw(ref.Place)
	}
	o, err := image.NewSourceOptions(a.cfg.CA, a.cfg.TLSCert, a.cfg.TLSKey)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), openRootTime)
	defer cancel()
	im, src, err := image.OpenRef(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	return newImageRoot(im, src, text), nil
}

// checkRoot refuses references that mean something else to the daemon than to who gave them.
func checkRoot(text string) error {
	ref, err := image.ParseRef(text)
	if err != nil {
		return fail(CodeBadRequest, rootHint, "%w", err)
	}
	if path := ref.Path(); path != "" && !filepath.IsAbs(path) {
		return fail(CodeBadRequest, "give an absolute path", "root %q is not an absolute path", text)
	}
	return nil
}

// rootPath is the path on this machine that a root is at, or "".
func rootPath(text string) string {
	if ref, err := image.ParseRef(text); err == nil {
		return ref.Path()
	}
	return ""
}

// imageRoot is an image as the root of devices. Every byte that it gives was verified against the content root that layers on it pin.
type imageRoot struct {
	im       *image.Image
	src      image.Source
	name     string
	patience time.Duration
	log      *slog.Logger
	warned   atomic.Int64 // Unix seconds of the last warning

	ctx    context.Context // ends when the root is closed
	cancel context.CancelFunc
}

func newImageRoot(im *image.Image, src image.Source, name string) *imageRoot {
	im.Cache(rootCacheBytes)
	r := &imageRoot{im: im, src: src, name: name, patience: rootPatience, log: slog.Default()}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Size returns the length in bytes.
func (r *imageRoot) Size() int64 { return r.im.Size() }

// Pin is the content root: who made the image, and where it lies, does not matter.
func (r *imageRoot) Pin() union.Pin {
	return union.Pin{Kind: union.PinImage, SizeBytes: r.im.Size(), Digest: union.Digest(r.im.ContentRoot())}
}

// File returns nil: an image is no file.
func (r *imageRoot) File() *os.File { return nil }

// NextData returns where data begins that is not zeros, at off or after it, as far as the table can be read.
func (r *imageRoot) NextData(off int64) int64 {
	next, err := r.im.NextData(r.ctx, off)
	if err != nil {
		return off
	}
	return next
}

// ReadAsync reads in a goroutine of its own, which waits for a source that fails as long as the patience lasts.
func (r *imageRoot) ReadAsync(p []byte, off int64, done func(error)) {
	go func() { done(r.read(p, off)) }()
}

func (r *imageRoot) read(p []byte, off int64) error {
	ctx, cancel := context.WithTimeout(r.ctx, r.patience)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := r.im.Read(ctx, p, off)
		if err == nil || errors.Is(err, image.ErrClosed) {
			return err
		}
		r.warn(err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("read root %s: %w", r.name, err)
		}
	}
}

// warn says at most every ten seconds what is wrong with the source.
func (r *imageRoot) warn(err error) {
	now := time.Now().Unix()
	if last := r.warned.Load(); now-last >= 10 && r.warned.CompareAndSwap(last, now) {
		r.log.Warn("root cannot be read; reads of it wait", "root", r.name, "error", oneLine(err))
	}
}

// Close closes the image and its source.
func (r *imageRoot) Close() error {
	r.cancel()
	return errors.Join(r.im.Close(), r.src.Close())
}
