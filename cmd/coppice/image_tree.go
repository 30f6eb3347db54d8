package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"coppice/image"
	"coppice/image/tree"
	"coppice/node"
)

// fileSystem says how a directory or tar becomes a file system.
type fileSystem struct {
	FsSize  size   `placeholder:"SIZE" help:"Size of the file system made of a directory or tar (what it needs, and a quarter, and 64M)."`
	FsLabel string `placeholder:"LABEL" help:"Label of that file system, up to 16 bytes."`
	FsUUID  string `placeholder:"UUID" help:"UUID of that file system (one that follows from NAME)."`

	Rebuild   bool `help:"With --base, make the file system of a directory or tar anew, and look for equal chunks only."`
	KeepTimes bool `help:"With --base, let files that are as they were keep their time of modification, too."`
}

var uuidForm = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

// check refuses what no file system takes, and what does not go together. A file system is made, or changed, or the source is one already.
func (f *fileSystem) check(made, changed bool) error {
	bad := func(message, hint string) error {
		return &node.Error{Code: node.CodeBadRequest, Message: message, Hint: hint}
	}
	set := f.FsSize != 0 || f.FsLabel != "" || f.FsUUID != ""
	switch {
	case !made && *f != fileSystem{}:
		return bad("--fs-size, --fs-label, --fs-uuid, --rebuild and --keep-times are for directories and tars: a disk has its file system already", "leave them out")
	case changed && set:
		return bad("--fs-size, --fs-label and --fs-uuid with --base: the file system is that of the base", "leave them out, or make a new one with --rebuild")
	case !changed && f.KeepTimes:
		return bad("--keep-times: there is no earlier file system", "give it with --base, without --rebuild")
	case len(f.FsLabel) > 16 || strings.ContainsAny(f.FsLabel, "\n\x00"):
		return bad(fmt.Sprintf("--fs-label %q: a label has up to 16 bytes, without line breaks", f.FsLabel), "choose a shorter one")
	case f.FsUUID != "" && !uuidForm.MatchString(f.FsUUID):
		return bad(fmt.Sprintf("--fs-uuid %q is no UUID", f.FsUUID), "write one like 5d51a2b1-afe8-4c3e-9a51-2b1afe84c3e9, or leave it out")
	}
	return nil
}

// treeOptions returns how the file system is made. Unless it is said otherwise, its UUID is that of all versions of an image: so they share more.
func (f *fileSystem) treeOptions(name, scratch string) (tree.Options, error) {
	o := tree.Options{Scratch: scratch, SizeBytes: int64(f.FsSize), UUID: f.FsUUID, Label: f.FsLabel, KeepTimes: f.KeepTimes}
	if repository, _, _ := strings.Cut(name, ":"); o.UUID == "" {
		o.UUID = tree.UUID("file system", repository)
	}
	if os.Getenv("SOURCE_DATE_EPOCH") == "" {
		return o, nil
	}
	created, err := creationTime()
	o.Seconds = created.Unix()
	return o, err
}

// openTree lists the source, where it is a directory or tar, or returns nil.
func (c *imageBuildCmd) openTree(ctx context.Context, scratch string) (*tree.Tree, error) {
	info, err := os.Stat(c.Source)
	switch {
	case err != nil: // who opens it as a disk will say what is wrong
		return nil, nil //nolint:nilerr // see above
	case info.IsDir():
		if err := c.outside(); err != nil {
			return nil, err
		}
		return tree.Directory(ctx, c.Source)
	case c.Raw:
		return nil, nil
	}
	if is, err := tree.IsTar(c.Source); err != nil || !is {
		return nil, err
	}
	return tree.Tar(ctx, c.Source, scratch)
}

// outside refuses an image that would have itself in it.
func (c *imageBuildCmd) outside() error {
	source, err := filepath.EvalSymlinks(c.Source)
	if err != nil {
		return err
	}
	place, err := filepath.Abs(c.Ref.Place)
	if err != nil {
		return err
	}
	if real, err := filepath.EvalSymlinks(place); err == nil {
		place = real
	}
	rel, err := filepath.Rel(source, place)
	if err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("build %s: the directory of images is in %s, and would be in the image", c.Ref, c.Source),
			Hint: "build in another directory"}
	}
	return nil
}

// makeTree makes the file system of a tree, or changes that of the base, and shows how far it is.
func (c *imageBuildCmd) makeTree(env *environment, t *tree.Tree, base *image.Image, scratch string) (*image.File, *tree.UpdateReport, error) {
	o, err := c.treeOptions(c.Ref.Name, scratch)
	if err != nil {
		return nil, nil, err
	}
	bar := newProgress(env.err, "read "+filepath.Base(c.Source))
	defer bar.end()
	o.Progress = bar.show
	if base == nil {
		f, err := tree.Make(env.ctx, t, o)
		return f, nil, err
	}
	f, report, err := tree.Update(env.ctx, base, t, o)
	if err != nil && (errors.Is(err, image.ErrBadOption) || errors.Is(err, tree.ErrFull)) {
		e := node.Explain(err)
		e.Hint = "--rebuild makes a new file system, and stores the chunks that the base does not have"
		return nil, nil, e
	}
	return f, &report, err
}

// open opens what the image is built from. Of a tree that is stored as changed files of the base it also tells how much was changed.
func (c *imageBuildCmd) open(env *environment, base *image.Image) (*image.File, *tree.UpdateReport, error) {
	scratch := os.TempDir()
	if dir, err := os.Stat(c.Ref.Place); err == nil && dir.IsDir() {
		scratch = c.Ref.Place // where there is space for an image
	}
	t, err := c.openTree(env.ctx, scratch)
	if err != nil {
		return nil, nil, err
	}
	if c.Rebuild {
		base = nil
	}
	if err := c.check(t != nil, base != nil); err != nil {
		return nil, nil, err
	}
	if t == nil {
		in, err := image.OpenSource(env.ctx, c.Source, scratch, c.Raw)
		return in, nil, err
	}
	in, report, err := c.makeTree(env, t, base, scratch)
	return in, report, errors.Join(err, t.Close())
}
