package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"coppice/image"
	"coppice/node"
)

type imagePromoteCmd struct {
	output
	sourceFlags
	Ref   imageRef `arg:"" help:"Image: oci:DIR:NAME:TAG or HOST/REPOSITORY:TAG, or with @sha256:… instead of the tag."`
	To    string   `arg:"" name:"tag" help:"TAG that is to mean it too, in a directory also NAME:TAG."`
	Trust []string `placeholder:"FILE" type:"existingfile" help:"Public key by which, or by another one given so, it must be signed."`
}

// Run lets the tag mean the image.
func (c *imagePromoteCmd) Run(env *environment) error {
	keys, err := readKeys(c.Trust)
	if err != nil {
		return err
	}
	name, err := c.name()
	if err != nil {
		return err
	}
	var p image.Promotion
	err = c.withImage(env.ctx, c.Ref.Ref, func(im *image.Image) error {
		if len(keys) > 0 {
			if _, err := image.CheckSignature(env.ctx, im, keys, c.Ref.Image, time.Now()); err != nil {
				return err
			}
		}
		o, err := c.options()
		if err != nil {
			return err
		}
		dst, err := c.Ref.Target(o)
		if err != nil {
			return err
		}
		p, err = image.Promote(env.ctx, im, dst, name)
		return errors.Join(err, dst.Close())
	})
	if err != nil {
		return explainImage(env, c.Ref.Ref, err)
	}
	return c.print(env.out, p, func(w io.Writer) {
		fmt.Fprintf(w, "%s: is %s now\ncontent root %s\n", c.Ref, p.Name, p.ContentRoot)
		switch {
		case p.Before == nil:
		case *p.Before == p.Manifest:
			fmt.Fprintln(w, "as it was before")
		default:
			fmt.Fprintf(w, "before, that was %s\n", p.Before)
		}
	})
}

// name is what the target's place calls it.
func (c *imagePromoteCmd) name() (string, error) {
	name, tag, hasName := strings.Cut(c.To, ":")
	if !hasName {
		name, tag = c.Ref.Image, c.To
	}
	text := "oci:" + c.Ref.Place + ":" + name
	switch c.Ref.Kind {
	case image.KindWeb:
		return "", &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("promote %s: a web server only serves images", c.Ref), Hint: "promote it in the directory that the server has"}
	case image.KindRegistry:
		if hasName {
			return "", &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("promote %s to %s: a registry has one name in a repository", c.Ref, c.To),
				Hint: "give a tag alone, or coppice image copy it to another repository"}
		}
		text = c.Ref.Place
	}
	ref, err := image.ParseRef(text + ":" + tag)
	if err != nil || ref.Kind != c.Ref.Kind {
		return "", &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("promote %s to %.80q: not a tag", c.Ref, c.To), Hint: "give a TAG such as stable, or NAME:TAG"}
	}
	return ref.Name, nil
}
