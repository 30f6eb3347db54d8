package main

import (
	"fmt"
	"strconv"

	"github.com/dustin/go-humanize"

	"coppice/node"
)

// size is a number of bytes on the command line.
type size = node.Bytes

// showBytes prints a size for people, with all digits where they fit.
func showBytes(n int64) string {
	if n < 0 {
		return strconv.FormatInt(n, 10)
	}
	return humanize.IBytes(uint64(n))
}

func showBytesExact(n int64) string {
	return fmt.Sprintf("%s (%s bytes)", showBytes(n), humanize.Comma(n))
}
