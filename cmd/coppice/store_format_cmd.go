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
	Cache size `placeholder:"SIZE" help:"Reserve so much of it for the block cache."`
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
	info, err := union.Format(c.Path, union.FormatOptions{Force: c.Force, SizeBytes: int64(c.Size), CacheBytes: int64(c.Cache)})
	if err != nil {
		if absent {
			err = errors.Join(err, removeIfThere(c.Path))
		}
		return explainStore(c.Path, err)
	}
	return c.print(env.out, info, func(w io.Writer) {
		reserved := ""
		if info.CacheBytes > 0 {
			reserved = fmt.Sprintf("%s for a block cache, ", showBytes(info.CacheBytes))
		}
		fmt.Fprintf(w, "%s: leaf store of %s, %s for data, %suuid %s\n",
			c.Path, showBytes(info.SizeBytes), showBytes(info.SlotBytes), reserved, info.UUID)
	})
}

// removeIfThere takes back a file that a format which failed has made.
func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
