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
	Ref   imageRef `arg:"" help:"Image to forget: oci:DIR:NAME:TAG or HOST/REPOSITORY:TAG."`
	Force bool     `help:"Also if devices use it, which get I/O errors then, or if that cannot be found out."`
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
	leases, err := env.leases(c.Ref.Ref, c.Force)
	if err != nil {
		return err
	}
	dst, err := c.target(o)
	if err != nil {
		return explainImage(env, c.Ref.Ref, err)
	}
	removed, err := image.Remove(env.ctx, dst, c.Ref.Name, image.RemoveOptions{Leases: leases, Force: c.Force})
	env.warnLeases(removed.Bad)
	if err = errors.Join(err, dst.Close()); err != nil {
		return c.explain(env, err)
	}
	for _, lease := range removed.InUse {
		env.warn("%s is needed by %s: what that reads of it from now on fails with I/O errors", c.Ref, lease)
	}
	return c.print(env.out, removed, func(w io.Writer) {
		fmt.Fprintf(w, "%s: removed\n", c.Ref)
		if removed.Kept {
			fmt.Fprintln(w, "what it used is freed by the next removal: something is written to the directory just now")
		}
	})
}

func (c *imageRemoveCmd) explain(env *environment, err error) error {
	err = explainImage(env, c.Ref.Ref, err)
	var e *node.Error
	switch {
	case !errors.As(err, &e):
	case errors.Is(err, image.ErrLeased):
		e.Code, e.Hint = node.CodeInUse, "delete the device and remove its layer, or detach it; a node that is gone keeps an image for 30 days; --force removes it all the same"
	case errors.Is(err, image.ErrCorrupt):
		e.Hint = "who uses it cannot be told: --force removes it all the same"
	}
	return err
}

// target opens the place, which is not made for this.
func (c *imageRemoveCmd) target(o image.SourceOptions) (image.Target, error) {
	if c.Ref.Kind != image.KindLayout {
		return c.Ref.Target(o)
	}
	l, err := image.OpenLayout(c.Ref.Place)
	if err != nil {
		return nil, err
	}
	return l, nil
}
