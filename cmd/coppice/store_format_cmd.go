package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"coppice/node"
	"coppice/union"
)

type storeFormatCmd struct {
	output
	storePath
	Size  size `placeholder:"SIZE" help:"Make the file, or extend it to this size (files only)."`
	Force bool `help:"Overwrite what is there. All of it is lost."`
}

// Run makes the store.
func (c *storeFormatCmd) Run(env *environment) error {
	_, err := os.Stat(c.Path)
	absent := errors.Is(err, fs.ErrNotExist)
	if absent && c.Size == 0 {
		return &node.Error{
			Code: node.CodeBadRequest, Message: fmt.Sprintf("format %s: no such device or file", c.Path),
			Hint: "check the path, or give --size SIZE to make a file",
		}
	}
	info, err := union.Format(c.Path, union.FormatOptions{Force: c.Force, SizeBytes: int64(c.Size)})
	if err != nil {
		if absent {
			err = errors.Join(err, removeIfThere(c.Path))
		}
		return explainStore(c.Path, err)
	}
	return c.print(env.out, info, func(w io.Writer) {
		fmt.Fprintf(w, "%s: leaf store of %s, %s for data, uuid %s\n",
			c.Path, showBytes(info.SizeBytes), showBytes(info.SlotBytes), info.UUID)
	})
}

// removeIfThere takes back a file that a format which failed has made.
func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
