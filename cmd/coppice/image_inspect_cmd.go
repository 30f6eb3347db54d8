package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"coppice/image"
)

type imageInspectCmd struct {
	output
	sourceFlags
	Ref imageRef `arg:"" help:"Image: oci:DIR:NAME:TAG, http://HOST/DIR:NAME:TAG or HOST/REPOSITORY:TAG."`
}

// Run shows the image.
func (c *imageInspectCmd) Run(env *environment) error {
	err := c.withImage(env.ctx, c.Ref.Ref, func(im *image.Image) error {
		signatures, err := image.Signatures(env.ctx, im)
		if err != nil {
			return err
		}
		v := inspected{Summary: im.Summary(), Signatures: []signature{}}
		for _, s := range signatures {
			v.Signatures = append(v.Signatures, signature{s.Statement, fmt.Sprintf("%016X", s.KeyID)})
		}
		v.Index = inspectIndex(env, im)
		return c.print(env.out, v, func(w io.Writer) { v.write(w, c.Ref.String()) })
	})
	return explainImage(env, c.Ref.Ref, err)
}

// inspected is what inspect prints.
type inspected struct {
	image.Summary
	Signatures []signature     `json:"signatures"`
	Index      *inspectedIndex `json:"index,omitempty"`
}

// inspectedIndex is the index of the image's files. Nothing of it was verified but what is said here.
type inspectedIndex struct {
	ContentRoot image.Digest `json:"content_root,omitzero"`
	SizeBytes   int64        `json:"size_bytes"`
	StoredBytes int64        `json:"stored_bytes"`
	Keys        []string     `json:"keys"`            // that it says it is signed with
	Error       string       `json:"error,omitempty"` // for which it cannot be opened
}

// inspectIndex returns what is to be known of the index of an image, and nil where there is none.
func inspectIndex(env *environment, im *image.Image) *inspectedIndex {
	x, err := image.OpenIndex(env.ctx, im)
	switch {
	case errors.Is(err, image.ErrNotAttached):
		return nil
	case err != nil:
		return &inspectedIndex{Keys: []string{}, Error: err.Error()}
	}
	v := &inspectedIndex{ContentRoot: x.ContentRoot(), SizeBytes: x.Size(), StoredBytes: x.StoredBytes(), Keys: []string{}}
	for _, key := range x.Keys() {
		v.Keys = append(v.Keys, fmt.Sprintf("%016X", key))
	}
	if err := x.Close(); err != nil {
		v.Error = err.Error()
	}
	return v
}

func (x *inspectedIndex) String() string {
	switch {
	case x == nil:
		return "none"
	case x.Error != "":
		return "cannot be used: " + x.Error
	}
	signed := "not signed"
	if len(x.Keys) > 0 {
		signed = "it says signed with key " + strings.Join(x.Keys, ", ")
	}
	return fmt.Sprintf("%s, %s stored, %s", showBytes(x.SizeBytes), showBytes(x.StoredBytes), signed)
}

// signature is what somebody says of the image. Nothing of it was verified.
type signature struct {
	image.Statement
	Key string `json:"key"`
}

func (s *inspected) write(w io.Writer, ref string) {
	var r rows
	r.add("image", "%s", ref)
	r.add("content root", "%s", s.ContentRoot)
	r.add("manifest", "%s", s.Manifest)
	r.add("size", "%s", showBytesExact(s.SizeBytes))
	r.add("chunk size", "%s", showBytes(int64(s.ChunkSize)))
	r.add("created", "%s", showCreated(s.Summary))
	if s.Parent != (image.Digest{}) {
		r.add("built over", "%s", s.Parent)
	}
	r.add("stored", "%s: %s of %s, table of %s", showBytes(s.StoredBytes), count(uint64(s.Packs), "pack"), showBytes(s.PackBytes), showBytes(s.TableBytes))
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		r.add("label", "%s=%q", key, s.Labels[key])
	}
	for _, sig := range s.Signatures {
		until := ""
		if !sig.Expires.IsZero() {
			until = ", until " + sig.Expires.UTC().Format(time.RFC3339)
		}
		r.add("signed", "as %s, serial %d%s, it says with key %s: coppice image verify --trust FILE looks", sig.Name, sig.Serial, until, sig.Key)
	}
	if len(s.Signatures) == 0 {
		r.add("signed", "no")
	}
	r.add("index", "%s", s.Index)
	r.add("verified", "each chunk against the content root, as it is read")
	r.write(w)
}
