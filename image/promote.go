package image

import (
	"context"
	"errors"
	"fmt"
)

// Promotion tells what a name means now.
type Promotion struct {
	Name        string  `json:"name"`
	Manifest    Digest  `json:"manifest"`
	ContentRoot Digest  `json:"content_root"`
	Before      *Digest `json:"before,omitempty"` // the manifest that the name meant before, if any
}

// Promote lets another name in the same place mean an image, by its digest: what the name that it was opened by means by now does not
// matter. dst is the place that im was opened from. Nothing is copied, and who asks for the name gets the one or the other.
func Promote(ctx context.Context, im *Image, dst Target, name string) (Promotion, error) {
	p := Promotion{Name: name, ContentRoot: im.ContentRoot()}
	if err := p.promote(ctx, im, dst); err != nil {
		return p, fmt.Errorf("promote image %s to %s in %s: %w", im.name, name, dst, err)
	}
	return p, nil
}

func (p *Promotion) promote(ctx context.Context, im *Image, dst Target) (err error) {
	if p.Manifest, err = ParseDigest(string(im.desc.Digest)); err != nil {
		return err
	}
	l, isLayout := dst.(*Layout)
	if isLayout { // a registry looks for itself
		release, err := l.hold()
		if err != nil {
			return err
		}
		defer release()
		for _, b := range im.manifest.blobs() {
			if there, err := l.HasBlob(ctx, b); err != nil || !there {
				return errors.Join(err, fmt.Errorf("blob %s of it: %w", b.Digest, ErrNotFound))
			}
		}
	}
	data, err := dst.Manifest(ctx, p.Manifest.String())
	if err != nil {
		return err
	}
	before, err := dst.Manifest(ctx, p.Name)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil && !errors.Is(err, ErrCorrupt): // which is about to be mended
		return err
	case err == nil:
		d, err := ParseDigest(string(descriptor("", before).Digest))
		if err != nil {
			return err
		}
		p.Before = &d
	}
	return dst.PutManifest(ctx, p.Name, data)
}
