package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"coppice/idxshare"
	"coppice/image"
	"coppice/node"
	"coppice/union"
)

type indexBuildCmd struct {
	output
	sourceFlags
	Source  string `arg:"" help:"Image (oci:DIR:NAME:TAG, http://HOST/DIR:NAME:TAG or HOST/REPOSITORY:TAG), raw disk image, or block device."`
	To      string `placeholder:"FILE" type:"path" help:"Write the index to a file; one that exists is replaced."`
	Push    bool   `help:"Keep it beside the image."`
	Key     string `placeholder:"FILE" type:"existingfile" help:"With --push: sign it with this secret key."`
	Digests bool   `help:"Also compute the SHA-256 of every regular file."`
}

// indexBuildReport is what build prints.
type indexBuildReport struct {
	Source string `json:"source"`
	idxshare.BuildReport
	File    string            `json:"file,omitempty"`
	Shared  *indexShareReport `json:"shared,omitempty"`
	TotalMS float64           `json:"total_ms"`
}

// Run indexes the source.
func (c *indexBuildCmd) Run(env *environment) error {
	ref, err := image.ParseRef(c.Source)
	isImage := err == nil && ref.Kind != image.KindFile
	bad := func(message, hint string) error {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("index %s: %s", c.Source, message), Hint: hint}
	}
	switch {
	case err != nil:
		return err
	case c.To == "" && !c.Push:
		return bad("what for?", "give --to FILE, or --push for an image")
	case c.Push && !isImage:
		return bad("there is no image to keep it beside", "make one: coppice image build; or give --to FILE alone")
	case c.Key != "" && !c.Push:
		return bad("--key without --push", "a file is not signed")
	}
	var report indexBuildReport
	if isImage {
		report, err = c.ofImage(env, ref)
		err = explainImage(env, ref, explainIndex(err))
	} else {
		report, err = c.ofDisk(env)
	}
	if err != nil {
		return explainIndex(err)
	}
	return c.print(env.out, report, report.write)
}

func (c *indexBuildCmd) ofDisk(env *environment) (indexBuildReport, error) {
	raw, err := union.OpenRaw(c.Source)
	if err != nil {
		return indexBuildReport{}, err
	}
	defer func() { _ = raw.Close() }() // it was only read
	return buildIndex(env, c.Source, c.To, c.Digests, idxshare.BuildInput{Device: raw.File(), Size: raw.Size(), Source: rawSource(raw.Pin()), Path: c.Source})
}

func (c *indexBuildCmd) ofImage(env *environment, ref image.Ref) (report indexBuildReport, err error) {
	err = c.withImage(env.ctx, ref, func(im *image.Image) error {
		report, err = c.indexImage(env, ref, im)
		return err
	})
	return report, err
}

// indexImage indexes an image that is open, and shares the index.
func (c *indexBuildCmd) indexImage(env *environment, ref image.Ref, im *image.Image) (report indexBuildReport, err error) {
	path := c.To
	if path == "" {
		dir, err := os.MkdirTemp("", "coppice-index-")
		if err != nil {
			return report, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		path = filepath.Join(dir, "index")
	}
	im.Cache(indexCache)
	in := idxshare.BuildInput{Device: im, Size: im.Size(), Source: im.ContentRoot().String()}
	if report, err = buildIndex(env, ref.String(), path, c.Digests, in); err != nil || !c.Push {
		return report, err
	}
	report.File = c.To
	shared, err := shareIndex(env, ref, im, c.sourceFlags, path, c.Key)
	report.Shared = &shared
	return report, err
}

func buildIndex(env *environment, source, path string, digests bool, in idxshare.BuildInput) (indexBuildReport, error) {
	began := time.Now()
	built, err := idxshare.Build(env.ctx, path, in, idxshare.BuildOptions{Digests: digests})
	if err != nil {
		return indexBuildReport{}, fmt.Errorf("index %s: %w", source, err)
	}
	return indexBuildReport{Source: source, BuildReport: built, File: path, TotalMS: float64(time.Since(began)) / float64(time.Millisecond)}, nil
}

func (r indexBuildReport) write(w io.Writer) {
	fmt.Fprintf(w, "%s: %s, %s indexed, in %.1f s\n", r.Source, count(uint64(len(r.Volumes)), "file system"), count(uint64(r.Files), "file"), r.TotalMS/1000)
	for _, l := range r.LeftOut {
		where := "the whole disk"
		if l.Partition > 0 {
			where = fmt.Sprintf("partition %d", l.Partition)
		}
		fmt.Fprintf(w, "not indexed: %s, %s: %s\n", where, showBytes(l.Length), l.Why)
	}
	if r.NoDigest > 0 {
		fmt.Fprintf(w, "without a digest: %s\n", count(uint64(r.NoDigest), "file"))
	}
	if r.File != "" {
		fmt.Fprintf(w, "written to %s\n", r.File)
	}
	if r.Shared != nil {
		r.Shared.write(w)
	}
}
