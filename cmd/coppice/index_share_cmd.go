package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"aead.dev/minisign"

	"coppice/idxshare"
	"coppice/image"
	"coppice/node"
)

type indexShareCmd struct {
	output
	sourceFlags
	Image imageRef `arg:"" help:"Image that the index is of: oci:DIR:NAME:TAG or HOST/REPOSITORY:TAG."`
	File  string   `arg:"" optional:"" type:"existingfile" help:"File that coppice index build has written (the index that the image has)."`
	Key   string   `placeholder:"FILE" type:"existingfile" help:"Sign it with this secret key, as minisign -G makes it."`
	To    string   `placeholder:"DIR" type:"existingdir" help:"Write it to a file in a directory instead, such as one that all nodes mount."`
}

// indexShareReport is what share prints.
type indexShareReport struct {
	Image       string               `json:"image"`
	Statement   image.IndexStatement `json:"statement"`
	StoredBytes int64                `json:"stored_bytes,omitempty"` // of what was attached
	Key         string               `json:"key,omitempty"`          // that it was signed with
	File        string               `json:"file,omitempty"`         // that was written
}

// Run shares the index.
func (c *indexShareCmd) Run(env *environment) error {
	bad := func(message, hint string) error {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("share index of %s: %s", c.Image, message), Hint: hint}
	}
	switch {
	case c.File == "" && c.Key == "" && c.To == "":
		return bad("which one, and where?", "give a FILE to attach, --key FILE to sign the one that is attached, or --to DIR to write that to a file")
	case c.To != "" && c.Key != "":
		return bad("a file is not signed", "leave --key or --to away")
	}
	var report indexShareReport
	err := c.withImage(env.ctx, c.Image.Ref, func(im *image.Image) (err error) {
		if c.To != "" {
			report, err = c.write(env, im)
			return err
		}
		report, err = shareIndex(env, c.Image.Ref, im, c.sourceFlags, c.File, c.Key)
		return err
	})
	if err != nil {
		return explainImage(env, c.Image.Ref, explainShare(c.File, err))
	}
	return c.print(env.out, report, report.write)
}

func explainShare(file string, err error) error {
	if errors.Is(err, image.ErrOther) {
		return &node.Error{Code: node.CodeOtherRoot, Message: err.Error(), Hint: "give the image that it was made of: coppice index info --on " + file}
	}
	return explainIndex(err)
}

func (r indexShareReport) write(w io.Writer) {
	switch {
	case r.File != "":
		fmt.Fprintf(w, "%s: index of %s written to %s\n", r.Image, showBytes(r.Statement.SizeBytes), r.File)
	case r.StoredBytes > 0:
		fmt.Fprintf(w, "%s: index attached, %s, %s stored\n", r.Image, showBytes(r.Statement.SizeBytes), showBytes(r.StoredBytes))
	}
	if r.Key != "" {
		fmt.Fprintf(w, "%s: index signed with key %s\n", r.Image, r.Key)
	}
}

// shareIndex attaches the index in a file to an image, unless path is "", and signs what is attached then, unless key is.
func shareIndex(env *environment, ref image.Ref, im *image.Image, f sourceFlags, path, key string) (report indexShareReport, err error) {
	report.Image = ref.String()
	o, err := f.options()
	if err != nil {
		return report, err
	}
	var secret minisign.PrivateKey
	if key != "" { // before anything is stored
		if secret, err = readSecretKey(env, key); err != nil {
			return report, err
		}
	}
	dst, err := ref.Target(o)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if path != "" {
		if err := attachIndex(env, im, dst, path, &report); err != nil {
			return report, err
		}
	}
	if key != "" {
		if report.Statement, err = image.SignIndex(env.ctx, im, dst, secret); err != nil {
			return report, err
		}
		report.Key = fmt.Sprintf("%016X", secret.ID())
	}
	return report, err
}

// attachIndex attaches the index in a file, if it is one, and of that image.
func attachIndex(env *environment, im *image.Image, dst image.Target, path string, report *indexShareReport) error {
	root, err := indexRoot(path)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	st, err := f.Stat()
	if err != nil {
		return err
	}
	bar := newProgress(env.err, "attach index")
	defer bar.end()
	r, err := image.AttachIndex(env.ctx, im, dst, image.IndexFile{Root: root, Content: f, SizeBytes: st.Size()}, image.IndexOptions{Progress: bar.show})
	report.Statement, report.StoredBytes = r.Statement, r.StoredBytes
	return err
}

// indexRoot returns the content root that the index in a file is of.
func indexRoot(path string) (image.Digest, error) {
	x, err := idxshare.Open(path)
	if err != nil {
		return image.Digest{}, err
	}
	defer func() { _ = x.Close() }() // it was only read
	h := x.Header()
	root, err := image.ParseDigest(h.Source)
	if err != nil || h.Delta {
		return root, &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("%s is the index of %.100q, which is no image", path, h.Source),
			Hint: "build it of the image: coppice index build IMAGE --to FILE"}
	}
	return root, nil
}

// sharedName is what the file with the index of a content is called on shared storage.
func sharedName(root image.Digest) string { return "sha256-" + hex.EncodeToString(root[:]) + ".index" }

// write writes an index to a file in the directory.
func (c *indexShareCmd) write(env *environment, im *image.Image) (indexShareReport, error) {
	report := indexShareReport{Image: c.Image.String(), File: filepath.Join(c.To, sharedName(im.ContentRoot()))}
	if c.File == "" {
		return report, withImageIndex(env.ctx, im, func(x *image.Index) error {
			report.Statement = x.Statement
			return replaceFileFrom(report.File, io.NewSectionReader(x, 0, x.Size()))
		})
	}
	root, err := indexRoot(c.File)
	if err != nil {
		return report, err
	}
	if root != im.ContentRoot() {
		return report, fmt.Errorf("%s is of content root %s, not %s: %w", c.File, root, im.ContentRoot(), image.ErrOther)
	}
	f, err := os.Open(c.File)
	if err != nil {
		return report, err
	}
	defer func() { _ = f.Close() }() // it was only read
	st, err := f.Stat()
	if err != nil {
		return report, err
	}
	report.Statement = image.IndexStatement{Image: root, ImageBytes: im.Size(), SizeBytes: st.Size()}
	return report, replaceFileFrom(report.File, f)
}

// replaceFileFrom writes a file of any length in one step, so that none is left half written.
func replaceFileFrom(path string, content io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // where it has its name, there is nothing to remove
	_, err = io.Copy(f, content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
