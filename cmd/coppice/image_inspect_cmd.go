package main

import (
	"io"
	"maps"
	"slices"

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
		s := im.Summary()
		return c.print(env.out, s, func(w io.Writer) { writeImage(w, c.Ref.String(), s) })
	})
	return explainImage(env, c.Ref.Ref, err)
}

func writeImage(w io.Writer, ref string, s image.Summary) {
	var r rows
	r.add("image", "%s", ref)
	r.add("content root", "%s", s.ContentRoot)
	r.add("manifest", "%s", s.Manifest)
	r.add("size", "%s", showBytesExact(s.SizeBytes))
	r.add("chunk size", "%s", showBytes(int64(s.ChunkSize)))
	r.add("created", "%s", showCreated(s))
	if s.Parent != (image.Digest{}) {
		r.add("built over", "%s", s.Parent)
	}
	r.add("stored", "%s: %s of %s, table of %s", showBytes(s.StoredBytes), count(uint64(s.Packs), "pack"), showBytes(s.PackBytes), showBytes(s.TableBytes))
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		r.add("label", "%s=%q", key, s.Labels[key])
	}
	r.add("verified", "each chunk against the content root, as it is read; who made the image is not signed")
	r.write(w)
}
