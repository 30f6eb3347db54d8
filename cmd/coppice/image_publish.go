package main

import (
	"errors"
	"fmt"
	"iter"
	"path/filepath"

	"coppice/image"
	"coppice/node"
	"coppice/union"
)

// buildFromLayer publishes a sealed layer. Of a root that is an image, what the layers do not hold is taken over by its digests.
func (c *imageBuildCmd) buildFromLayer(env *environment, o image.BuildOptions) (report image.BuildReport, err error) {
	request, err := c.contentRequest()
	if err != nil {
		return report, err
	}
	bar := newProgress(env.err, "build "+c.Ref.Name)
	defer bar.end()
	o.Progress = bar.show
	client := env.client()
	client.Wait = 0
	how := node.ImageConfig{CA: c.CA, TLSCert: c.TLSCert, TLSKey: c.TLSKey}
	err = node.WithContent(env.ctx, client, how, request, func(in node.LayerContent) error {
		return c.withRoot(env, in, o, func(o image.BuildOptions) error {
			l, err := image.CreateLayout(c.Ref.Place)
			if err != nil {
				return err
			}
			report, err = image.Build(env.ctx, l, c.Ref.Name, in, in.Size(), o)
			return errors.Join(err, l.Close())
		})
	})
	return report, explainStore(request.Store, err)
}

func (c *imageBuildCmd) contentRequest() (r node.ContentRequest, err error) {
	store, layer := splitLeaf(c.FromLayer)
	if layer == "" {
		return r, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("--from-layer %s: no layer", c.FromLayer), Hint: "write STORE:LAYER; `coppice store info STORE` lists the layers"}
	}
	root, err := absoluteRoot(c.Root)
	store, errStore := filepath.Abs(store)
	return node.ContentRequest{Store: store, Layer: layer, Root: root}, errors.Join(err, errStore)
}

// withRoot opens what the new image is built over: the image that the layer stands on, or else what the flag says.
func (c *imageBuildCmd) withRoot(env *environment, in node.LayerContent, o image.BuildOptions, build func(image.BuildOptions) error) error {
	base := c.Base
	if in.Pin().Kind == union.PinImage {
		if base != nil {
			return &node.Error{Code: node.CodeBadRequest, Message: "--base with a layer that stands on an image", Hint: "leave it away: that image is the base"}
		}
		ref, err := image.ParseRef(in.Root())
		if err != nil {
			return err
		}
		base = &imageRef{ref}
	}
	if base == nil {
		return build(o)
	}
	return c.withImage(env.ctx, base.Ref, func(im *image.Image) error {
		o.Base = im
		if in.Pin().Kind == union.PinImage {
			if union.Digest(im.ContentRoot()) != in.Pin().Digest {
				return fmt.Errorf("%s: %w: its content root is %s", base, union.ErrOtherRoot, im.ContentRoot())
			}
			o.Changed = func() iter.Seq2[image.Extent, error] { return extents(in) }
		}
		return build(o)
	})
}

// extents are those of a layer in the words of the builder.
func extents(in node.LayerContent) iter.Seq2[image.Extent, error] {
	return func(yield func(image.Extent, error) bool) {
		for x, err := range in.Changed() {
			if !yield(image.Extent{Off: x.Off, Len: x.Len, Zero: x.Zero}, err) {
				return
			}
		}
	}
}
