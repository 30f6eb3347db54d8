package main

import (
	"fmt"
	"io"
	"time"

	"coppice/image"
)

type imageVerifyCmd struct {
	output
	sourceFlags
	Ref   imageRef `arg:"" help:"Image: oci:DIR:NAME:TAG, http://HOST/DIR:NAME:TAG or HOST/REPOSITORY:TAG."`
	Trust []string `placeholder:"FILE" type:"existingfile" help:"Public key by which, or by another one given so, it must be signed."`
}

// Run verifies the image.
func (c *imageVerifyCmd) Run(env *environment) error {
	keys, err := readKeys(c.Trust)
	if err != nil {
		return err
	}
	bar := newProgress(env.err, "verify "+c.Ref.Name)
	err = c.withImage(env.ctx, c.Ref.Ref, func(im *image.Image) error {
		if len(keys) > 0 {
			if _, err := image.CheckSignature(env.ctx, im, keys, c.Ref.Image, time.Now()); err != nil {
				return err
			}
		}
		report, err := image.Verify(env.ctx, im, bar.show)
		bar.end()
		if err != nil {
			return err
		}
		err = c.print(env.out, report, func(w io.Writer) { writeVerified(w, c.Ref.String(), report) })
		if err == nil && !report.Whole() {
			err = errSilent
		}
		return err
	})
	return explainImage(env, c.Ref.Ref, err)
}

func writeVerified(w io.Writer, ref string, r image.VerifyReport) {
	for _, p := range r.Problems {
		fmt.Fprintln(w, p)
	}
	if r.BadBytes > 0 {
		fmt.Fprintf(w, "%s: %s of %s cannot be read as they should be\n", ref, showBytes(r.BadBytes), showBytes(r.SizeBytes))
		fmt.Fprintln(w, "  to do: coppice image copy --repair from a source that is whole, or remove the image and copy it again")
		return
	}
	fmt.Fprintf(w, "%s: sound; %s, of which %s not zeros, in %.1f s\ncontent root %s\n",
		ref, showBytes(r.SizeBytes), showBytes(r.DataBytes), r.TotalMS/1000, r.ContentRoot)
	for _, a := range r.Attached {
		if len(a.Problems) == 0 {
			fmt.Fprintf(w, "its %s: sound; %s\n", a.Kind, showBytes(a.SizeBytes))
			continue
		}
		for _, p := range a.Problems {
			fmt.Fprintln(w, p)
		}
		fmt.Fprintf(w, "its %s: damaged; the image can be used all the same\n  to do: attach it again\n", a.Kind)
	}
}
