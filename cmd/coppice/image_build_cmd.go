package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"coppice/image"
	"coppice/node"
)

type imageBuildCmd struct {
	output
	sourceFlags
	fileSystem
	Ref       imageRef          `arg:"" help:"What it is to be called: oci:DIR:NAME:TAG. The directory is made where there is none."`
	Source    string            `arg:"" type:"path" help:"Raw disk image, block device, qcow2 file, or directory."`
	Base      *imageRef         `placeholder:"REF" help:"Earlier version: what it has is not stored again."`
	ChunkSize size              `placeholder:"SIZE" help:"Size of a chunk, a power of two from 4K to 1M (64K, or that of --base)."`
	Label     map[string]string `placeholder:"KEY=VALUE" help:"Labels of the image, may be given several times."`
	Raw       bool              `help:"Take the source as it is, also where it looks like something else than a raw disk."`
}

// Run builds the image. What was stored when it is interrupted, the next build uses.
func (c *imageBuildCmd) Run(env *environment) error {
	if c.Ref.Kind != image.KindLayout {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("build %s: images are built in a directory", c.Ref),
			Hint: "build oci:DIR:NAME:TAG, and then coppice image copy it"}
	}
	created, err := creationTime()
	if err != nil {
		return err
	}
	o := image.BuildOptions{ChunkSize: int(c.ChunkSize), Labels: c.Label, Created: created}
	report, err := c.build(env, o)
	if err != nil {
		return explainImage(env, c.Ref.Ref, err)
	}
	return c.print(env.out, report, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s, %s stored in %s", c.Ref, showBytes(report.SizeBytes), showBytes(report.StoredBytes), count(uint64(report.NewPacks), "new pack"))
		if report.BasePacks > 0 {
			fmt.Fprintf(w, " and %s of the base", count(uint64(report.BasePacks), "pack"))
		}
		fmt.Fprintf(w, ", in %.1f s\ncontent root %s\n", report.TotalMS/1000, report.ContentRoot)
	})
}

func (c *imageBuildCmd) build(env *environment, o image.BuildOptions) (report image.BuildReport, err error) {
	in, err := c.open(env)
	if err != nil {
		return report, err
	}
	defer in.Close()
	l, err := image.CreateLayout(c.Ref.Place)
	if err != nil {
		return report, err
	}
	bar := newProgress(env.err, "build "+c.Ref.Name)
	defer bar.end()
	o.Progress = bar.show
	if c.Base == nil {
		report, err = image.Build(env.ctx, l, c.Ref.Name, in, in.Size(), o)
		return report, errors.Join(err, l.Close())
	}
	err = c.withImage(env.ctx, c.Base.Ref, func(base *image.Image) error {
		o.Base = base
		report, err = image.Build(env.ctx, l, c.Ref.Name, in, in.Size(), o)
		return err
	})
	return report, errors.Join(err, l.Close())
}

// creationTime is now, or what reproducible builds say it is.
func creationTime() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return time.Now().UTC().Truncate(time.Second), nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if t := time.Unix(seconds, 0).UTC(); err == nil && t.Year() >= 1970 && t.Year() <= 9999 {
		return t, nil
	}
	return time.Time{}, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("SOURCE_DATE_EPOCH is %q", text),
		Hint: "set it to seconds since 1970, or unset it"}
}
