package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Referrers are artifacts about a manifest, which they name as their subject: its signatures, a trace, and an index. Each has a tag that follows from the manifest's digest, by which it is found
// in all kinds of places with one request. Registries list them as referrers too: those that do not know of that have the list under a tag, which who uploads keeps (the tag schema).

// aboutManifest matches tags that belong to a manifest: those of its referrers, and the list of them in registries that keep it under a tag.
var aboutManifest = regexp.MustCompile(`^sha256-[0-9a-f]{64}(\.sig|\.trace|\.index)?$`)

// referrerTags are the tags that the referrers of a manifest can have.
func referrerTags(manifest Digest) []string {
	return []string{sigTag(manifest), traceTag(manifest), indexTag(manifest)}
}

func tagOf(manifest Digest, suffix string) string {
	return "sha256-" + strings.TrimPrefix(manifest.String(), digestPrefix) + suffix
}

// withoutReferrers takes what is about a manifest out of an index.
func withoutReferrers(index []ocispec.Descriptor, manifest Digest) []ocispec.Descriptor {
	tags := referrerTags(manifest)
	return slices.DeleteFunc(index, func(d ocispec.Descriptor) bool {
		return slices.Contains(tags, d.Annotations[ocispec.AnnotationRefName])
	})
}

// part is a layer of a referrer, at hand.
type part struct {
	mediaType string
	data      []byte
}

// putReferrer stores an artifact about a manifest, instead of the one of its kind that there may be.
func putReferrer(ctx context.Context, dst Target, subject ocispec.Descriptor, kind string, tag func(Digest) string, layers []part) error {
	if keeper, ok := dst.(interface{ hold() (func(), error) }); ok {
		release, err := keeper.hold()
		if err != nil {
			return err
		}
		defer release()
	}
	config, err := putPart(ctx, dst, part{ocispec.MediaTypeEmptyJSON, []byte("{}")})
	if err != nil {
		return err
	}
	var stored []ocispec.Descriptor
	for _, p := range layers {
		d, err := putPart(ctx, dst, p)
		if err != nil {
			return err
		}
		stored = append(stored, d)
	}
	return putReferrerManifest(ctx, dst, subject, kind, tag, config, stored)
}

// putPart stores a blob that is at hand, unless it is there.
func putPart(ctx context.Context, dst Target, p part) (ocispec.Descriptor, error) {
	d := descriptor(p.mediaType, p.data)
	there, err := dst.HasBlob(ctx, d)
	if err == nil && !there {
		err = dst.PutBlob(ctx, d, bytes.NewReader(p.data))
	}
	return d, err
}

// putReferrerManifest stores the manifest of an artifact about a manifest whose blobs are there. The one that the tag meant before is removed where the target lists what is about a manifest in ways
// of its own: it would be listed for ever.
func putReferrerManifest(ctx context.Context, dst Target, subject ocispec.Descriptor, kind string, tag func(Digest) string, config ocispec.Descriptor, layers []ocispec.Descriptor) error {
	data, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: kind, Config: config, Layers: layers,
		Subject: &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
	})
	if err != nil {
		return err
	}
	if len(data) > maxManifest {
		return fmt.Errorf("manifest has %d bytes, registries take at most %d", len(data), maxManifest)
	}
	of, err := ParseDigest(string(subject.Digest))
	if err != nil {
		return err
	}
	lister, lists := dst.(interface {
		unlist(ctx context.Context, manifest []byte)
	})
	var before []byte
	if lists {
		if before, err = dst.Manifest(ctx, tag(of)); err != nil && !isDamaged(err) {
			return err
		}
	}
	if err := dst.PutManifest(ctx, tag(of), data); err != nil {
		return err
	}
	if before != nil && !bytes.Equal(before, data) {
		lister.unlist(ctx, before)
	}
	return nil
}

// isDamaged tells an error about an artifact that is not what it should be, or not all there, from a failure to read or write it.
func isDamaged(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrVersion)
}

// referrer returns the manifest that a source has of an artifact about the image, and fails with [ErrNotAttached] where there is none.
func (im *Image) referrer(ctx context.Context, src Source, tag func(Digest) string) ([]byte, error) {
	of, err := ParseDigest(string(im.desc.Digest))
	if err != nil {
		return nil, err
	}
	data, err := src.Manifest(ctx, tag(of))
	if errors.Is(err, ErrNotFound) {
		return nil, ErrNotAttached
	}
	return data, err
}

// readPart reads a layer of a referrer, whose size has been checked, and compares its digest.
func (im *Image) readPart(ctx context.Context, what string, d ocispec.Descriptor) ([]byte, error) {
	data := make([]byte, d.Size)
	if err := im.src.ReadBlob(ctx, d, data, 0); err != nil {
		return nil, err
	}
	if got := descriptor("", data).Digest; got != d.Digest {
		return nil, im.corrupt(what, "", "has digest %s, not %s", got, d.Digest)
	}
	return data, nil
}
