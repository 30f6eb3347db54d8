package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Referrers are artifacts about a manifest, which they name as their subject: its signatures, and a trace. Each has a tag that follows from the manifest's digest, by which it is found
// in all kinds of places with one request. Registries list them as referrers too: those that do not know of that have the list under a tag, which who uploads keeps (the tag schema).

// aboutManifest matches tags that belong to a manifest: those of its referrers, and the list of them in registries that keep it under a tag.
var aboutManifest = regexp.MustCompile(`^sha256-[0-9a-f]{64}(\.sig|\.trace)?$`)

// referrerTags are the tags that the referrers of a manifest can have.
func referrerTags(manifest Digest) []string { return []string{sigTag(manifest), traceTag(manifest)} }

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
	put := func(p part) (ocispec.Descriptor, error) {
		d := descriptor(p.mediaType, p.data)
		there, err := dst.HasBlob(ctx, d)
		if err == nil && !there {
			err = dst.PutBlob(ctx, d, bytes.NewReader(p.data))
		}
		return d, err
	}
	config, err := put(part{ocispec.MediaTypeEmptyJSON, []byte("{}")})
	if err != nil {
		return err
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: kind, Config: config,
		Subject: &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
	}
	for _, p := range layers {
		d, err := put(p)
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, d)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	of, err := ParseDigest(string(subject.Digest))
	if err != nil {
		return err
	}
	return dst.PutManifest(ctx, tag(of), data)
}

// referrer returns the manifest of an artifact about the image; nil where there is none.
func (im *Image) referrer(ctx context.Context, tag func(Digest) string) ([]byte, error) {
	of, err := ParseDigest(string(im.desc.Digest))
	if err != nil {
		return nil, err
	}
	data, err := im.src.Manifest(ctx, tag(of))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
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
