package image

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	blobsDir = "blobs/sha256"
	// workDir holds what other programs have no business with: locks, and what is not complete.
	workDir   = ".coppice"
	indexLock = workDir + "/index.lock" // exclusive while the index is changed
	blobsLock = workDir + "/blobs.lock" // shared by those who add blobs, exclusive for those who remove them
	partialAt = workDir + "/blob-*"
	buildAt   = workDir + "/build-"

	openFiles = 64
	// staleBuild is the age at which what a build left is taken for given up.
	staleBuild = 7 * 24 * time.Hour
)

// Layout is a directory in the OCI layout. Several programs may use it at once.
type Layout struct {
	dir   string
	files *lru.Cache[Digest, blobFile]
}

// blobFile is a blob that is open.
type blobFile struct {
	*os.File
	info fs.FileInfo
}

// OpenLayout opens a layout for reading. It writes nothing until it is told to.
func OpenLayout(dir string) (*Layout, error) {
	data, err := readCapped(filepath.Join(dir, ocispec.ImageLayoutFile), 4096)
	var mark ocispec.ImageLayout
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open image directory %s: no OCI layout: %w", dir, ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("open image directory: %w", err)
	}
	if err := decodeJSON(data, &mark); err != nil {
		return nil, fmt.Errorf("open image directory %s: file %s: %w", dir, ocispec.ImageLayoutFile, err)
	}
	if mark.Version != ocispec.ImageLayoutVersion {
		return nil, fmt.Errorf("open image directory %s: OCI layout %.80q, this program knows %s: %w",
			dir, mark.Version, ocispec.ImageLayoutVersion, ErrVersion)
	}
	files, err := lru.NewWithEvict(openFiles, func(_ Digest, f blobFile) { f.Close() })
	if err != nil {
		return nil, fmt.Errorf("open image directory: %w", err)
	}
	return &Layout{dir: dir, files: files}, nil
}

// CreateLayout opens a layout, and makes it first where there is none. A directory that holds anything else is refused.
func CreateLayout(dir string) (*Layout, error) {
	if err := makeLayout(dir); err != nil {
		return nil, fmt.Errorf("make image directory %s: %w", dir, err)
	}
	return OpenLayout(dir)
}

func makeLayout(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		_, err := os.Stat(filepath.Join(dir, ocispec.ImageLayoutFile))
		onlyOurs := len(entries) == 1 && entries[0].Name() == workDir // a creation that was interrupted
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			return err
		case !onlyOurs:
			return fmt.Errorf("holds something that is no OCI layout: %w", ErrExists)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, workDir), 0o755); err != nil {
		return err
	}
	unlock, err := flock(filepath.Join(dir, indexLock), unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(dir, ocispec.ImageLayoutFile)); err == nil {
		return nil // somebody else did it
	}
	if err := os.MkdirAll(filepath.Join(dir, blobsDir), 0o755); err != nil {
		return err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	return errors.Join(
		writeJSON(dir, ocispec.ImageIndexFile, index),
		writeJSON(dir, ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}))
}

// String returns the directory as a reference begins.
func (l *Layout) String() string { return "oci:" + l.dir }

// Close closes the files that were read.
func (l *Layout) Close() error {
	l.files.Purge()
	return nil
}

func (l *Layout) path(name string) string { return filepath.Join(l.dir, name) }

func (l *Layout) blobPath(d Digest) string {
	return filepath.Join(l.dir, blobsDir, strings.TrimPrefix(d.String(), digestPrefix))
}

// readIndex reads index.json.
func (l *Layout) readIndex() ([]byte, error) {
	data, err := readCapped(l.path(ocispec.ImageIndexFile), maxIndex)
	if err != nil {
		return nil, fmt.Errorf("read index of %s: %w", l, err)
	}
	return data, nil
}

func (l *Layout) index() (blobList, error) {
	data, err := l.readIndex()
	if err != nil {
		return nil, err
	}
	return decodeIndex(data, l)
}

// decodeIndex reads index.json as far as a reader needs it.
func decodeIndex(data []byte, of fmt.Stringer) (blobList, error) {
	var index struct {
		SchemaVersion int      `json:"schemaVersion"`
		Manifests     blobList `json:"manifests"`
	}
	if err := decodeJSON(data, &index); err != nil {
		return nil, &CorruptError{"index", fmt.Sprintf("of %s", of), err.Error()}
	}
	if index.SchemaVersion != 2 {
		return nil, &CorruptError{"index", fmt.Sprintf("of %s", of), fmt.Sprintf("schema version %d", index.SchemaVersion)}
	}
	return index.Manifests, nil
}

// find returns the digest that an index has for a tag, and the size that it has for it.
func (l blobList) find(tag string, of fmt.Stringer) (Digest, int64, error) {
	for _, b := range l {
		if b.Annotations.RefName != tag {
			continue
		}
		d, err := ParseDigest(b.Digest)
		if err != nil {
			return d, 0, &CorruptError{"index", fmt.Sprintf("of %s", of), err.Error()}
		}
		return d, b.Size, nil
	}
	return Digest{}, 0, fmt.Errorf("image %s in %s: %w", tag, of, ErrNotFound)
}

// tags returns the tags of an index, in order.
func (l blobList) tags() []string {
	tags := []string{}
	for _, b := range l {
		if tag := b.Annotations.RefName; tag != "" {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}

// Tags returns the names in the index.
func (l *Layout) Tags(context.Context) ([]string, error) {
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	return index.tags(), nil
}

// Manifest returns what a name in the index, or a digest, means.
func (l *Layout) Manifest(_ context.Context, name string) ([]byte, error) {
	digest, err := ParseDigest(name)
	if err != nil {
		index, err := l.index()
		if err != nil {
			return nil, err
		}
		if digest, _, err = index.find(name, l); err != nil {
			return nil, err
		}
	}
	data, err := readCapped(l.blobPath(digest), maxManifest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("manifest of %s in %s: %w", name, l, ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("manifest of %s in %s: %w", name, l, err)
	}
	return data, checkManifest(data, digest, name, l)
}

// ReadBlob reads from the blob's file.
func (l *Layout) ReadBlob(_ context.Context, blob ocispec.Descriptor, p []byte, off int64) error {
	digest, err := ParseDigest(string(blob.Digest))
	if err != nil {
		return err
	}
	for range 2 { // a file may be closed in favour of another just before it is read, or be gone from an NFS server
		var f blobFile
		if f, err = l.file(digest); err != nil {
			return err
		}
		if _, err = f.ReadAt(p, off); err == nil {
			return nil
		}
		l.files.Remove(digest)
		if errors.Is(err, io.EOF) {
			break
		}
	}
	if errors.Is(err, io.EOF) {
		return &CorruptError{"blob", fmt.Sprintf("%s in %s", digest, l), "is cut short"}
	}
	return err
}

// file returns the blob's file, opened anew where another one was put in its place. One that was removed can be read as long as it stays open.
func (l *Layout) file(d Digest) (blobFile, error) {
	path := l.blobPath(d)
	now, statErr := os.Stat(path)
	if f, ok := l.files.Get(d); ok && (statErr != nil || os.SameFile(f.info, now)) {
		return f, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return blobFile{}, fmt.Errorf("blob %s in %s: %w", d, l, ErrNotFound)
	}
	if err != nil {
		return blobFile{}, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return blobFile{}, err
	}
	l.files.Remove(d)
	l.files.Add(d, blobFile{f, info})
	return blobFile{f, info}, nil
}

// isWhole reports whether a blob that is there has the content that it should have.
func (l *Layout) isWhole(ctx context.Context, blob ocispec.Descriptor) (bool, error) {
	digest, err := ParseDigest(string(blob.Digest))
	if err != nil {
		return false, err
	}
	r, err := l.OpenBlob(ctx, blob)
	if err != nil {
		return false, err
	}
	defer r.Close()
	h := &hashWriter{w: io.Discard, h: sha256.New()}
	if _, err := io.Copy(h, &contextReader{ctx, r}); err != nil {
		return false, ctx.Err() // what cannot be read is not whole
	}
	return h.check(blob, digest, "") == nil, nil
}

// OpenBlob opens the blob's file.
func (l *Layout) OpenBlob(_ context.Context, blob ocispec.Descriptor) (io.ReadCloser, error) {
	digest, err := ParseDigest(string(blob.Digest))
	if err != nil {
		return nil, err
	}
	f, err := os.Open(l.blobPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("blob %s in %s: %w", digest, l, ErrNotFound)
	}
	return f, err
}

// HasBlob reports whether a blob is there, in its full length. What is there was verified when it came.
func (l *Layout) HasBlob(_ context.Context, blob ocispec.Descriptor) (bool, error) {
	digest, err := ParseDigest(string(blob.Digest))
	if err != nil {
		return false, err
	}
	st, err := os.Stat(l.blobPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && st.Size() == blob.Size, err
}

// PutBlob writes a blob. It appears under its name when it is complete, verified and durable.
func (l *Layout) PutBlob(ctx context.Context, blob ocispec.Descriptor, r io.Reader) error {
	digest, err := ParseDigest(string(blob.Digest))
	if err != nil {
		return err
	}
	f, err := l.createPartial()
	if err != nil {
		return fmt.Errorf("write blob to %s: %w", l, err)
	}
	defer f.Close()
	h := &hashWriter{w: f, h: sha256.New()}
	_, err = io.Copy(h, io.LimitReader(&contextReader{ctx, r}, blob.Size+1))
	if err == nil {
		err = h.check(blob, digest, "blob "+digest.String())
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = l.adopt(f.Name(), digest)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write blob to %s: %w", l, err), os.Remove(f.Name()))
	}
	return nil
}

// createPartial makes a file that is locked as long as it is open, so that nobody takes it for left behind.
func (l *Layout) createPartial() (*os.File, error) {
	if err := os.MkdirAll(l.path(workDir), 0o755); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(l.path(workDir), filepath.Base(partialAt))
	if err != nil {
		return nil, err
	}
	err = errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), f.Chmod(0o644))
	if err != nil {
		f.Close()
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	return f, nil
}

// adopt gives a complete and durable file its name among the blobs.
func (l *Layout) adopt(path string, d Digest) error {
	if err := os.MkdirAll(l.path(blobsDir), 0o755); err != nil {
		return err
	}
	if err := os.Rename(path, l.blobPath(d)); err != nil {
		return err
	}
	return syncDir(l.path(blobsDir))
}

// PutManifest stores a manifest and lets a tag mean it.
func (l *Layout) PutManifest(ctx context.Context, tag string, data []byte) error {
	desc := descriptor(ocispec.MediaTypeImageManifest, data)
	if err := l.PutBlob(ctx, desc, bytes.NewReader(data)); err != nil {
		return err
	}
	var m struct {
		ArtifactType string `json:"artifactType"`
	}
	if err := decodeJSON(data, &m); err != nil {
		return fmt.Errorf("write manifest to %s: %w", l, err)
	}
	desc.ArtifactType = m.ArtifactType
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	return l.changeIndex(func(index *ocispec.Index) error {
		i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Annotations[ocispec.AnnotationRefName] == tag })
		var before *ocispec.Descriptor
		if i >= 0 && index.Manifests[i].Digest != desc.Digest {
			gone := index.Manifests[i]
			before = &gone
		}
		index.Manifests = append(withoutTag(index.Manifests, tag), desc)
		if before != nil && l.isRead(before.Digest) {
			index.Manifests = keep(index.Manifests, *before, time.Time{})
		}
		slices.SortStableFunc(index.Manifests, func(a, b ocispec.Descriptor) int {
			return cmp.Compare(a.Annotations[ocispec.AnnotationRefName], b.Annotations[ocispec.AnnotationRefName])
		})
		return nil
	})
}

// isRead reports whether a lease names a manifest.
func (l *Layout) isRead(manifest digest.Digest) bool {
	leases, _, err := l.Leases()
	return err != nil || slices.ContainsFunc(leases, func(lease Lease) bool { return lease.Manifest.oci() == manifest })
}

func withoutTag(all []ocispec.Descriptor, tag string) []ocispec.Descriptor {
	return slices.DeleteFunc(all, func(d ocispec.Descriptor) bool { return d.Annotations[ocispec.AnnotationRefName] == tag })
}

// wholeIndex reads all of index.json, to be written again.
func (l *Layout) wholeIndex() (*ocispec.Index, error) {
	data, err := l.readIndex()
	if err != nil {
		return nil, err
	}
	if _, err := decodeIndex(data, l); err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := decodeJSON(data, &index); err != nil {
		return nil, &CorruptError{"index", fmt.Sprintf("of %s", l), err.Error()}
	}
	return &index, nil
}

func (l *Layout) changeIndex(change func(*ocispec.Index) error) error {
	if err := os.MkdirAll(l.path(workDir), 0o755); err != nil {
		return fmt.Errorf("change index of %s: %w", l, err)
	}
	unlock, err := flock(l.path(indexLock), unix.LOCK_EX)
	if err != nil {
		return fmt.Errorf("change index of %s: %w", l, err)
	}
	defer unlock()
	index, err := l.wholeIndex()
	if err != nil {
		return err
	}
	if err := change(index); err != nil {
		return err
	}
	if err := writeJSON(l.dir, ocispec.ImageIndexFile, index); err != nil {
		return fmt.Errorf("change index of %s: %w", l, err)
	}
	return nil
}

// Remove forgets a name, and what is about what has no other name (signatures, a trace, an index), and removes the blobs that nothing uses then. It does not ask who uses the
// image: [Remove] does.
func (l *Layout) Remove(_ context.Context, tag string) error {
	err := l.forget(tag, func([]ocispec.Descriptor, ocispec.Descriptor) error { return nil })
	if err != nil {
		return err
	}
	_, err = l.Collect()
	return err
}

// forget takes a name out of the index, if allow has nothing against what that leaves and what loses its name.
func (l *Layout) forget(tag string, allow func(left []ocispec.Descriptor, gone ocispec.Descriptor) error) error {
	return l.changeIndex(func(index *ocispec.Index) error {
		i := slices.IndexFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Annotations[ocispec.AnnotationRefName] == tag })
		if i < 0 {
			return fmt.Errorf("image %s in %s: %w", tag, l, ErrNotFound)
		}
		gone := index.Manifests[i]
		index.Manifests = withoutTag(index.Manifests, tag)
		if err := allow(index.Manifests, gone); err != nil {
			return err
		}
		still := slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.Digest == gone.Digest })
		if of, err := ParseDigest(string(gone.Digest)); err == nil && !still {
			index.Manifests = withoutReferrers(index.Manifests, of)
		}
		return nil
	})
}

// Collect removes the blobs that no manifest in the index names, and what was left of writes that did not end, and returns the bytes that
// this frees. While something is written to the layout by anybody, it removes nothing and fails with [ErrBusy].
func (l *Layout) Collect() (freed int64, err error) {
	leases, _, err := l.Leases()
	if err != nil {
		return 0, fmt.Errorf("collect blobs of %s: nothing is removed: %w", l, err)
	}
	return l.collect(leases, staleBuild)
}

// collect is Collect with the leases that hold, and the age at which builds are taken for given up.
func (l *Layout) collect(leases []Lease, stale time.Duration) (freed int64, err error) {
	if err := os.MkdirAll(l.path(workDir), 0o755); err != nil {
		return 0, fmt.Errorf("collect blobs of %s: %w", l, err)
	}
	unlock, err := flock(l.path(blobsLock), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return 0, fmt.Errorf("collect blobs of %s: %w", l, err)
	}
	defer unlock()
	if err := l.dropKept(leases, time.Now()); err != nil {
		return 0, fmt.Errorf("collect blobs of %s: %w", l, err)
	}
	used, err := l.usedBlobs()
	if err != nil {
		return 0, fmt.Errorf("collect blobs of %s: nothing is removed: %w", l, err)
	}
	blobs, err := os.ReadDir(l.path(blobsDir))
	if err != nil {
		return 0, fmt.Errorf("collect blobs of %s: %w", l, err)
	}
	for _, b := range blobs {
		info, err := b.Info()
		if used[digestPrefix+b.Name()] || err != nil || !info.Mode().IsRegular() {
			continue
		}
		if err := os.Remove(l.path(filepath.Join(blobsDir, b.Name()))); err != nil {
			return freed, fmt.Errorf("collect blobs of %s: %w", l, err)
		}
		freed += info.Size()
	}
	return freed, errors.Join(l.removeOldLeases(), l.removeLeftovers(stale))
}

// usedBlobs returns all digests that the index names, and the manifests in it, of whatever kind.
func (l *Layout) usedBlobs() (map[string]bool, error) {
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	used, walked := map[string]bool{}, map[string]bool{}
	for todo := index; len(todo) > 0; {
		b := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		used[b.Digest] = true
		if walked[b.Digest] || !strings.HasSuffix(b.MediaType, "json") {
			continue
		}
		walked[b.Digest] = true
		digest, err := ParseDigest(b.Digest)
		if err != nil {
			return nil, err
		}
		data, err := readCapped(l.blobPath(digest), maxManifest)
		if err != nil {
			return nil, err
		}
		var m struct {
			Config, Subject          blob
			Layers, Blobs, Manifests blobList
		}
		if err := decodeJSON(data, &m); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", digest, err)
		}
		todo = append(todo, m.Manifests...)
		for _, b := range slices.Concat(m.Layers, m.Blobs, blobList{m.Config, m.Subject}) {
			used[b.Digest] = true
		}
	}
	return used, nil
}

// removeLeftovers removes partial blobs that nobody has open, and builds that were given up.
func (l *Layout) removeLeftovers(stale time.Duration) error {
	partial, err := filepath.Glob(l.path(partialAt))
	if err != nil {
		return err
	}
	for _, path := range partial {
		if unlock, err := flock(path, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			err = os.Remove(path)
			unlock()
			if err != nil {
				return err
			}
		}
	}
	builds, err := filepath.Glob(l.path(buildAt + "*"))
	if err != nil {
		return err
	}
	for _, path := range builds {
		st, err := os.Stat(path)
		if err != nil || time.Since(st.ModTime()) < stale {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// hold keeps blobs from being removed until release is called: those that a manifest to come names are not in use yet.
func (l *Layout) hold() (release func(), err error) {
	if err := os.MkdirAll(l.path(workDir), 0o755); err != nil {
		return nil, fmt.Errorf("write to %s: %w", l, err)
	}
	unlock, err := flock(l.path(blobsLock), unix.LOCK_SH)
	if err != nil {
		return nil, fmt.Errorf("write to %s: %w", l, err)
	}
	return unlock, nil
}

// flock locks a file, which is made where it is missing. It fails with [ErrBusy] where how says not to wait and
// somebody else has it.
func flock(path string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// writeJSON replaces a file, durably and all at once.
func writeJSON(dir, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, workDir, name+".new"), filepath.Join(dir, name), data) // the index lock is held
}

// replaceFile replaces a file, durably and all at once, by way of a fresh one, which nobody else may be writing.
func replaceFile(fresh, path string, data []byte) error {
	if err := writeSynced(fresh, data); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readCapped reads a file of at most so many bytes.
func readCapped(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > most {
		return nil, &CorruptError{"file", path, fmt.Sprintf("more than %d bytes", most)}
	}
	return data, nil
}

// hashWriter counts and hashes what it writes.
type hashWriter struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (h *hashWriter) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	h.h.Write(p[:n])
	h.n += int64(n)
	return n, err
}

func (h *hashWriter) digest() Digest { return Digest(h.h.Sum(nil)) }

// check compares what was written with a descriptor.
func (h *hashWriter) check(blob ocispec.Descriptor, want Digest, place string) error {
	if h.n != blob.Size {
		more := ""
		if h.n > blob.Size {
			more = " or more"
		}
		return &CorruptError{"content of", place, fmt.Sprintf("%d bytes%s, not %d", h.n, more, blob.Size)}
	}
	if got := h.digest(); got != want {
		return &CorruptError{"content of", place, fmt.Sprintf("has digest %s", got)}
	}
	return nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
