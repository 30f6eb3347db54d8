package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"aead.dev/minisign"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of signatures, version 1. docs/image-format.md describes them.
const (
	MediaTypeSignatures = "application/vnd.coppice.image.signatures.v1"
	MediaTypeStatement  = "application/vnd.coppice.image.statement.v1+json"
	MediaTypeMinisig    = "application/vnd.coppice.image.minisig.v1"

	statementType = "coppice image statement 1"

	maxSignatures = 16
	maxStatement  = 16 << 10
	maxMinisig    = 4 << 10
)

// Causes for which an image is not trusted.
var (
	ErrUnsigned  = errors.New("not signed")
	ErrUntrusted = errors.New("not signed by a trusted key")
	ErrExpired   = errors.New("signature has expired")
	ErrOtherName = errors.New("signed under another name")
)

// Statement is what a signature says of an image. It is about the content: a copy, and a repacked image, is signed as well.
type Statement struct {
	Type        string    `json:"type"`
	Name        string    `json:"name"`   // of the image, without tag
	Serial      uint64    `json:"serial"` // versions of a name have serials that grow
	ContentRoot Digest    `json:"content_root"`
	SizeBytes   int64     `json:"size"`
	Expires     time.Time `json:"expires,omitzero"`
}

func decodeStatement(data []byte) (*Statement, error) {
	var s Statement
	if err := decodeJSON(data, &s); err != nil {
		return nil, err
	}
	if s.Type != statementType {
		return nil, fmt.Errorf("type %.80q, this program knows %q: %w", s.Type, statementType, ErrVersion)
	}
	if err := checkName(s.Name); err != nil {
		return nil, err
	}
	return &s, nil
}

// Signature is a statement with its signature in the format of minisign.
type Signature struct {
	Statement Statement
	KeyID     uint64 // a hint, that nothing vouches for
	text, sig []byte
}

// signedBy reports whether a key made the signature.
func (s *Signature) signedBy(key minisign.PublicKey) bool { return minisign.Verify(key, s.text, s.sig) }

// sigTag is the tag of the artifact with the signatures of a manifest.
func sigTag(manifest Digest) string { return tagOf(manifest, ".sig") }

// Sign adds a signature to an image in the place that it was opened from, instead of one by the same key. Type, content root and size of
// the statement are filled in.
func Sign(ctx context.Context, im *Image, dst Target, key minisign.PrivateKey, s Statement) (Statement, error) {
	s.Type, s.ContentRoot, s.SizeBytes = statementType, im.ContentRoot(), im.Size()
	fail := func(err error) (Statement, error) { return s, fmt.Errorf("sign image %s: %w", im.name, err) }
	text, err := json.Marshal(s)
	if err == nil {
		_, err = decodeStatement(text)
	}
	if err != nil {
		return fail(err)
	}
	all, err := Signatures(ctx, im)
	if err != nil {
		return fail(err)
	}
	public, _ := key.Public().(minisign.PublicKey)
	all = slices.DeleteFunc(all, func(old Signature) bool { return old.signedBy(public) })
	sig := minisign.SignWithComments(key, text, fmt.Sprintf("%s serial %d", s.Name, s.Serial), "signature of a coppice image")
	all = append(all, Signature{text: text, sig: sig})
	if len(all) > maxSignatures {
		return fail(fmt.Errorf("%d signatures, at most %d are taken", len(all), maxSignatures))
	}
	if err := putSignatures(ctx, dst, im.desc, all); err != nil {
		return fail(err)
	}
	return s, nil
}

func putSignatures(ctx context.Context, dst Target, subject ocispec.Descriptor, all []Signature) error {
	var layers []part
	for _, s := range all {
		layers = append(layers, part{MediaTypeStatement, s.text}, part{MediaTypeMinisig, s.sig})
	}
	return putReferrer(ctx, dst, subject, MediaTypeSignatures, sigTag, layers)
}

// Signatures returns what an image is signed with, by whomever: nothing is verified.
func Signatures(ctx context.Context, im *Image) ([]Signature, error) {
	data, err := im.referrer(ctx, im.src, sigTag)
	switch {
	case errors.Is(err, ErrNotAttached):
		return nil, nil
	case err != nil:
		return nil, err
	}
	layers, err := decodeSignatures(data)
	if err != nil {
		return nil, im.corrupt("list of signatures", "", "%w", err)
	}
	var all []Signature
	for pair := range slices.Chunk(layers, 2) {
		s, err := im.readSignature(ctx, pair[0].descriptor(), pair[1].descriptor())
		if err != nil {
			return nil, err
		}
		all = append(all, *s)
	}
	return all, nil
}

// decodeSignatures returns statements and signatures, in turn.
func decodeSignatures(data []byte) (blobList, error) {
	var m struct {
		ArtifactType string   `json:"artifactType"`
		Layers       blobList `json:"layers"`
	}
	if err := decodeJSON(data, &m); err != nil {
		return nil, err
	}
	if m.ArtifactType != MediaTypeSignatures || len(m.Layers)%2 != 0 || len(m.Layers) > 2*maxSignatures {
		return nil, fmt.Errorf("artifact type %.80q with %d layers: no list of at most %d signatures", m.ArtifactType, len(m.Layers), maxSignatures)
	}
	for i, b := range m.Layers {
		kind, most := MediaTypeStatement, int64(maxStatement)
		if i%2 == 1 {
			kind, most = MediaTypeMinisig, maxMinisig
		}
		if err := checkBlob(b.descriptor(), kind, most); err != nil {
			return nil, err
		}
	}
	return m.Layers, nil
}

func (im *Image) readSignature(ctx context.Context, text, sig ocispec.Descriptor) (*Signature, error) {
	s := &Signature{}
	var errs [2]error
	s.text, errs[0] = im.readPart(ctx, "signature", text)
	s.sig, errs[1] = im.readPart(ctx, "signature", sig)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("read signature: %w", err)
	}
	statement, err := decodeStatement(s.text)
	if err != nil {
		return nil, im.corrupt("statement", "", "%w", err)
	}
	s.Statement = *statement
	var parsed minisign.Signature
	if err := parsed.UnmarshalText(s.sig); err != nil {
		return nil, im.corrupt("signature", "", "%w", err)
	}
	s.KeyID = parsed.KeyID
	return s, nil
}

// CheckSignature returns the statement with the highest serial that a trusted key signed about the image, that has the image's name and that
// has not expired. name is what the image is referred to by, without tag; a statement's name is that, or the end of it behind a slash.
func CheckSignature(ctx context.Context, im *Image, keys []minisign.PublicKey, name string, now time.Time) (*Statement, error) {
	all, err := Signatures(ctx, im)
	if err != nil {
		return nil, fmt.Errorf("check signature of image %s: %w", im.name, err)
	}
	err = ErrUnsigned
	var best *Statement
	for _, s := range all {
		bad := s.check(im, keys, name, now)
		switch {
		case bad != nil && (errors.Is(err, ErrUnsigned) || !errors.Is(bad, ErrUntrusted)): // which says more
			err = bad
		case bad != nil:
		case best == nil || s.Statement.Serial > best.Serial:
			best = &s.Statement
		}
	}
	if best == nil {
		return nil, fmt.Errorf("check signature of image %s: %w", im.name, err)
	}
	return best, nil
}

func (s *Signature) check(im *Image, keys []minisign.PublicKey, name string, now time.Time) error {
	if !slices.ContainsFunc(keys, s.signedBy) {
		return fmt.Errorf("key %016X: %w", s.KeyID, ErrUntrusted)
	}
	t := &s.Statement
	switch {
	case t.ContentRoot != im.ContentRoot() || t.SizeBytes != im.Size():
		return fmt.Errorf("the signed statement is about content root %s: %w", t.ContentRoot, ErrUntrusted)
	case name != t.Name && !strings.HasSuffix(name, "/"+t.Name):
		return fmt.Errorf("as %.80q, not %.80q: %w", t.Name, name, ErrOtherName)
	case !t.Expires.IsZero() && !now.Before(t.Expires):
		return fmt.Errorf("on %s: %w", t.Expires.UTC().Format(time.RFC3339), ErrExpired)
	}
	return nil
}

// copySignatures carries what an image is signed with, after the image.
func copySignatures(ctx context.Context, im *Image, dst Target) error {
	all, err := Signatures(ctx, im)
	if err != nil || len(all) == 0 {
		return err
	}
	return putSignatures(ctx, dst, im.desc, all)
}
