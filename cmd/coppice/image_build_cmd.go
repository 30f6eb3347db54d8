package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"coppice/image"
	"coppice/image/tree"
	"coppice/node"
)

// buildReport is the result of a build.
type buildReport struct {
	image.BuildReport
	Files *tree.UpdateReport `json:"files,omitempty"` // where a tree was stored as changed files
	Index *indexBuildReport  `json:"index,omitempty"`
}

type imageBuildCmd struct {
	output
	sourceFlags
	fileSystem
	Ref       imageRef          `arg:"" help:"What it is to be called: oci:DIR:NAME:TAG. The directory is made where there is none."`
	Source    string            `arg:"" optional:"" type:"path" help:"Raw disk image, block device, qcow2 file, directory, or tar."`
	FromLayer string            `placeholder:"STORE:LAYER" help:"Publish a sealed layer of a store instead of a source: all that a device on it reads."`
	Root      string            `placeholder:"REF" help:"Root that the layer stands on (default: that of a device that has the same)."`
	Base      *imageRef         `placeholder:"REF" help:"Earlier version: what it has is not stored again. Of a directory or tar, only files that differ are written anew."`
	ChunkSize size              `placeholder:"SIZE" help:"Size of a chunk, a power of two from 4K to 1M (64K, or that of --base)."`
	Label     map[string]string `placeholder:"KEY=VALUE" help:"Labels of the image, may be given several times."`
	Raw       bool              `help:"Take a file as it is, also where it looks like something else than a raw disk."`
	Index     bool              `help:"Also index its files, and keep the index beside it."`
	Digests   bool              `help:"With --index: also compute the SHA-256 of every regular file."`
}

// Run builds the image. What was stored when it is interrupted, the next build uses.
func (c *imageBuildCmd) Run(env *environment) error {
	if c.Ref.Kind != image.KindLayout {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("build %s: images are built in a directory", c.Ref),
			Hint: "build oci:DIR:NAME:TAG, and then coppice image copy it"}
	}
	if err := c.checkSource(); err != nil {
		return err
	}
	created, err := creationTime()
	if err != nil {
		return err
	}
	o := image.BuildOptions{ChunkSize: int(c.ChunkSize), Labels: c.Label, Created: created}
	var report buildReport
	if c.FromLayer != "" {
		report.BuildReport, err = c.buildFromLayer(env, o)
	} else {
		report, err = c.build(env, o)
	}
	if err == nil && c.Index {
		push := indexBuildCmd{Push: true, Digests: c.Digests}
		var index indexBuildReport
		index, err = push.ofImage(env, c.Ref.Ref)
		report.Index, err = &index, explainIndex(err)
	}
	if err != nil {
		return explainImage(env, c.Ref.Ref, err)
	}
	return c.print(env.out, report, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s, %s stored in %s", c.Ref, showBytes(report.SizeBytes), showBytes(report.StoredBytes), count(uint64(report.NewPacks), "new pack"))
		if report.BasePacks > 0 {
			fmt.Fprintf(w, " and %s of the base", count(uint64(report.BasePacks), "pack"))
		}
		if c.FromLayer != "" {
			fmt.Fprintf(w, ", %s of the layer read", showBytes(report.ReadBytes))
		}
		if f := report.Files; f != nil {
			fmt.Fprintf(w, ", %s written, %d patched, %d removed", count(uint64(f.Written), "file"), f.Patched, f.Removed)
		}
		fmt.Fprintf(w, ", in %.1f s\ncontent root %s\n", report.TotalMS/1000, report.ContentRoot)
		if report.Index != nil {
			report.Index.write(w)
		}
	})
}

// checkSource sees to it that there is one thing to build from.
func (c *imageBuildCmd) checkSource() error {
	bad := func(message, hint string) error {
		return &node.Error{Code: node.CodeBadRequest, Message: "build " + c.Ref.String() + ": " + message, Hint: hint}
	}
	switch {
	case c.Source == "" && c.FromLayer == "":
		return bad("of what?", "give a disk, or a sealed layer with --from-layer STORE:LAYER")
	case c.Source != "" && c.FromLayer != "":
		return bad("of a source and a layer", "give one of them")
	case c.Digests && !c.Index:
		return bad("--digests without --index", "give --index, too")
	case c.Root != "" && c.FromLayer == "":
		return bad("--root without --from-layer", "a source needs no root; an earlier version is given with --base")
	case c.FromLayer != "" && c.fileSystem != fileSystem{}:
		return bad("of a layer, with options for directories", "leave --fs-size, --fs-label, --fs-uuid, --rebuild and --keep-times out")
	}
	return nil
}

func (c *imageBuildCmd) build(env *environment, o image.BuildOptions) (report buildReport, err error) {
	if c.Base == nil {
		return c.buildOver(env, o)
	}
	err = c.withImage(env.ctx, c.Base.Ref, func(base *image.Image) error {
		o.Base = base
		report, err = c.buildOver(env, o)
		return err
	})
	return report, err
}

func (c *imageBuildCmd) buildOver(env *environment, o image.BuildOptions) (report buildReport, err error) {
	in, files, err := c.open(env, o.Base)
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
	report.Files = files
	report.BuildReport, err = image.Build(env.ctx, l, c.Ref.Name, in, in.Size(), o)
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
