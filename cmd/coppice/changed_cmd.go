package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"coppice/node"
	"coppice/union"
)

type changedCmd struct {
	output
	leafIndex
	Name  string `arg:"" help:"Name of the device."`
	Files bool   `help:"Tell which files were added, modified, deleted and renamed, as they are at one moment."`
}

// Run prints the extents as they come: there may be millions.
func (c *changedCmd) Run(env *environment) error {
	if c.Files {
		return c.files(env)
	}
	out := bufio.NewWriter(env.out)
	p := changedText
	if c.Output == "json" {
		p = changedJSON
	}
	first := true
	err := env.client().Changed(env.ctx, c.Name, func(part node.ChangedPart) error {
		err := p(out, part, first)
		first = false
		return err
	})
	return errors.Join(err, out.Flush())
}

func changedText(w io.Writer, part node.ChangedPart, _ bool) error {
	for _, x := range part.Extents {
		if _, err := fmt.Fprintf(w, "%d %d %s\n", x.Off, x.Len, kindOf(x)); err != nil {
			return err
		}
	}
	if part.Total == nil {
		return nil
	}
	t := part.Total
	_, err := fmt.Fprintf(w, "total: %s, %d bytes of data, %d bytes of zeros\n", count(t.Extents, "extent"), t.DataBytes, t.ZeroBytes)
	return err
}

func kindOf(x union.ChangedExtent) string {
	if x.Zero {
		return "zero"
	}
	return "data"
}

// changedJSON writes {"extents": [...], "total": {...}} piece by piece.
func changedJSON(w io.Writer, part node.ChangedPart, first bool) error {
	var b []byte
	if first {
		b = append(b, "{\n  \"extents\": ["...)
	}
	for i, x := range part.Extents {
		data, err := json.Marshal(x)
		if err != nil {
			return err
		}
		if !first || i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, "\n    "...), data...)
	}
	if part.Total != nil {
		data, err := json.Marshal(part.Total)
		if err != nil {
			return err
		}
		if part.Total.Extents > 0 {
			b = append(b, "\n  "...)
		}
		b = append(append(append(b, "],\n  \"total\": "...), data...), "\n}\n"...)
	}
	_, err := w.Write(b)
	return err
}
