package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"coppice/idxshare"
)

// changedFile is a change in JSON.
type changedFile struct {
	Kind      idxshare.ChangeKind `json:"kind"`
	Volume    int                 `json:"volume"`
	Path      string              `json:"path"`
	PathBytes []byte              `json:"path_base64,omitempty"` // where the path is no UTF-8
	OldPath   string              `json:"old_path,omitempty"`
	OldBytes  []byte              `json:"old_path_base64,omitempty"`
	Mode      string              `json:"mode"` // st_mode in octal
	OldSize   int64               `json:"old_size"`
	NewSize   int64               `json:"new_size"`
	// What of it changed, of what was modified or renamed.
	Content    bool `json:"content"`
	Attributes bool `json:"attributes"`
}

// changedFilesTotal sums up what changed, and what it took to find out.
type changedFilesTotal struct {
	Changes int `json:"changes"`
	leafTotal
}

// files tells which files changed, as they are at one moment.
func (c *changedCmd) files(env *environment) error {
	return explainIndex(indexOn{ofRoot: c.Index}.withDevice(env, c.Name, func(x *askedIndex) error {
		return c.view(env, x, func(view *idxshare.View, t leafTotal) error {
			return c.printFiles(env, view, changedFilesTotal{leafTotal: t})
		})
	}))
}

// printFiles prints what changed, and then what it took.
func (c *changedCmd) printFiles(env *environment, view *idxshare.View, total changedFilesTotal) error {
	out := bufio.NewWriter(env.out)
	volumes := len(view.Volumes())
	inJSON := c.Output == "json"
	if inJSON {
		fmt.Fprint(out, "{\n  \"files\": [")
	}
	err := view.Changes(env.ctx, func(x idxshare.Change) error {
		total.Changes++
		if !inJSON {
			_, err := fmt.Fprintln(out, showChangedFile(x, volumes))
			return err
		}
		data, err := json.Marshal(toChangedFile(x))
		if err != nil {
			return err
		}
		if total.Changes > 1 {
			fmt.Fprint(out, ",")
		}
		_, err = fmt.Fprintf(out, "\n    %s", data)
		return err
	})
	if err != nil {
		return errors.Join(err, out.Flush())
	}
	if inJSON {
		data, err := json.Marshal(total)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "],\n  \"total\": %s\n}\n", data)
		return out.Flush()
	}
	showFilesTotal(out, total)
	return out.Flush()
}

func showFilesTotal(w io.Writer, t changedFilesTotal) {
	t.explain(w)
	fmt.Fprintf(w, "total: %s; read %s in %s; paused for %.1f ms\n", count(t.Changes, "change"), showBytes(t.Read.ReadBytes), count(int(t.Read.Reads), "piece"), t.PauseMS)
}

func showChangedFile(x idxshare.Change, volumes int) string {
	path := func(p []byte) string {
		text := string(p)
		if quoted := strconv.Quote(text); !utf8.Valid(p) || quoted != `"`+text+`"` {
			text = quoted
		}
		if volumes > 1 {
			text = fmt.Sprintf("%d:%s", x.Volume, text)
		}
		return text
	}
	s := fmt.Sprintf("%-8s %s", x.Kind, path(x.Path))
	if x.OldPath != nil {
		s += " (was " + path(x.OldPath) + ")"
	}
	switch {
	case x.Kind == idxshare.Added:
		s += " " + showBytes(x.NewSize)
	case x.Kind == idxshare.Deleted:
		s += " " + showBytes(x.OldSize)
	case x.OldSize != x.NewSize:
		s += fmt.Sprintf(" %s -> %s", showBytes(x.OldSize), showBytes(x.NewSize))
	}
	if x.Attributes {
		s += ", attributes"
	}
	return s
}

func toChangedFile(x idxshare.Change) changedFile {
	f := changedFile{Kind: x.Kind, Volume: x.Volume, Mode: strconv.FormatUint(uint64(x.Mode), 8), OldSize: x.OldSize, NewSize: x.NewSize, Content: x.Content, Attributes: x.Attributes}
	f.Path, f.PathBytes = textOf(x.Path)
	f.OldPath, f.OldBytes = textOf(x.OldPath)
	return f
}

// textOf returns a path as a text, and where it is no UTF-8 also as it is.
func textOf(path []byte) (string, []byte) {
	if utf8.Valid(path) {
		return string(path), nil
	}
	return strings.ToValidUTF8(string(path), "\uFFFD"), path
}
