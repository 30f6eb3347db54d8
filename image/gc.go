package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// keptUntil is the annotation of a manifest in the index that has no name any more and is kept for those who still read it.
const keptUntil = "vnd.coppice.kept-until"

// DefaultGrace is how long a version that was stored again is kept as it was before.
const DefaultGrace = 7 * 24 * time.Hour

// GCOptions say what [Layout.GC] removes and stores again. The zero value is complete.
type GCOptions struct {
	// Leases are those that the layout does not know of.
	Leases []Lease
	// Abandoned is the age at which what a build left is removed. 0 means a week.
	Abandoned time.Duration
	// RepackBelow stores again what is in use of packs of which less than so many percent is. 0 means none.
	RepackBelow int
	// Grace is how long versions that were stored again are kept as they were before, and longer while a lease names them.
	Grace time.Duration
	// Progress is told how many bytes of the versions that are stored again are done, of how many.
	Progress func(done, total int64)
}

// GCReport tells what was done.
type GCReport struct {
	FreedBytes int64    `json:"freed_bytes"`
	Repacked   []Repack `json:"repacked"`
	Kept       []Kept   `json:"kept"`
	Bad        []error  `json:"-"` // leases that do not count
}

// Repack is a version that was stored again.
type Repack struct {
	Names       []string `json:"names"`
	ContentRoot Digest   `json:"content_root"`
	Before      Digest   `json:"before"` // its manifest
	After       Digest   `json:"after"`
	BeforeBytes int64    `json:"before_bytes"` // of packs, those that others use too included
	AfterBytes  int64    `json:"after_bytes"`
	Damaged     []string `json:"damaged,omitempty"` // what was about it, and is no more
}

// Kept is a version without a name that somebody may still read.
type Kept struct {
	Manifest Digest    `json:"manifest"`
	Until    time.Time `json:"until"` // or longer
	By       []Lease   `json:"by,omitempty"`
}

// GC removes what nothing needs from a layout: blobs that no version uses, what builds and copies left that did not end, and leases that are over. It
// fails with [ErrBusy] where something is written to the layout.
func (l *Layout) GC(ctx context.Context, o GCOptions) (GCReport, error) {
	r := GCReport{Repacked: []Repack{}, Kept: []Kept{}}
	if err := r.run(ctx, l, o); err != nil {
		return r, fmt.Errorf("collect garbage in %s: %w", l, err)
	}
	return r, nil
}

func (r *GCReport) run(ctx context.Context, l *Layout, o GCOptions) error {
	if o.RepackBelow < 0 || o.RepackBelow > 100 || o.Grace < 0 || o.Abandoned < 0 {
		return fmt.Errorf("%d percent, grace of %s, abandoned for %s: %w", o.RepackBelow, o.Grace, o.Abandoned, ErrBadOption)
	}
	if o.RepackBelow > 0 {
		if err := r.repack(ctx, l, o); err != nil {
			return err
		}
	}
	leases, bad, err := l.Leases()
	if r.Bad = bad; err != nil {
		return err
	}
	leases = append(leases, o.Leases...)
	if o.Abandoned == 0 {
		o.Abandoned = staleBuild
	}
	r.FreedBytes, err = l.collect(leases, o.Abandoned)
	if err != nil {
		return err
	}
	r.Kept, err = l.kept(leases)
	return err
}

// keep leaves a manifest in an index that has lost its last name, until nobody reads it.
func keep(index []ocispec.Descriptor, gone ocispec.Descriptor, until time.Time) []ocispec.Descriptor {
	if isNamed(index, gone.Digest) {
		return index
	}
	gone.Annotations = map[string]string{keptUntil: until.UTC().Format(time.RFC3339)}
	return append(index, gone)
}

// isNamed reports whether a name means a manifest.
func isNamed(index []ocispec.Descriptor, manifest digest.Digest) bool {
	return slices.ContainsFunc(index, func(d ocispec.Descriptor) bool {
		return d.Digest == manifest && d.Annotations[ocispec.AnnotationRefName] != ""
	})
}

// namesOf returns the names that mean a manifest.
func namesOf(index []ocispec.Descriptor, manifest ocispec.Descriptor) (names []string) {
	for _, d := range index {
		if name := d.Annotations[ocispec.AnnotationRefName]; name != "" && d.Digest == manifest.Digest {
			names = append(names, name)
		}
	}
	return names
}

// readersOf returns those who read the version with a manifest, as far as leases tell: one that does not say which manifest it is may
// read any version of the content.
func (l *Layout) readersOf(leases []Lease, manifest Digest) (by []Lease) {
	var root Digest
	for _, lease := range leases {
		if lease.Manifest == (Digest{}) && root == (Digest{}) {
			root, _ = contentRootOf(context.Background(), l, manifest.String()) // one that cannot be opened is nobody's
		}
		if lease.Manifest == manifest || lease.Manifest == (Digest{}) && lease.ContentRoot == root {
			by = append(by, lease)
		}
	}
	return by
}

// kept returns the versions in the index without a name.
func (l *Layout) kept(leases []Lease) ([]Kept, error) {
	index, err := l.wholeIndex()
	if err != nil {
		return nil, err
	}
	all := []Kept{}
	for _, d := range index.Manifests {
		until, ok := untilOf(d)
		of, err := ParseDigest(string(d.Digest))
		if ok && err == nil {
			all = append(all, Kept{of, until, l.readersOf(leases, of)})
		}
	}
	return all, nil
}

// untilOf returns until when a manifest without a name is kept. A time that cannot be read is over.
func untilOf(d ocispec.Descriptor) (time.Time, bool) {
	text, ok := d.Annotations[keptUntil]
	if !ok || d.Annotations[ocispec.AnnotationRefName] != "" {
		return time.Time{}, false
	}
	until, _ := time.Parse(time.RFC3339, text)
	return until, true
}

// dropKept takes out of the index what was kept for long enough, with what is about it.
func (l *Layout) dropKept(leases []Lease, now time.Time) error {
	index, err := l.wholeIndex()
	if err != nil || !slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool { _, ok := untilOf(d); return ok }) {
		return err
	}
	return l.changeIndex(func(index *ocispec.Index) error {
		var gone []Digest
		named := slices.Clone(index.Manifests)
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			until, ok := untilOf(d)
			of, err := ParseDigest(string(d.Digest))
			if !ok || err != nil {
				return ok
			}
			if isNamed(named, d.Digest) {
				return true
			}
			if now.Before(until) || len(l.readersOf(leases, of)) > 0 {
				return false
			}
			gone = append(gone, of)
			return true
		})
		for _, of := range gone {
			index.Manifests = withoutReferrers(index.Manifests, of)
		}
		return nil
	})
}

// version is an image of a layout under all its names.
type version struct {
	desc  ocispec.Descriptor
	names []string
	size  int64
	packs []ocispec.Descriptor
	live  map[string]int64 // bytes in use, by pack
}

// repack stores versions again that use packs of which little is in use by all of them together.
func (r *GCReport) repack(ctx context.Context, l *Layout, o GCOptions) error {
	all, err := l.versions(ctx)
	if err != nil {
		return err
	}
	live, size := map[string]int64{}, map[string]int64{}
	for _, v := range all {
		for _, p := range v.packs {
			live[string(p.Digest)] += v.live[string(p.Digest)]
			size[string(p.Digest)] = p.Size
		}
	}
	sparse := func(p ocispec.Descriptor) bool {
		d := string(p.Digest)
		return live[d] < size[d]*int64(o.RepackBelow)/100
	}
	all = slices.DeleteFunc(all, func(v *version) bool { return !slices.ContainsFunc(v.packs, sparse) })
	total, done := int64(0), int64(0)
	for _, v := range all {
		total += v.size
	}
	for _, v := range all {
		progress := func(at, _ int64) {
			if o.Progress != nil {
				o.Progress(done+at, total)
			}
		}
		repacked, err := v.storeAgain(ctx, l, sparse, o.Grace, progress)
		if err != nil {
			return fmt.Errorf("store %s again: %w", v.names[0], err)
		}
		r.Repacked = append(r.Repacked, *repacked)
		done += v.size
	}
	return nil
}

// versions returns all images of a layout that have a name, and what they use.
func (l *Layout) versions(ctx context.Context) (all []*version, err error) {
	index, err := l.wholeIndex()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, d := range index.Manifests {
		names := namesOf(index.Manifests, d)
		if len(names) == 0 || seen[string(d.Digest)] {
			continue
		}
		seen[string(d.Digest)] = true
		v := &version{desc: d, names: names, live: map[string]int64{}}
		err := v.count(ctx, l)
		if errors.Is(err, ErrNotImage) || errors.Is(err, ErrVersion) { // whose blobs stay
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// count finds out how much of each pack a version uses.
func (v *version) count(ctx context.Context, l *Layout) error {
	im, err := Open(ctx, l, string(v.desc.Digest))
	if err != nil {
		return err
	}
	v.size, v.packs = im.Size(), im.Packs()
	seen := newMemory(rememberedChunks)
	err = im.walk(ctx, func(_ int64, c chunkRef) error {
		if _, ok := seen.get(c.digest); !ok {
			seen.add(c.digest, c.place)
			v.live[string(v.packs[c.place.pack].Digest)] += int64(c.place.stored)
		}
		return nil
	})
	return errors.Join(err, im.Close())
}

// storeAgain makes a version of the same content that uses no sparse pack, and lets all its names mean that. The one before stays in the index
// for as long as grace, and the signatures are those of both.
func (v *version) storeAgain(ctx context.Context, l *Layout, sparse func(ocispec.Descriptor) bool, grace time.Duration, progress func(done, total int64)) (*Repack, error) {
	im, err := Open(ctx, l, string(v.desc.Digest))
	if err != nil {
		return nil, err
	}
	r, err := v.buildAgain(ctx, l, im, sparse, grace, progress)
	return r, errors.Join(err, im.Close())
}

func (v *version) buildAgain(ctx context.Context, l *Layout, im *Image, sparse func(ocispec.Descriptor) bool, grace time.Duration, progress func(done, total int64)) (*Repack, error) {
	c := im.Config()
	o := BuildOptions{
		Base: im, Labels: c.Labels, Created: c.Created, Progress: progress,
		Changed:  func() iter.Seq2[Extent, error] { return func(func(Extent, error) bool) {} },
		sparse:   func(pack ocispec.Descriptor, _ int64) bool { return sparse(pack) },
		parentIs: &c.Parent,
	}
	r := &Repack{Names: v.names, ContentRoot: c.ContentRoot}
	o.publishAs = func(ctx context.Context, data []byte, root Digest) (err error) {
		if root != c.ContentRoot {
			return fmt.Errorf("it has content root %s, not %s", root, c.ContentRoot)
		}
		r.Damaged, err = v.replace(ctx, l, im, data, time.Now().Add(grace))
		return err
	}
	report, err := Build(ctx, l, v.names[0], im, im.Size(), o)
	if err != nil {
		return nil, err
	}
	r.After = report.Manifest
	r.BeforeBytes = sum(v.packs)
	after, err := Open(ctx, l, report.Manifest.String())
	if err != nil {
		return nil, err
	}
	r.AfterBytes = sum(after.Packs())
	r.Before, err = ParseDigest(string(v.desc.Digest))
	return r, errors.Join(err, after.Close())
}

// replace stores a manifest with the signatures, the trace and the index of the one that it replaces, and lets all names that mean that one mean it. It returns what of those is damaged, and left behind.
func (v *version) replace(ctx context.Context, l *Layout, im *Image, data []byte, until time.Time) (damaged []string, err error) {
	desc := descriptor(ocispec.MediaTypeImageManifest, data)
	desc.ArtifactType = MediaTypeImage
	if err := l.PutBlob(ctx, desc, bytes.NewReader(data)); err != nil {
		return nil, err
	}
	signatures, err := Signatures(ctx, im)
	if err != nil {
		return nil, err
	}
	if len(signatures) > 0 {
		if err := putSignatures(ctx, l, desc, signatures); err != nil {
			return nil, err
		}
	}
	left := CopyReport{}
	if err := errors.Join(left.leave("trace", copyTrace(ctx, im, l, desc)), left.leave("index", moveIndex(ctx, im, l, desc))); err != nil {
		return nil, err
	}
	return left.Damaged, l.changeIndex(func(index *ocispec.Index) error {
		for i, d := range index.Manifests {
			if d.Digest == v.desc.Digest && d.Annotations[ocispec.AnnotationRefName] != "" {
				named := desc
				named.Annotations = d.Annotations
				index.Manifests[i] = named
			}
		}
		index.Manifests = keep(index.Manifests, v.desc, until)
		return nil
	})
}
