package main

import (
	"errors"
	"fmt"
	"io"

	"coppice/image"
	"coppice/node"
)

type imageCopyCmd struct {
	output
	sourceFlags
	From imageRef `arg:"" name:"from" help:"Image to copy."`
	To   imageRef `arg:"" name:"to" help:"Where to, and its name there: oci:DIR:NAME:TAG or HOST/REPOSITORY:TAG."`

	Repair bool `help:"Read what is there already, too, and copy what is damaged (directories only)."`
}

// Run copies the image. What was copied when it is interrupted stays, for the next time.
func (c *imageCopyCmd) Run(env *environment) error {
	if _, err := image.ParseDigest(c.To.Name); err == nil {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("copy to %s: an image is copied to a tag", c.To), Hint: "write :TAG, not @sha256:…"}
	}
	bar := newProgress(env.err, "copy "+c.From.Name)
	var report image.CopyReport
	err := c.withImage(env.ctx, c.From.Ref, func(im *image.Image) error {
		o, err := c.options()
		if err != nil {
			return err
		}
		dst, err := c.To.Target(o)
		if err != nil {
			return err
		}
		report, err = image.Copy(env.ctx, im, dst, c.To.Name, image.CopyOptions{Repair: c.Repair, Progress: bar.show})
		return errors.Join(err, dst.Close())
	})
	bar.end()
	if err != nil {
		return explainImage(env, c.To.Ref, err)
	}
	for _, what := range report.Damaged {
		env.warn("damaged, and not copied with the image: %s", what)
	}
	return c.print(env.out, report, func(w io.Writer) {
		fmt.Fprintf(w, "%s: copied to %s, %s; %s were there\ncontent root %s\n",
			c.From, c.To, showBytes(report.CopiedBytes), showBytes(report.SharedBytes), report.ContentRoot)
		if report.Repaired > 0 {
			fmt.Fprintf(w, "%s repaired\n", count(uint64(report.Repaired), "damaged blob"))
		}
	})
}
