package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
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
		return c.print(env.out, v, func(w io.Writer) { v.write(w, c.Ref.String()) })
	})
	return explainImage(env, c.Ref.Ref, err)
}

// inspected is what inspect prints.
type inspected struct {
	image.Summary
	Signatures []signature `json:"signatures"`
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
	r.add("verified", "each chunk against the content root, as it is read")
	r.write(w)
}
