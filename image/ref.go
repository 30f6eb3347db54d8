package image

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"oras.land/oras-go/v2/registry"
)

// Kind is where a reference leads.
type Kind string

// The kinds of references.
const (
	KindFile     Kind = "file"     // a raw file or block device, which is no image
	KindLayout   Kind = "layout"   // oci:DIR:NAME:TAG
	KindWeb      Kind = "web"      // http(s)://HOST/DIR:NAME:TAG
	KindRegistry Kind = "registry" // HOST[:PORT]/REPO:TAG
)

// Ref is a parsed reference of an image, or of a place that has images.
type Ref struct {
	Kind  Kind
	Place string // path, directory, URL, or HOST/REPO
	Name  string // what the place's Manifest takes; "" for a file, and for a place alone
	Image string // the image's name without tag: NAME, or REPO
	text  string

	manifest Digest // zero: not pinned
	index    bool   // Name is the tag of an index
}

// String returns what was parsed.
func (r Ref) String() string { return r.text }

// names are those that OCI allows for org.opencontainers.image.ref.name, and skopeo takes; tags those of registries.
var (
	namePattern = regexp.MustCompile(`^[A-Za-z0-9]+(?:(?:--|[-._:@+])[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:(?:--|[-._:@+])[A-Za-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
)

func validTag(tag string) bool { return tagPattern.MatchString(tag) }

// checkName refuses names of images that others could not use.
func checkName(name string) error {
	if len(name) > 255 || !namePattern.MatchString(name) {
		return fmt.Errorf("name %.80q: letters and digits, joined by one of - . _ : @ + or /, at most 255: %w", name, ErrBadRef)
	}
	return nil
}

const layoutPrefix = "oci:"

// ParseRef parses a reference of an image: oci:DIR:NAME:TAG, http(s)://HOST/DIR:NAME:TAG, HOST[:PORT]/REPO:TAG, or a path. A digest
// stands for a tag: oci:DIR:NAME@sha256:…. What looks like none of the first three is a path; ./ in front makes a path of anything.
func ParseRef(text string) (Ref, error) {
	switch {
	case strings.HasPrefix(text, layoutPrefix):
		place, image, name, err := cutName(text[len(layoutPrefix):])
		if err != nil {
			return Ref{}, fmt.Errorf("reference %.200q: %w: write oci:DIR:NAME:TAG: %w", text, err, ErrBadRef)
		}
		return Ref{Kind: KindLayout, Place: place, Name: name, Image: image, text: text}, nil
	case isURL(text):
		place, image, name, err := cutName(text)
		if err == nil && !strings.Contains(strings.SplitN(place, "://", 2)[1], "/") {
			err = fmt.Errorf("no directory")
		}
		if err != nil {
			return Ref{}, fmt.Errorf("reference %.200q: %w: write http://HOST/DIR:NAME:TAG: %w", text, err, ErrBadRef)
		}
		return Ref{Kind: KindWeb, Place: place, Name: name, Image: image, text: text}, nil
	case looksLikeRegistry(text):
		ref, err := registry.ParseReference(text)
		if err == nil && ref.Reference == "" {
			err = fmt.Errorf("no tag")
		}
		if err != nil {
			return Ref{}, fmt.Errorf("reference %.200q: %w: write HOST/REPOSITORY:TAG, or ./PATH for a file: %w", text, err, ErrBadRef)
		}
		return Ref{Kind: KindRegistry, Place: ref.Registry + "/" + ref.Repository, Name: ref.Reference, Image: ref.Repository, text: text}, nil
	case text == "":
		return Ref{}, fmt.Errorf("reference is empty: %w", ErrBadRef)
	}
	return Ref{Kind: KindFile, Place: text, text: text}, nil
}

// Abs returns the reference with an absolute path where it has one.
func (r Ref) Abs() (Ref, error) {
	if r.Kind != KindFile && r.Kind != KindLayout {
		return r, nil
	}
	prefix := ""
	if r.Kind == KindLayout {
		prefix = layoutPrefix
	}
	place, err := filepath.Abs(r.Place)
	if err != nil {
		return r, err
	}
	r.text = prefix + place + r.text[len(prefix)+len(r.Place):]
	r.Place = place
	return r, nil
}

// Pinned returns the reference of the image that has a manifest: it is opened by the manifest's digest, whatever its tag means by now, and by its tag only
// where the place does not have that manifest any more. What it is called does not change. The zero digest takes the pin away.
func (r Ref) Pinned(manifest Digest) Ref {
	r.manifest = manifest
	return r
}

// Path returns the path that the reference leads to on this machine, or "".
func (r Ref) Path() string {
	if r.Kind == KindFile || r.Kind == KindLayout {
		return r.Place
	}
	return ""
}

// Sibling returns the reference of another image in the same place, by the name that [List] gives it.
func (r Ref) Sibling(name string) string {
	if r.Kind == KindLayout {
		return layoutPrefix + r.Place + ":" + name
	}
	return r.Place + ":" + name
}

// ParsePlace parses a reference without name and tag: oci:DIR, http(s)://HOST/DIR or HOST[:PORT]/REPO.
func ParsePlace(text string) (Ref, error) {
	switch {
	case strings.HasPrefix(text, layoutPrefix) && len(text) > len(layoutPrefix):
		return Ref{Kind: KindLayout, Place: text[len(layoutPrefix):], text: text}, nil
	case isURL(text):
		return Ref{Kind: KindWeb, Place: text, text: text}, nil
	}
	if ref, err := registry.ParseReference(text); err == nil && ref.Reference == "" && !strings.HasPrefix(text, ".") {
		return Ref{Kind: KindRegistry, Place: text, text: text}, nil
	}
	return Ref{}, fmt.Errorf("place %.200q: write oci:DIR, http://HOST/DIR or HOST/REPOSITORY: %w", text, ErrBadRef)
}

func isURL(text string) bool {
	return strings.HasPrefix(text, "http://") || strings.HasPrefix(text, "https://")
}

// cutName cuts NAME:TAG, or NAME@DIGEST, off the end of a text. name is what a place's Manifest takes, image NAME alone.
func cutName(text string) (place, image, name string, err error) {
	fail := func(format string, args ...any) (string, string, string, error) {
		return "", "", "", fmt.Errorf(format, args...)
	}
	left, digest, pinned := strings.Cut(text, "@"+digestPrefix)
	if pinned {
		name = digestPrefix + digest
		if _, err := ParseDigest(name); err != nil {
			return fail("%w", err)
		}
	} else {
		colon := strings.LastIndexByte(text, ':')
		if colon < 0 {
			return fail("no tag")
		}
		if left = text[:colon]; !validTag(text[colon+1:]) {
			return fail("tag %.80q is not letters, digits, '.', '_' and '-'", text[colon+1:])
		}
	}
	colon := strings.LastIndexByte(left, ':')
	if colon <= 0 || strings.HasPrefix(left[colon:], "://") {
		return fail("no tag, or no name")
	}
	place, image = left[:colon], left[colon+1:]
	if !pinned {
		name = text[colon+1:]
	}
	return place, image, name, checkName(image)
}

// looksLikeRegistry reports whether a text begins with a host and ends with a tag or digest. A host has a dot or a port, or is localhost.
func looksLikeRegistry(text string) bool {
	host, rest, ok := strings.Cut(text, "/")
	if !ok || host == "" || strings.HasPrefix(host, ".") {
		return false
	}
	return (host == "localhost" || strings.ContainsAny(host, ".:")) && strings.ContainsAny(rest, ":@")
}

// Source opens the place of a reference for reading.
func (r Ref) Source(o SourceOptions) (Source, error) {
	switch r.Kind {
	case KindLayout:
		return asSource(OpenLayout(r.Place))
	case KindWeb:
		return asSource(OpenWeb(r.Place, o))
	case KindRegistry:
		return asSource(OpenRegistry(r.Place, o))
	}
	return nil, fmt.Errorf("%s is a path, not an image: write oci:DIR:NAME:TAG, http://HOST/DIR:NAME:TAG or HOST/REPOSITORY:TAG: %w", r, ErrBadRef)
}

// asSource keeps a nil of some kind from becoming a Source.
func asSource[S Source](s S, err error) (Source, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Target opens the place of a reference for writing. A directory is made where there is none.
func (r Ref) Target(o SourceOptions) (Target, error) {
	switch r.Kind {
	case KindLayout:
		l, err := CreateLayout(filepath.Clean(r.Place))
		if err != nil {
			return nil, err
		}
		return l, nil
	case KindRegistry:
		reg, err := OpenRegistry(r.Place, o)
		if err != nil {
			return nil, err
		}
		return reg, nil
	}
	return nil, fmt.Errorf("%s: only a directory (oci:DIR:NAME:TAG) and a registry (HOST/REPOSITORY:TAG) can be written to: %w", r, ErrReadOnly)
}

// OpenRef opens the image that a reference means. Both are the caller's to close, the image first.
func OpenRef(ctx context.Context, r Ref, o SourceOptions) (*Image, Source, error) {
	src, err := r.Source(o)
	if err != nil {
		return nil, nil, err
	}
	im, err := r.open(ctx, src)
	if err != nil {
		return nil, nil, errors.Join(err, src.Close())
	}
	return im, src, nil
}

func (r Ref) open(ctx context.Context, src Source) (*Image, error) {
	if r.index {
		data, err := r.indexManifest(ctx, src)
		if err != nil {
			return nil, err
		}
		x, err := openIndex(ctx, src, data, r.Image)
		if err != nil {
			return nil, err
		}
		return x.Image, nil
	}
	if r.manifest != (Digest{}) {
		im, err := Open(ctx, src, r.manifest.String())
		if !errors.Is(err, ErrNotFound) {
			return im, err
		}
	}
	return Open(ctx, src, r.Name)
}

// indexManifest returns the manifest of an index.
func (r Ref) indexManifest(ctx context.Context, src Source) ([]byte, error) {
	if r.manifest != (Digest{}) {
		data, err := src.Manifest(ctx, r.manifest.String())
		if !errors.Is(err, ErrNotFound) {
			return data, err
		}
	}
	return src.Manifest(ctx, r.Name)
}
