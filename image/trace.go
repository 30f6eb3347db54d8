package image

import (
	"context"
	"errors"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of traces, version 1. docs/image-format.md describes them.
const (
	MediaTypeTrace       = "application/vnd.coppice.trace.v1"
	MediaTypeTraceChunks = "application/vnd.coppice.trace.chunks.v1"
	MediaTypeTraceEvents = "application/vnd.coppice.trace.events.v1"
)

// Bounds of what a trace is read with, in bytes.
const (
	MaxTraceChunks = 12 << 20
	MaxTraceEvents = 64 << 20
)

// Trace is what a device on an image was asked for. What its parts mean is not looked at here: it is advice about what to read, and nothing depends on it.
type Trace struct {
	Root   Digest // content root that it is of
	Chunks []byte // the list that is read from, in the format of package cache/prefetch
	Events []byte // all requests, in the format of package ebpf/boottrace
}

// traceTag is the tag of the artifact with the trace of a manifest.
func traceTag(manifest Digest) string { return tagOf(manifest, ".trace") }

// AttachTrace stores a trace beside an image, in the place that it was opened from, instead of the one that there may be. It fails with [ErrOther] for one of other content.
func AttachTrace(ctx context.Context, im *Image, dst Target, t Trace) error {
	err := fmt.Errorf("it is of content root %s, not %s: %w", t.Root, im.ContentRoot(), ErrOther)
	if t.Root == im.ContentRoot() {
		err = putTrace(ctx, dst, im.desc, t)
	}
	if err != nil {
		return fmt.Errorf("attach trace to image %s: %w", im.name, err)
	}
	return nil
}

func putTrace(ctx context.Context, dst Target, subject ocispec.Descriptor, t Trace) error {
	if len(t.Chunks) == 0 || len(t.Chunks) > MaxTraceChunks || len(t.Events) == 0 || len(t.Events) > MaxTraceEvents {
		return fmt.Errorf("%d and %d bytes are not between 1 and %d and %d: %w", len(t.Chunks), len(t.Events), MaxTraceChunks, MaxTraceEvents, ErrBadOption)
	}
	return putReferrer(ctx, dst, subject, MediaTypeTrace, traceTag, []part{{MediaTypeTraceChunks, t.Chunks}, {MediaTypeTraceEvents, t.Events}})
}

// The layers of the trace of an image: the list of chunks, and the events.
const (
	traceChunks = iota
	traceEvents
	traceParts
)

// traceLayers returns what the trace of an image consists of. It fails with [ErrNotFound] where there is none.
func (im *Image) traceLayers(ctx context.Context) (parts [traceParts]ocispec.Descriptor, err error) {
	data, err := im.referrer(ctx, im.src, traceTag)
	if err != nil {
		return parts, err
	}
	layers, err := decodeTrace(data)
	if err != nil {
		return parts, im.corrupt("manifest of the trace", "", "%w", err)
	}
	for i := range parts {
		parts[i] = layers[i].descriptor()
	}
	return parts, nil
}

func decodeTrace(data []byte) (blobList, error) {
	var m struct {
		ArtifactType string   `json:"artifactType"`
		Layers       blobList `json:"layers"`
	}
	if err := decodeJSON(data, &m); err != nil {
		return nil, err
	}
	if m.ArtifactType != MediaTypeTrace || len(m.Layers) != traceParts {
		return nil, fmt.Errorf("artifact type %.80q with %d layers: no trace", m.ArtifactType, len(m.Layers))
	}
	return m.Layers, errors.Join(
		checkBlob(m.Layers[traceChunks].descriptor(), MediaTypeTraceChunks, MaxTraceChunks), checkBlob(m.Layers[traceEvents].descriptor(), MediaTypeTraceEvents, MaxTraceEvents))
}

// TraceChunks returns the list of chunks of the trace that is attached to an image, and fails with [ErrNotFound] where none is. It is what was attached, by whomever.
func TraceChunks(ctx context.Context, im *Image) ([]byte, error) {
	return im.tracePart(ctx, traceChunks)
}

// TraceEvents returns the events of the trace that is attached to an image, as TraceChunks returns the list.
func TraceEvents(ctx context.Context, im *Image) ([]byte, error) {
	return im.tracePart(ctx, traceEvents)
}

func (im *Image) tracePart(ctx context.Context, which int) ([]byte, error) {
	layers, err := im.traceLayers(ctx)
	if err == nil {
		var data []byte
		if data, err = im.readPart(ctx, "trace", layers[which]); err == nil {
			return data, nil
		}
	}
	return nil, fmt.Errorf("read trace of image %s: %w", im.name, err)
}

// TraceChunks returns what the function of that name returns, of the first replica that answers and has a trace.
func (s *Set) TraceChunks(ctx context.Context) ([]byte, error) {
	err := ErrNoReplica
	for _, im := range s.Images() {
		var data []byte
		if data, err = TraceChunks(ctx, im); err == nil {
			return data, nil
		}
	}
	return nil, err
}

// copyTrace carries the trace of an image to where a manifest of the same content is. It fails with [ErrNotAttached] where there is none.
func copyTrace(ctx context.Context, im *Image, dst Target, subject ocispec.Descriptor) error {
	parts, err := im.traceLayers(ctx)
	t := Trace{Root: im.ContentRoot()}
	if err == nil {
		t.Chunks, err = im.readPart(ctx, "trace", parts[traceChunks])
	}
	if err == nil {
		t.Events, err = im.readPart(ctx, "trace", parts[traceEvents])
	}
	if err == nil {
		err = putTrace(ctx, dst, subject, t)
	}
	return err
}
