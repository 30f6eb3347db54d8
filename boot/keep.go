package boot

import (
	"context"
	"errors"
	"fmt"

	"coppice/image"
	"coppice/node"
	"coppice/union"
)

// createKept makes the device on the root that the layer was made for, where one of the places of the root that is asked for has it, under any name.
func (s *starter) createKept(ctx context.Context, req node.CreateRequest) (node.Device, error) {
	l, found, err := layerOf(req.Store, req.Layer)
	switch {
	case err != nil:
		return node.Device{}, err
	case !found || l.Pin.Kind != union.PinImage:
		return node.Device{}, s.notKept(l, errors.New("only images are found by what they hold"))
	}
	options, err := image.NewSourceOptions(s.config.Images.CA, s.config.Images.TLSCert, s.config.Images.TLSKey)
	if err != nil {
		return node.Device{}, err
	}
	var roots []string
	var errs []error
	for _, text := range s.params.Roots {
		ref, err := findContent(ctx, text, image.Digest(l.Pin.Digest), options)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		roots = append(roots, ref)
	}
	if len(roots) == 0 {
		return node.Device{}, s.notKept(l, errors.Join(errs...))
	}
	s.console.say("layer %s was made for another root than %s: staying with that, %s", l.Name, s.params.Roots[0], roots[0])
	req.Roots = roots
	return s.client.Create(ctx, req)
}

func (s *starter) notKept(l union.LayerInfo, why error) error {
	return problem(node.CodeOtherRoot,
		"put that image back beside the new one; or give ,policy=fresh for a new layer, which leaves the old one as it is",
		"layer %s of leaf disk %s was made for the root with content %x, which is not to be found: %v", l.Name, s.params.Leaf, l.Pin.Digest[:6], why)
}

// findContent returns a reference of the image with a content in the place of another.
func findContent(ctx context.Context, text string, content image.Digest, options image.SourceOptions) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	ref, err := image.ParseRef(text)
	if err != nil {
		return "", err
	}
	src, err := ref.Source(options)
	if err != nil {
		return "", fmt.Errorf("root %s: %w", text, err)
	}
	images, _, err := image.List(ctx, src)
	if err := errors.Join(err, src.Close()); err != nil {
		return "", fmt.Errorf("root %s: list what is there: %w", text, err)
	}
	for _, im := range images {
		if im.ContentRoot == content {
			return ref.Sibling(im.Name), nil
		}
	}
	return "", fmt.Errorf("root %s: none of the %d images there holds it: %w", text, len(images), image.ErrNotFound)
}
