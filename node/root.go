package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"coppice/cache"
	"coppice/cache/prefetch"
	"coppice/image"
	"coppice/union"
)

const (
	// rootCacheBytes is what an open image keeps of its chunks where there is no cache.
	rootCacheBytes = 32 << 20
	// openRootTime bounds how long it takes to find out what a root is.
	openRootTime = 60 * time.Second
	// MaxReplicas is how many references a root may have.
	MaxReplicas = 32
)

const credentialsHint = "give the daemon's user credentials in docker's configuration"

const rootHint = "--root takes a raw disk image or block device that the daemon can read, or an image: oci:DIR:NAME:TAG, http://HOST/DIR:NAME:TAG or HOST/REPOSITORY:TAG"

// rootWanted says which root to open.
type rootWanted struct {
	refs []image.Ref // replicas of one image, or one raw file
	// pin is what the root has to be, unless zero: then references that cannot be reached do not matter as long as one is good, and
	// neither do those that mean other content by now.
	pin union.Pin
	// alone keeps the references out of what the devices share.
	alone bool
}

// content is the content root that is wanted, or zero.
func (w rootWanted) content() image.Digest {
	if w.pin.Kind != union.PinImage {
		return image.Digest{}
	}
	return image.Digest(w.pin.Digest)
}

// wantRoot parses references. Those whose manifest is known are pinned to it.
func wantRoot(texts []string, manifests map[string]image.Digest) (rootWanted, error) {
	w := rootWanted{}
	for _, text := range texts {
		ref, err := image.ParseRef(text)
		if err != nil {
			return w, fail(CodeBadRoot, rootHint, "%w", err)
		}
		w.refs = append(w.refs, ref.Pinned(manifests[text]))
	}
	return w, nil
}

// open opens a root.
func (a *roots) open(w rootWanted) (union.Base, error) {
	base, err := a.openAny(w)
	var explained *Error
	if err == nil || errors.As(err, &explained) {
		return base, err
	}
	hint := rootHint
	switch {
	case errors.Is(err, image.ErrRefused):
		hint = credentialsHint
	case errors.Is(err, image.ErrOther):
		return nil, fail(CodeOtherRoot, "give a root with the content that the layer was made on", "%w", err)
	}
	return nil, fail(CodeBadRoot, hint, "%w", err)
}

func (a *roots) openAny(w rootWanted) (union.Base, error) {
	if len(w.refs) == 1 && w.refs[0].Kind == image.KindFile {
		return a.raw.open(w.refs[0].Place)
	}
	ctx, cancel := context.WithTimeout(context.Background(), openRootTime)
	defer cancel()
	s, err := a.share(ctx, w)
	if err != nil {
		return nil, err
	}
	return newImageRoot(a, s), nil
}

// openFor opens the root that a layer stands on, for one user, who may know another place of it than the devices do.
func (a *roots) openFor(text string, pin union.Pin) (union.Base, error) {
	w, err := wantRoot([]string{text}, nil)
	if err != nil {
		return nil, err
	}
	w.pin, w.alone = pin, true
	base, err := a.open(w)
	if err != nil {
		return nil, err
	}
	return past(base), nil
}

// checkRoot refuses references that mean something else to the daemon than to who gave them.
func checkRoot(text string) (image.Ref, error) {
	ref, err := image.ParseRef(text)
	if err != nil {
		return ref, fail(CodeBadRequest, rootHint, "%w", err)
	}
	if path := ref.Path(); path != "" && !filepath.IsAbs(path) {
		return ref, fail(CodeBadRequest, "give an absolute path", "root %q is not an absolute path", text)
	}
	return ref, nil
}

// checkRoots refuses references that cannot be replicas of one root.
func checkRoots(texts []string) error {
	if len(texts) > MaxReplicas {
		return fail(CodeBadRequest, "give fewer", "%d roots are more than %d", len(texts), MaxReplicas)
	}
	for i, text := range texts {
		ref, err := checkRoot(text)
		if err != nil {
			return err
		}
		if slices.Contains(texts[:i], text) {
			return fail(CodeBadRequest, "give each once", "root %s is given twice", text)
		}
		if ref.Kind == image.KindFile && len(texts) > 1 {
			return fail(CodeBadRequest, "make an image of it: coppice image build; or give it alone",
				"root %s is a raw disk, which can have no replicas: nothing proves that two have the same content", text)
		}
	}
	return nil
}

func rootIsRaw(text string) bool {
	ref, err := image.ParseRef(text)
	return err == nil && ref.Kind == image.KindFile
}

// rootPaths are the paths on this machine that roots are at.
func rootPaths(texts []string) (paths []string) {
	for _, text := range texts {
		if ref, err := image.ParseRef(text); err == nil && ref.Path() != "" {
			paths = append(paths, ref.Path())
		}
	}
	return paths
}

// roots returns the references of the device's root.
func (r CreateRequest) roots() []string {
	if len(r.Roots) == 0 && r.Root != "" {
		return []string{r.Root}
	}
	return r.Roots
}

// setRoots replaces the references of the device's root. The first one stays in Root, where it is found by programs that know no other.
func (r *CreateRequest) setRoots(texts []string) {
	r.Root, r.Roots = "", nil
	if len(texts) > 0 {
		r.Root = texts[0]
	}
	if len(texts) > 1 {
		r.Roots = slices.Clone(texts)
	}
}

// rootNames is for messages.
func (r CreateRequest) rootNames() string { return strings.Join(r.roots(), ", ") }

// imageRoot is an image as the root of one user: a device, or a detach. What it reads is shared with all others on the same content. Every
// byte that it gives was verified against the content root that layers on it pin.
type imageRoot struct {
	set    *rootSet
	owner  *roots
	reader *cache.Reader   // nil where the image is not read through the cache
	ctx    context.Context // ends when the root is closed
	cancel context.CancelFunc
	work   sync.WaitGroup // in the background

	streams  *prefetch.Streams // nil: nothing is read ahead
	ahead    chan prefetch.Range
	recorder atomic.Pointer[prefetch.Recorder] // nil: nothing is recorded
}

func newImageRoot(owner *roots, s *rootSet) *imageRoot {
	r := &imageRoot{set: s, owner: owner}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if s.cached != nil {
		r.reader = s.cached.Reader()
		r.startReadahead()
	}
	return r
}

// Size returns the length in bytes.
func (r *imageRoot) Size() int64 { return r.set.Size() }

// Pin is the content root: who made the image, and where it lies, does not matter.
func (r *imageRoot) Pin() union.Pin {
	return union.Pin{Kind: union.PinImage, SizeBytes: r.set.Size(), Digest: union.Digest(r.set.ContentRoot())}
}

// File returns nil: an image is no file.
func (r *imageRoot) File() *os.File { return nil }

// NextData returns where data begins that is not zeros, at off or after it, as far as the table can be read.
func (r *imageRoot) NextData(off int64) int64 {
	next, err := r.set.NextData(r.ctx, off)
	if err != nil {
		return off
	}
	return next
}

// TryRead reads from the memory of the cache.
func (r *imageRoot) TryRead(p []byte, off int64) (union.Origins, bool) {
	if r.reader == nil {
		return 0, false
	}
	r.note(off, int64(len(p)))
	from, ok := r.reader.TryReadFrom(p, off)
	return originsOf(from), ok
}

// originOf is where a device's data comes from that has it from a source of the cache.
var originOf = [...]struct {
	source cache.Source
	origin union.Origins
}{
	{cache.FromMemory, union.FromMemory}, {cache.FromDisk, union.FromDisk}, {cache.FromPeers, union.FromPeers},
	{cache.FromAppliance, union.FromAppliance}, {cache.FromOrigin, union.FromRoot}, {cache.FromZeros, union.FromZeros},
}

func originsOf(from cache.Sources) (o union.Origins) {
	for _, c := range originOf {
		if from.Has(c.source) {
			o |= c.origin
		}
	}
	return o
}

// ReadAsync reads in a goroutine of its own, which waits while no replica answers, for as long as the patience lasts.
func (r *imageRoot) ReadAsync(p []byte, off int64, done func(union.Origins, error)) {
	go func() {
		r.set.guests.enter()
		from, err := r.read(p, off)
		r.set.guests.leave()
		done(from, rootError(err))
	}()
}

func (r *imageRoot) read(p []byte, off int64) (union.Origins, error) {
	if r.reader == nil {
		return union.FromRoot, r.set.Read(r.ctx, p, off)
	}
	from, err := r.reader.ReadFrom(r.ctx, p, off)
	return originsOf(from), err
}

// stats returns what was read through the cache, or nil where nothing can be; r may be nil.
func (r *imageRoot) stats() *cache.ReaderStats {
	if r == nil || r.reader == nil {
		return nil
	}
	s := r.reader.Stats()
	return &s
}

// Interrupt ends what is being read, and all that would be.
func (r *imageRoot) Interrupt() { r.cancel() }

func rootError(err error) error {
	if err != nil {
		return fmt.Errorf("read root: %w", err)
	}
	return nil
}

// Close leaves the image to its other users.
func (r *imageRoot) Close() error {
	r.cancel()
	r.work.Wait()
	r.endRecord()
	if r.reader != nil {
		r.reader.Close()
	}
	return r.owner.leave(r.set)
}
