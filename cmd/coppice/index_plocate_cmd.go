package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"coppice/idxshare"
	"coppice/node"
)

type indexPlocateCmd struct {
	output
	indexView
	indexVolume
	File string `arg:"" help:"Database to write; one that exists is replaced."`
	At   string `default:"" placeholder:"DIR" help:"Where the file system is mounted: what all paths begin with (/)."`
}

// plocateReport is what was written.
type plocateReport struct {
	File      string `json:"file"`
	Partition int    `json:"partition"`
	LeftOut   int    `json:"left_out"` // names with a newline
}

// Run writes the names of one file system as a database of plocate.
func (c *indexPlocateCmd) Run(env *environment) error {
	if c.At != "" && !filepath.IsAbs(c.At) {
		return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("write a database of plocate for what is mounted at %q", c.At), Hint: "give an absolute path: --at DIR"}
	}
	return c.with(env, func(x *askedIndex, view *idxshare.View) error {
		volumes, err := c.of(x, view)
		if err != nil {
			return err
		}
		if len(volumes) > 1 {
			return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("write a database of plocate: the index of %s has %d file systems", x.info.On, len(volumes)), Hint: "say which: --partition N; coppice index info lists them"}
		}
		r := plocateReport{File: c.File, Partition: volumes[0].Partition}
		prefix := c.At
		if prefix == "/" {
			prefix = ""
		}
		r.LeftOut, err = view.ExportPlocate(env.ctx, volumes[0].ID, prefix, c.File)
		if errors.Is(err, idxshare.ErrNoPlocate) {
			return &node.Error{Code: node.CodeFailed, Message: err.Error(), Hint: "apt install plocate"}
		}
		if err != nil {
			return err
		}
		return c.print(env.out, r, func(w io.Writer) {
			fmt.Fprintf(w, "%s: written; ask it with locate -d %s PATTERN\n", c.File, c.File)
			if r.LeftOut > 0 {
				fmt.Fprintf(w, "%s: %s left out, because of a newline in it\n", c.File, count(r.LeftOut, "name"))
			}
		})
	})
}
