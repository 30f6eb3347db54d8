package main

import (
	"errors"
	"fmt"
	"io"

	"coppice/image"
)

type imageListCmd struct {
	output
	sourceFlags
	Place imagePlace `arg:"" help:"oci:DIR, http://HOST/DIR or HOST/REPOSITORY."`
}

// imageList is what list prints.
type imageList struct {
	Images []image.Summary `json:"images"`
	Others int             `json:"others"` // tags of something else
}

// Run lists the images.
func (c *imageListCmd) Run(env *environment) error {
	list, err := c.list(env)
	if err != nil {
		return explainImage(env, image.Ref{}, err)
	}
	return c.print(env.out, list, func(w io.Writer) {
		var lines [][]string
		for _, im := range list.Images {
			lines = append(lines, []string{im.Name, showBytes(im.SizeBytes), showBytes(im.StoredBytes), showCreated(im), im.ContentRoot.String()[:19]})
		}
		if len(lines) > 0 {
			table(w, []string{"NAME", "SIZE", "STORED", "CREATED (UTC)", "CONTENT ROOT"}, lines)
		} else {
			fmt.Fprintln(w, "no images")
		}
		if list.Others > 0 {
			fmt.Fprintf(w, "and %s of something else\n", count(uint64(list.Others), "tag"))
		}
	})
}

func (c *imageListCmd) list(env *environment) (list imageList, err error) {
	o, err := c.options()
	if err != nil {
		return list, err
	}
	src, err := c.Place.Source(o)
	if err != nil {
		return list, err
	}
	list.Images, list.Others, err = image.List(env.ctx, src)
	return list, errors.Join(err, src.Close())
}

func showCreated(im image.Summary) string {
	if im.Created.IsZero() {
		return "-"
	}
	return im.Created.UTC().Format("2006-01-02 15:04:05")
}
