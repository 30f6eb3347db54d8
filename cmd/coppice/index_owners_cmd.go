package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"coppice/idxshare"
	"coppice/node"
)

// diskRange is an argument OFFSET[+LEN]: some bytes of a disk.
type diskRange struct{ from, to int64 }

// UnmarshalText reads an offset and a length, in bytes or with a unit each.
func (r *diskRange) UnmarshalText(text []byte) (err error) {
	offset, length, ranged := strings.Cut(string(text), "+")
	if r.from, err = node.ParseBytes(offset); err != nil {
		return err
	}
	n := int64(1)
	if ranged {
		if n, err = node.ParseBytes(length); err != nil {
			return err
		}
	}
	if n < 1 || r.from > 1<<62-n {
		return fmt.Errorf("range %q: write OFFSET, or OFFSET+LEN with at least one byte", text)
	}
	r.to = r.from + n
	return nil
}

type indexOwnersCmd struct {
	output
	indexView
	Range diskRange `arg:"" name:"offset[+len]" help:"Where on the disk, in bytes: 1048576, 1M or 1M+64K."`
}

// ownedBytes are neighbouring bytes of the disk and whose they are, in JSON.
type ownedBytes struct {
	Offset     int64      `json:"offset"`
	Bytes      int64      `json:"bytes"`
	What       string     `json:"what"`      // data, directory, tree, xattr, metadata, free, unknown or outside
	Partition  int        `json:"partition"` // 0: the whole disk, or outside of all
	Inode      uint64     `json:"inode,omitempty"`
	FileOffset *int64     `json:"file_offset,omitempty"` // of data: where in the file that is
	Paths      []jsonPath `json:"paths,omitempty"`       // all names of the file

	names [][]byte // the paths
}

// Run prints whose the bytes are, in order.
func (c *indexOwnersCmd) Run(env *environment) error {
	return c.with(env, func(x *askedIndex, view *idxshare.View) error {
		if size := view.Size(); c.Range.to > size {
			return &node.Error{Code: node.CodeBadRequest, Message: fmt.Sprintf("who owns bytes %d to %d: the disk has %d", c.Range.from, c.Range.to-1, size), Hint: "give an offset below that"}
		}
		out := bufio.NewWriter(env.out)
		list := jsonList{w: out, name: "owners"}
		err := view.Owners(env.ctx, c.Range.from, c.Range.to, func(o idxshare.Owner) error {
			b, err := toOwned(env.ctx, view, o, view.Volumes())
			switch {
			case err != nil:
				return err
			case c.Output == "json":
				return list.add(b)
			}
			return b.write(out)
		})
		if c.Output == "json" && err == nil {
			err = list.end()
		}
		return errors.Join(err, out.Flush())
	})
}

func toOwned(ctx context.Context, view *idxshare.View, o idxshare.Owner, volumes []idxshare.Volume) (ownedBytes, error) {
	b := ownedBytes{Offset: o.From, Bytes: o.To - o.From, What: o.What.String()}
	if o.What != idxshare.Outside {
		b.Partition = partitionOf(o.Volume, volumes)
	}
	if o.What != idxshare.Owned {
		return b, nil
	}
	b.What, b.Inode = o.Extent.Kind.String(), o.Extent.Inode
	if o.Extent.Kind == idxshare.ExtentData {
		b.FileOffset = &o.Offset
	}
	var err error
	b.names, err = view.Paths(ctx, o.Volume, o.Extent.Inode)
	for _, path := range b.names {
		b.Paths = append(b.Paths, toJSONPath(path))
	}
	return b, err
}

// write writes a line for people.
func (b *ownedBytes) write(w io.Writer) error {
	line := fmt.Sprintf("%d+%d %s", b.Offset, b.Bytes, b.What)
	if b.Partition > 0 {
		line += fmt.Sprintf(" partition %d", b.Partition)
	}
	if b.Inode != 0 {
		line += fmt.Sprintf(" inode %d", b.Inode)
	}
	if b.FileOffset != nil {
		line += fmt.Sprintf(" at %d", *b.FileOffset)
	}
	for _, path := range b.names {
		line += " " + quoteForShell(string(path))
	}
	_, err := fmt.Fprintln(w, line)
	return err
}
