package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"coppice/internal/plot"
	"coppice/node"
)

// validPlot refuses the name of a file for a plot in a format that there is not; "" is no plot.
func validPlot(path string) error {
	if path == "" {
		return nil
	}
	if _, err := plot.FormatOf(path); err != nil {
		return fmt.Errorf("--plot: %w", err)
	}
	return nil
}

// drawPlot writes a plot of something in one step.
func drawPlot(what string, p interface {
	Write(w io.Writer, f plot.Format) error
}, path string) error {
	format, err := plot.FormatOf(path)
	if err != nil {
		return err
	}
	var drawn bytes.Buffer
	if err := p.Write(&drawn, format); err != nil {
		return fmt.Errorf("draw %s: %w", what, err)
	}
	if err := replaceFile(path, drawn.Bytes()); err != nil {
		hint := "give --plot a file in a directory that can be written"
		if errors.Is(err, fs.ErrNotExist) {
			hint = "make the directory first, or give --plot another file"
		}
		return &node.Error{Code: node.CodeFailed, Message: fmt.Sprintf("write plot to %s: %s", path, err), Hint: hint}
	}
	return nil
}
