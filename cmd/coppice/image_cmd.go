package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"coppice/image"
	"coppice/image/tree"
	"coppice/node"
)

type imageCmd struct {
	Build   imageBuildCmd   `cmd:"" help:"Make an image of a disk, in a directory."`
	List    imageListCmd    `cmd:"" aliases:"ls" help:"List the images of a directory, web server or repository."`
	Inspect imageInspectCmd `cmd:"" help:"Show what an image is, without reading its content."`
	Verify  imageVerifyCmd  `cmd:"" help:"Read all of an image and tell what is damaged."`
	Sign    imageSignCmd    `cmd:"" help:"Sign an image, for machines that take only what is signed."`
	Copy    imageCopyCmd    `cmd:"" help:"Copy an image to a directory or registry."`
	Promote imagePromoteCmd `cmd:"" help:"Give an image another tag in the same place, such as stable."`
	GC      imageGCCmd      `cmd:"" name:"gc" help:"Remove what no image of a directory needs, and store again what is mostly unused."`
	Remove  imageRemoveCmd  `cmd:"" help:"Forget an image, and free what only it used."`
}

// sourceFlags say how servers are reached.
type sourceFlags struct {
	CA      string `name:"ca" placeholder:"FILE" type:"path" help:"Certificates of the authorities that servers are trusted by, in PEM, beside those of the system."`
	TLSCert string `name:"tls-cert" placeholder:"FILE" type:"path" help:"Certificate to show to servers, in PEM."`
	TLSKey  string `name:"tls-key" placeholder:"FILE" type:"path" help:"Its key."`
}

func (f sourceFlags) options() (image.SourceOptions, error) {
	return image.NewSourceOptions(f.CA, f.TLSCert, f.TLSKey)
}

// imageRef is an argument that names an image.
type imageRef struct{ image.Ref }

// UnmarshalText parses a reference, which is no path.
func (r *imageRef) UnmarshalText(text []byte) (err error) {
	if r.Ref, err = image.ParseRef(string(text)); err == nil && r.Kind == image.KindFile {
		err = fmt.Errorf("%q is a path: write oci:DIR:NAME:TAG, http://HOST/DIR:NAME:TAG or HOST/REPOSITORY:TAG", text)
	}
	return err
}

// imagePlace is an argument that names a place with images.
type imagePlace struct{ image.Ref }

// UnmarshalText parses a place.
func (r *imagePlace) UnmarshalText(text []byte) (err error) {
	r.Ref, err = image.ParsePlace(string(text))
	return err
}

// withImage opens an image for as long as f takes.
func (f sourceFlags) withImage(ctx context.Context, r image.Ref, do func(*image.Image) error) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	im, src, err := image.OpenRef(ctx, r, o)
	if err != nil {
		return err
	}
	return errors.Join(do(im), im.Close(), src.Close())
}

// explainImage says what to do about an error with an image.
func explainImage(env *environment, r image.Ref, err error) error {
	if err == nil || errors.Is(err, errSilent) {
		return err
	}
	e := node.Explain(err)
	switch {
	case env.ctx.Err() != nil && errors.Is(err, context.Canceled):
		e.Message = strings.TrimSuffix(e.Message, context.Canceled.Error()) + "interrupted"
		e.Hint = "start it again: what is done is not done twice"
	case e.Hint != "":
	case errors.Is(err, tree.ErrFull):
		e.Hint = "give the file system more space: --fs-size SIZE"
	case errors.Is(err, image.ErrChanged):
		e.Hint = "build from a copy, or a snapshot, that nobody writes to"
	case errors.Is(err, image.ErrRefused) && r.Kind == image.KindRegistry:
		e.Hint = "docker login, or skopeo login --compat-auth-file ~/.docker/config.json, as the user that runs coppice"
	case errors.Is(err, image.ErrNotFound) && r.Kind != image.KindFile:
		e.Hint = "coppice image list shows what is there"
	case errors.Is(err, image.ErrBusy):
		e.Hint = "wait until the build or copy that is under way has ended"
	case errors.Is(err, image.ErrUnsigned), errors.Is(err, image.ErrUntrusted), errors.Is(err, image.ErrExpired), errors.Is(err, image.ErrOtherName):
		e.Hint = "coppice image inspect shows how it is signed; coppice image sign signs it"
	case errors.Is(err, image.ErrVersion):
		e.Hint = "use a later coppice, or build the image again"
	case errors.Is(err, image.ErrCorrupt):
		e.Hint = "coppice image verify finds all that is damaged; copy the image again from a source that is whole"
	case errors.Is(err, image.ErrNoRemoval):
		e.Hint = "let the registry delete: storage.delete.enabled in the configuration of docker-registry"
	}
	return e
}
