package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

const (
	// maxProblems bounds how many problems a report spells out.
	maxProblems = 100
	// verifyAhead is how many windows are read at a time.
	verifyAhead = 2
)

// VerifyReport tells what a verification found.
type VerifyReport struct {
	Manifest    Digest     `json:"manifest"`
	ContentRoot Digest     `json:"content_root"`
	SizeBytes   int64      `json:"size_bytes"`
	DataBytes   int64      `json:"data_bytes"` // of chunks that are not zeros
	ReadBytes   int64      `json:"read_bytes"` // from the source
	BadBytes    int64      `json:"bad_bytes"`  // that cannot be read as they should be
	Problems    []string   `json:"problems"`   // the first hundred
	Attached    []Attached `json:"attached"`
	TotalMS     float64    `json:"total_ms"`
}

// Attached tells about what is kept beside an image, but for its signatures. The image is whole without.
type Attached struct {
	Kind      string   `json:"kind"` // trace or index
	SizeBytes int64    `json:"size_bytes"`
	Problems  []string `json:"problems"` // the first hundred
}

// Whole reports whether nothing is damaged, neither of the image nor of what is beside it.
func (r *VerifyReport) Whole() bool {
	return r.BadBytes == 0 && !slices.ContainsFunc(r.Attached, func(a Attached) bool { return len(a.Problems) > 0 })
}

// span is some neighbouring chunks.
type span struct{ from, to int64 }

// Verify reads all of an image, as a reader would, and of what is attached to it, and tells what is damaged, missing, or cannot be read. Its error is that of the
// context. progress is told about the image alone.
func Verify(ctx context.Context, im *Image, progress func(done, total int64)) (VerifyReport, error) {
	began := time.Now()
	r := VerifyReport{ContentRoot: im.ContentRoot(), SizeBytes: im.Size(), Problems: []string{}, Attached: []Attached{}}
	if d, err := ParseDigest(string(im.desc.Digest)); err == nil {
		r.Manifest = d
	}
	v := verifier{im: im, report: &r, progress: progress}
	if err := v.run(ctx); err != nil {
		return r, fmt.Errorf("verify image %s: %w", im.name, err)
	}
	r.ReadBytes = im.ReadStats().Bytes
	if err := r.verifyAttached(ctx, im); err != nil {
		return r, fmt.Errorf("verify what is attached to image %s: %w", im.name, err)
	}
	r.TotalMS = float64(time.Since(began)) / float64(time.Millisecond)
	return r, nil
}

// verifyAttached reads the trace and the index, where there are any.
func (r *VerifyReport) verifyAttached(ctx context.Context, im *Image) error {
	take := func(kind string, size int64, problems []string, err error) {
		switch {
		case errors.Is(err, ErrNotAttached):
			return
		case err != nil:
			problems = append(problems, err.Error())
		}
		r.Attached = append(r.Attached, Attached{kind, size, append([]string{}, problems...)})
	}
	size, err := im.readTrace(ctx)
	if ctx.Err() == nil {
		take("trace", size, nil, err)
	}
	var index VerifyReport
	x, err := OpenIndex(ctx, im)
	if err == nil {
		index.SizeBytes = x.Size()
		v := verifier{im: x.Image, report: &index}
		err = errors.Join(v.run(ctx), x.Close())
	}
	take("index", index.SizeBytes, index.Problems, err)
	return ctx.Err()
}

// readTrace reads the trace, and returns how many bytes it has.
func (im *Image) readTrace(ctx context.Context) (size int64, err error) {
	parts, err := im.traceLayers(ctx)
	if err != nil {
		return 0, err
	}
	for _, d := range parts {
		size += d.Size
		if _, bad := im.readPart(ctx, "trace", d); err == nil {
			err = bad
		}
	}
	return size, err
}

type verifier struct {
	im       *Image
	report   *VerifyReport
	progress func(done, total int64)
}

// result is what became of a span.
type result struct {
	span
	data     int64
	problems []problem
}

type problem struct {
	bytes int64
	text  string
}

// run reads the spans in order, some ahead, and takes down what became of them in the caller's goroutine.
func (v *verifier) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	spans, results := make(chan span), make(chan result, verifyAhead)
	group.Go(func() error {
		defer close(spans)
		return v.cut(ctx, spans, results)
	})
	readers := errgroup.Group{}
	for range verifyAhead {
		readers.Go(func() error {
			buf := make([]byte, windowBytes)
			for s := range spans {
				results <- v.read(ctx, s, buf)
			}
			return nil
		})
	}
	group.Go(func() error {
		err := readers.Wait()
		close(results)
		return err
	})
	done := int64(0)
	for r := range results {
		v.take(r)
		if done += v.bytes(r.span); v.progress != nil {
			v.progress(done, v.im.g.size)
		}
	}
	return group.Wait()
}

// cut cuts what is not zeros into spans. A page that cannot be read is a result at once.
func (v *verifier) cut(ctx context.Context, spans chan<- span, results chan<- result) error {
	per := max(1, windowBytes/int64(v.im.g.chunkSize))
	for index := int64(0); index < v.im.g.chunks(); {
		p, err := v.im.leafPage(ctx, index)
		next := min(index&^(fanOut-1)+fanOut, v.im.g.chunks())
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			s := span{index, next}
			results <- result{span: s, problems: []problem{{v.bytes(s), err.Error()}}}
			index = next
			continue
		case p == nil:
			if index, err = v.im.nextLeaf(ctx, index); err != nil {
				return err // pages that were read a moment ago
			}
			continue
		}
		for ; index < next; index += per {
			select {
			case spans <- span{index, min(index+per, next)}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		index = next
	}
	return nil
}

// bytes is the length of a span's content.
func (v *verifier) bytes(s span) int64 {
	size := int64(v.im.g.chunkSize)
	return min(s.to*size, v.im.g.size) - s.from*size
}

// read reads a span at once, and where that fails, chunk by chunk.
func (v *verifier) read(ctx context.Context, s span, buf []byte) result {
	r := result{span: s}
	for i := s.from; i < s.to; i++ {
		if _, held, _ := v.im.locate(ctx, i); held {
			r.data += int64(v.im.g.chunkLen(i))
		}
	}
	if v.im.Read(ctx, buf[:v.bytes(s)], s.from*int64(v.im.g.chunkSize)) == nil {
		return r
	}
	for i := s.from; i < s.to && ctx.Err() == nil; i++ {
		if _, err := v.im.ReadChunk(ctx, buf, i); err != nil && !errors.Is(err, context.Canceled) {
			r.problems = append(r.problems, problem{int64(v.im.g.chunkLen(i)), err.Error()})
		}
	}
	return r
}

func (v *verifier) take(r result) {
	v.report.DataBytes += r.data
	for _, p := range r.problems {
		v.report.BadBytes += p.bytes
		if len(v.report.Problems) < maxProblems {
			v.report.Problems = append(v.report.Problems, p.text)
		}
	}
}

// Summary is what a list says of an image.
type Summary struct {
	Name        string            `json:"name"`
	Manifest    Digest            `json:"manifest"`
	ContentRoot Digest            `json:"content_root"`
	SizeBytes   int64             `json:"size_bytes"`
	ChunkSize   int               `json:"chunk_size"`
	Created     time.Time         `json:"created,omitzero"`
	Parent      Digest            `json:"parent,omitzero"`
	Labels      map[string]string `json:"labels,omitempty"`
	StoredBytes int64             `json:"stored_bytes"` // of all its blobs, shared or not
	Packs       int               `json:"packs"`
	PackBytes   int64             `json:"pack_bytes"`
	TableBytes  int64             `json:"table_bytes"`
}

// Summary returns what manifest and config say.
func (im *Image) Summary() Summary {
	c := im.config
	digest, _ := ParseDigest(string(im.desc.Digest)) // which this package made
	return Summary{
		Name: im.name, Manifest: digest, ContentRoot: c.ContentRoot, SizeBytes: c.SizeBytes, ChunkSize: c.ChunkSize, Created: c.Created,
		Parent: c.Parent, Labels: c.Labels, StoredBytes: im.StoredBytes(), Packs: len(im.Packs()), PackBytes: sum(im.Packs()),
		TableBytes: im.Table().Size,
	}
}

func sum(blobs []ocispec.Descriptor) int64 {
	n := int64(0)
	for _, b := range blobs {
		n += b.Size
	}
	return n
}

// List returns the images of a source, in order of their names. Other artifacts are left out, and counted.
func List(ctx context.Context, src Source) (images []Summary, others int, err error) {
	tags, err := src.Tags(ctx)
	if err != nil {
		return nil, 0, err
	}
	images = []Summary{}
	for _, tag := range tags {
		if aboutManifest.MatchString(tag) {
			continue
		}
		im, err := Open(ctx, src, tag)
		switch {
		case errors.Is(err, ErrNotImage), errors.Is(err, ErrVersion):
			others++
			continue
		case err != nil:
			return nil, 0, err
		}
		images = append(images, im.Summary())
		if err := im.Close(); err != nil {
			return nil, 0, err
		}
	}
	return images, others, nil
}
