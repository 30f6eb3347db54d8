package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"aead.dev/minisign"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Media types of indexes of files, version 1. docs/image-format.md describes them. Signatures of an index are of the same kind as those of an image.
const (
	MediaTypeIndex          = "application/vnd.coppice.index.v1"
	MediaTypeIndexStatement = "application/vnd.coppice.index.statement.v1+json"

	anyVersionOfIndex  = "application/vnd.coppice.index."
	indexStatementType = "coppice index statement 1"
)

// IndexStatement says which index an image has. It is what is signed: the digests in it are all that the content of the image and that of the index are verified against.
type IndexStatement struct {
	Type       string `json:"type"`
	Image      Digest `json:"image"`      // content root of the image
	ImageBytes int64  `json:"image_size"` // of the image
	Index      Digest `json:"index"`      // content root of the index
	SizeBytes  int64  `json:"size"`       // of the index
}

func decodeIndexStatement(data []byte) (*IndexStatement, error) {
	var s IndexStatement
	if err := decodeJSON(data, &s); err != nil {
		return nil, err
	}
	if s.Type != indexStatementType {
		return nil, fmt.Errorf("type %.80q, this program knows %q: %w", s.Type, indexStatementType, ErrVersion)
	}
	return &s, nil
}

// Index is the index of an image's files, a file that is kept beside the image. Its content is cut into chunks and read as that of an image is: a byte of it is fetched when
// it is asked for, and is verified against the content root in the statement. What it says is not looked at here.
type Index struct {
	*Image
	Statement IndexStatement

	text []byte   // the statement, as it is signed
	sigs [][]byte // in the format of minisign
}

// indexTag is the tag of the artifact with the index of a manifest.
func indexTag(manifest Digest) string { return tagOf(manifest, ".index") }

// indexLayers are the blobs of an index: what is said of it, and its content.
type indexLayers struct {
	statement ocispec.Descriptor
	sigs      []ocispec.Descriptor
	content   *manifest
}

// blobs returns all of them.
func (l *indexLayers) blobs() []ocispec.Descriptor {
	return slices.Concat([]ocispec.Descriptor{l.statement}, l.sigs, l.content.blobs())
}

// put stores the manifest of an index whose blobs are there.
func (l *indexLayers) put(ctx context.Context, dst Target, subject ocispec.Descriptor) error {
	layers := append(slices.Concat([]ocispec.Descriptor{l.statement}, l.sigs, []ocispec.Descriptor{l.content.Table}), l.content.Packs...)
	return putReferrerManifest(ctx, dst, subject, MediaTypeIndex, indexTag, l.content.Config, layers)
}

func decodeIndexManifest(data []byte) (*indexLayers, error) {
	var m struct {
		ArtifactType string   `json:"artifactType"`
		Config       blob     `json:"config"`
		Layers       blobList `json:"layers"`
	}
	if err := decodeJSON(data, &m); err != nil {
		return nil, err
	}
	switch {
	case m.ArtifactType != MediaTypeIndex && strings.HasPrefix(m.ArtifactType, anyVersionOfIndex):
		return nil, fmt.Errorf("artifact type %.80q, this program knows %s: %w", m.ArtifactType, MediaTypeIndex, ErrVersion)
	case m.ArtifactType != MediaTypeIndex || len(m.Layers) == 0:
		return nil, fmt.Errorf("artifact type %.80q with %d layers: no index", m.ArtifactType, len(m.Layers))
	}
	l := &indexLayers{statement: m.Layers[0].descriptor()}
	if err := checkBlob(l.statement, MediaTypeIndexStatement, maxStatement); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	rest := m.Layers[1:]
	for len(rest) > 0 && rest[0].MediaType == MediaTypeMinisig {
		if len(l.sigs) == maxSignatures {
			return nil, fmt.Errorf("more than %d signatures", maxSignatures)
		}
		if err := checkBlob(rest[0].descriptor(), MediaTypeMinisig, maxMinisig); err != nil {
			return nil, fmt.Errorf("signature: %w", err)
		}
		l.sigs = append(l.sigs, rest[0].descriptor())
		rest = rest[1:]
	}
	var err error
	l.content, err = contentOf(m.Config, rest)
	return l, err
}

// IndexFile is an index that is to be attached.
type IndexFile struct {
	Root      Digest // content root of the image that it is of
	Content   io.ReaderAt
	SizeBytes int64
}

// IndexOptions says how an index is attached. The zero value is complete.
type IndexOptions struct {
	// Scratch is the directory in which what goes to a registry is made. "" means that for temporary files.
	Scratch string
	// Workers is how many CPUs to use. 0 means all.
	Workers int
	// Progress is told how many bytes of the index are done, of how many.
	Progress func(done, total int64)
}

// IndexReport tells what is attached.
type IndexReport struct {
	Statement   IndexStatement `json:"statement"`
	StoredBytes int64          `json:"stored_bytes"` // of its chunks, compressed
	TotalMS     float64        `json:"total_ms"`
}

// maxIndexChunk is the size in bytes of an index's chunks, or that of the image's where that is less: who asks an index reads little in many places, and one cache has the chunks of both.
const maxIndexChunk = DefaultChunkSize

// AttachIndex stores the index of an image beside it, in the place that the image was opened from, instead of the one that there may be, and with it the signatures of that. It fails with
// [ErrOther] for the index of other content. What it is made of is not looked at.
func AttachIndex(ctx context.Context, im *Image, dst Target, f IndexFile, o IndexOptions) (IndexReport, error) {
	r := IndexReport{Statement: IndexStatement{Type: indexStatementType, Image: im.ContentRoot(), ImageBytes: im.Size(), SizeBytes: f.SizeBytes}}
	err := fmt.Errorf("it is of content root %s, not %s: %w", f.Root, im.ContentRoot(), ErrOther)
	if f.Root == im.ContentRoot() {
		err = r.attach(ctx, im, dst, f, o)
	}
	if err != nil {
		return r, fmt.Errorf("attach index to image %s: %w", im.name, err)
	}
	return r, nil
}

func (r *IndexReport) attach(ctx context.Context, im *Image, dst Target, f IndexFile, o IndexOptions) (err error) {
	of, err := ParseDigest(string(im.desc.Digest))
	if err != nil {
		return err
	}
	at, isLayout := dst.(*Layout)
	if !isLayout {
		dir, err := os.MkdirTemp(o.Scratch, "coppice-index-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		if at, err = CreateLayout(dir + "/made"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, at.Close()) }()
	}
	build := BuildOptions{ChunkSize: min(im.ChunkSize(), maxIndexChunk), Workers: o.Workers, Progress: o.Progress}
	build.publishAs = func(ctx context.Context, data []byte, root Digest) error {
		r.Statement.Index = root
		content, err := decodeManifest(data)
		if err != nil {
			return err
		}
		if !isLayout {
			if err := copyBlobs(ctx, at, dst, content.blobs()); err != nil {
				return err
			}
		}
		return r.publish(ctx, im, dst, content)
	}
	report, err := Build(ctx, at, indexTag(of), f.Content, f.SizeBytes, build)
	r.StoredBytes, r.TotalMS = report.StoredBytes, report.TotalMS
	return err
}

// copyBlobs copies blobs that are not there.
func copyBlobs(ctx context.Context, src Source, dst Target, blobs []ocispec.Descriptor) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(copiers)
	for _, b := range uniqueBlobs(blobs) {
		group.Go(func() error { return copyBlob(ctx, src, dst, b, nil) })
	}
	return group.Wait()
}

// publish stores what is said of an index whose content is there.
func (r *IndexReport) publish(ctx context.Context, im *Image, dst Target, content *manifest) error {
	text, err := json.Marshal(r.Statement)
	if err != nil {
		return err
	}
	l := indexLayers{content: content}
	if l.statement, err = putPart(ctx, dst, part{MediaTypeIndexStatement, text}); err != nil {
		return err
	}
	return l.put(ctx, dst, im.desc)
}

// SignIndex adds a signature to the index of an image in the place that the image was opened from, instead of one by the same key. It reads the statement alone: who signs vouches for the index.
func SignIndex(ctx context.Context, im *Image, dst Target, key minisign.PrivateKey) (IndexStatement, error) {
	x, err := OpenIndex(ctx, im)
	if err == nil {
		err = errors.Join(x.sign(ctx, im, dst, key), x.Close())
	}
	if err != nil {
		return IndexStatement{}, fmt.Errorf("sign index of image %s: %w", im.name, err)
	}
	return x.Statement, nil
}

func (x *Index) sign(ctx context.Context, im *Image, dst Target, key minisign.PrivateKey) error {
	public, _ := key.Public().(minisign.PublicKey)
	sigs := slices.DeleteFunc(slices.Clone(x.sigs), func(sig []byte) bool { return minisign.Verify(public, x.text, sig) })
	sigs = append(sigs, minisign.SignWithComments(key, x.text, "of "+x.Statement.Image.String(), "signature of the index of a coppice image"))
	if len(sigs) > maxSignatures {
		return fmt.Errorf("%d signatures, at most %d are taken", len(sigs), maxSignatures)
	}
	if keeper, ok := dst.(interface{ hold() (func(), error) }); ok {
		release, err := keeper.hold()
		if err != nil {
			return err
		}
		defer release()
	}
	l := indexLayers{statement: descriptor(MediaTypeIndexStatement, x.text), content: x.manifest}
	for _, sig := range sigs {
		d, err := putPart(ctx, dst, part{MediaTypeMinisig, sig})
		if err != nil {
			return err
		}
		l.sigs = append(l.sigs, d)
	}
	return l.put(ctx, dst, im.desc)
}

// SignedBy fails with [ErrUnsigned] or [ErrUntrusted] unless one of the keys has signed the statement. A signature of an index does not expire: it is about a content that does not change, and
// whether that is still to be used its own signature says.
func (x *Index) SignedBy(keys []minisign.PublicKey) error {
	err := ErrUnsigned
	for _, sig := range x.sigs {
		if slices.ContainsFunc(keys, func(key minisign.PublicKey) bool { return minisign.Verify(key, x.text, sig) }) {
			return nil
		}
		err = fmt.Errorf("key %016X: %w", keyOf(sig), ErrUntrusted)
	}
	return fmt.Errorf("index of content %s: %w", x.Statement.Image, err)
}

// Keys returns with which keys it says that it is signed. Nothing is verified.
func (x *Index) Keys() (ids []uint64) {
	for _, sig := range x.sigs {
		ids = append(ids, keyOf(sig))
	}
	return ids
}

// keyOf returns the ID that a signature which can be read names.
func keyOf(sig []byte) uint64 {
	var s minisign.Signature
	_ = s.UnmarshalText(sig) // it was looked at when it was read
	return s.KeyID
}

// OpenIndex opens the index that is attached to an image, and fails with [ErrNotAttached] where none is. Statement, signatures and config are read, and nothing of the content. It is what was attached, by
// whomever: [Index.SignedBy] tells. It is closed before the source of the image, and goes on where the image is closed.
func OpenIndex(ctx context.Context, im *Image) (*Index, error) {
	return openIndexOf(ctx, im, im.src)
}

// openIndexOf is OpenIndex that reads what describes the index from a source that stands for that of the image.
func openIndexOf(ctx context.Context, im *Image, src Source) (*Index, error) {
	data, err := im.referrer(ctx, src, indexTag)
	if err != nil {
		return nil, fmt.Errorf("open index of image %s: %w", im.name, err)
	}
	x, err := openIndex(ctx, src, data, im.name)
	if err != nil {
		return nil, err
	}
	if s := x.Statement; s.Image != im.ContentRoot() || s.ImageBytes != im.Size() {
		err := x.corrupt("statement", "", "is about content root %s of %d bytes, not %s of %d", s.Image, s.ImageBytes, im.ContentRoot(), im.Size())
		return nil, errors.Join(fmt.Errorf("open index of image %s: %w", im.name, err), x.Close())
	}
	return x, nil
}

// openIndex opens the index that has a manifest. of is what the image is called.
func openIndex(ctx context.Context, src Source, data []byte, of string) (x *Index, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("open index of image %s: %w", of, err)
		}
	}()
	im := &Image{src: src, name: of + " (index)", desc: descriptor(ocispec.MediaTypeImageManifest, data)}
	im.desc.ArtifactType = MediaTypeIndex
	l, err := decodeIndexManifest(data)
	if err != nil {
		return nil, im.corrupt("manifest", "", "%w", err)
	}
	x, im.manifest = &Index{Image: im}, l.content
	if err := x.readStatement(ctx, l); err != nil {
		return nil, err
	}
	if err := im.open(ctx, data); err != nil {
		return nil, err
	}
	if s := x.Statement; s.Index != im.ContentRoot() || s.SizeBytes != im.Size() {
		return nil, errors.Join(im.corrupt("statement", "", "is about an index with content root %s of %d bytes, not %s of %d", s.Index, s.SizeBytes, im.ContentRoot(), im.Size()), im.Close())
	}
	return x, nil
}

func (x *Index) readStatement(ctx context.Context, l *indexLayers) (err error) {
	if x.text, err = x.readPart(ctx, "statement", l.statement); err != nil {
		return fmt.Errorf("read statement: %w", err)
	}
	statement, err := decodeIndexStatement(x.text)
	if err != nil {
		return x.corrupt("statement", "", "%w", err)
	}
	x.Statement = *statement
	for _, d := range l.sigs {
		sig, err := x.readPart(ctx, "signature", d)
		if err != nil {
			return fmt.Errorf("read signature: %w", err)
		}
		var parsed minisign.Signature
		if err := parsed.UnmarshalText(sig); err != nil {
			return x.corrupt("signature", "", "%w", err)
		}
		x.sigs = append(x.sigs, sig)
	}
	return nil
}

// Index returns the reference of the index of an image in the same place, by the image's manifest, for [OpenSet]. String says that it is an index; it is nothing that [ParseRef] takes.
func (r Ref) Index(manifest Digest) Ref {
	r.Name, r.index, r.manifest = indexTag(manifest), true, Digest{}
	r.text += " (index)"
	return r
}

// indexLayersOf returns what the index of an image consists of. It fails with [ErrNotFound] where there is none.
func (im *Image) indexLayersOf(ctx context.Context) (*indexLayers, error) {
	data, err := im.referrer(ctx, im.src, indexTag)
	if err != nil {
		return nil, err
	}
	l, err := decodeIndexManifest(data)
	if err != nil {
		return nil, im.corrupt("manifest of the index", "", "%w", err)
	}
	return l, nil
}

// moveIndex lets the index of an image be that of another manifest of the same content in the same place. It fails with [ErrNotAttached] where there is none.
func moveIndex(ctx context.Context, im *Image, dst Target, subject ocispec.Descriptor) error {
	l, err := im.indexLayersOf(ctx)
	if err != nil {
		return err
	}
	return l.put(ctx, dst, subject)
}

// FoundIndex is the index of a content, and the replicas that have it.
type FoundIndex struct {
	Statement IndexStatement
	Keys      []uint64 // that it says it is signed with
	Beside    string   // reference of the image that it was found beside
	Refs      []Ref    // for [OpenSet], with the content root of the statement

	// Known is what describes the index, by digest: what [SetOptions] take as Known, so that OpenSet asks for nothing again.
	Known map[Digest][]byte
}

// FindIndex looks for an index of the content beside all replicas that are open, and returns the first one that take has nothing against. It fails with [ErrNotAttached] where none has one; else with what is
// wrong with those that there are. What describes the index, but for what its tag means, is read through small, where that is not nil.
func (s *Set) FindIndex(ctx context.Context, small Small, take func(*Index) error) (*FoundIndex, error) {
	var found *FoundIndex
	var errs []error
	for _, r := range s.openReplicas() {
		src := nearby{r.member.im.src, small, make(map[Digest][]byte)}
		x, err := openIndexOf(ctx, r.member.im, src)
		if err == nil {
			if err = take(x); err == nil {
				found = found.with(r, x, src.read)
			}
			err = errors.Join(err, x.Close())
		}
		s.leaveMember(r.member)
		if err != nil && !errors.Is(err, ErrNotAttached) {
			errs = append(errs, fmt.Errorf("replica %s: %w", r.ref, err))
		}
	}
	switch {
	case found != nil:
		return found, nil
	case len(errs) > 0:
		return nil, errors.Join(errs...)
	}
	return nil, fmt.Errorf("index of content %s: %w", s.ContentRoot(), ErrNotAttached)
}

// with adds a replica that has the same index. f may be nil.
func (f *FoundIndex) with(r openReplica, x *Index, read map[Digest][]byte) *FoundIndex {
	of, err := ParseDigest(string(r.member.im.desc.Digest))
	manifest, otherErr := ParseDigest(string(x.desc.Digest))
	switch {
	case err != nil || otherErr != nil || f != nil && f.Statement != x.Statement:
		return f
	case f == nil:
		f = &FoundIndex{Statement: x.Statement, Keys: x.Keys(), Beside: r.ref.String(), Known: make(map[Digest][]byte)}
	}
	f.Refs = append(f.Refs, r.ref.Index(of).Pinned(manifest))
	maps.Copy(f.Known, read)
	return f
}

// openReplica is a replica whose image stays open until leaveMember is called.
type openReplica struct {
	ref    Ref
	member *member
}

// openReplicas returns those that are open, those first that answer now.
func (s *Set) openReplicas() []openReplica {
	s.mu.Lock()
	defer s.mu.Unlock()
	var now, later []openReplica
	for _, r := range s.replicas {
		if r.member == nil {
			continue
		}
		r.member.users++
		if r.state == StateReady {
			now = append(now, openReplica{r.ref, r.member})
		} else {
			later = append(later, openReplica{r.ref, r.member})
		}
	}
	return append(now, later...)
}

func (s *Set) leaveMember(m *member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.users--
	s.retire(m, false)
}
