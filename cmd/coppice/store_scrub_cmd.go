package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"coppice/node"
	"coppice/union"
)

type storeScrubCmd struct {
	output
	storePath
	Status bool `help:"Start nothing: show what was found since the store was opened, and how far a pass under way is."`
}

// Run has the daemon read the store, and shows the progress until the end. To interrupt it leaves that to the daemon.
func (c *storeScrubCmd) Run(env *environment) error {
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return fmt.Errorf("scrub %s: %w", c.Path, err)
	}
	bar := newProgress(env.err, "scrub "+c.Path)
	rep, err := env.client().Scrub(env.ctx, node.ScrubRequest{Store: path, Status: c.Status}, func(rep node.ScrubReport) {
		bar.show(rep.DoneBytes, rep.TotalBytes)
	})
	bar.end()
	if env.ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return &node.Error{Code: node.CodeFailed, Message: "scrub " + c.Path + ": interrupted; the daemon goes on with it",
			Hint: "coppice store scrub --status " + c.Path + " shows what it finds"}
	}
	if err != nil {
		return err
	}
	if err := c.print(env.out, rep, func(w io.Writer) { c.write(w, rep) }); err != nil {
		return err
	}
	for _, p := range rep.Problems {
		if !p.Repairable {
			return errSilent
		}
	}
	return nil
}

func (c *storeScrubCmd) write(w io.Writer, rep node.ScrubReport) {
	for _, p := range rep.Problems {
		fmt.Fprintf(w, "%s: %s\n", c.Path, p)
	}
	fmt.Fprintf(w, "%s: %s\n", c.Path, showScrub(rep.ScrubStatus))
}

// showScrub sums up what scrubbing came to.
func showScrub(s union.ScrubStatus) string {
	text := "not read all over since it was opened"
	if s.LastPass != nil {
		text = fmt.Sprintf("last read all over %s, %s of data", s.LastPass.UTC().Format(time.RFC3339), showBytes(s.LastBytes))
	}
	if s.Running {
		text += fmt.Sprintf("; a pass is at %d%%", 100*s.DoneBytes/max(s.TotalBytes, 1))
	}
	text += "; " + count(len(s.Problems), "problem")
	if s.Mended > 0 {
		text += fmt.Sprintf(", %s mended since", count(s.Mended, "block"))
	}
	return text
}
