package main

import (
	"errors"
	"fmt"
	"io"

	"coppice/image"
	"coppice/node"
)

type imageRemoveCmd struct {
	output
	sourceFlags
	Ref imageRef `arg:"" help:"Image to forget: oci:DIR:NAME:TAG or HOST/REPOSITORY:TAG."`
}

// imageRemoved is what remove prints.
type imageRemoved struct {
	Name string `json:"name"`
	Kept bool   `json:"blobs_kept"` // because somebody writes to the directory just now
}

// Run forgets the image.
func (c *imageRemoveCmd) Run(env *environment) error {
	if _, err := image.ParseDigest(c.Ref.Name); err == nil {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("remove %s: a tag is removed", c.Ref), Hint: "write :TAG, not @sha256:…"}
	}
	o, err := c.options()
	if err != nil {
		return err
	}
	removed := imageRemoved{Name: c.Ref.Name}
	err = c.remove(env, o)
	if errors.Is(err, image.ErrBusy) {
		removed.Kept, err = true, nil
	}
	if err != nil {
		return explainImage(env, c.Ref.Ref, err)
	}
	return c.print(env.out, removed, func(w io.Writer) {
		fmt.Fprintf(w, "%s: removed\n", c.Ref)
		if removed.Kept {
			fmt.Fprintln(w, "what it used is freed by the next removal: something is written to the directory just now")
		}
	})
}

func (c *imageRemoveCmd) remove(env *environment, o image.SourceOptions) error {
	if c.Ref.Kind == image.KindLayout { // which is not made for this
		l, err := image.OpenLayout(c.Ref.Place)
		if err != nil {
			return err
		}
		return errors.Join(l.Remove(env.ctx, c.Ref.Name), l.Close())
	}
	dst, err := c.Ref.Target(o)
	if err != nil {
		return err
	}
	return errors.Join(dst.Remove(env.ctx, c.Ref.Name), dst.Close())
}
