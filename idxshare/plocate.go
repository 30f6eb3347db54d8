package idxshare

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// ErrNoPlocate says that plocate-build, which makes plocate's database, is not installed.
var ErrNoPlocate = errors.New("plocate-build is not installed")

// ListPaths writes the path of every name of a volume, each behind prefix and followed by a newline, as plocate-build --plaintext reads it. In such a list no
// name can have a newline itself: those that have one are left out, and counted.
func (v *View) ListPaths(ctx context.Context, volume int, prefix string, to io.Writer) (left int, err error) {
	w := bufio.NewWriterSize(to, 1<<16)
	err = v.Find(ctx, Query{Volumes: []int{volume}, NamesOnly: true}, func(m Match) error {
		if bytes.IndexByte(m.Path, '\n') >= 0 {
			left++
			return nil
		}
		w.WriteString(prefix) //nolint:errcheck // the writer remembers the error
		w.Write(m.Path)       //nolint:errcheck // as above
		return w.WriteByte('\n')
	})
	return left, errors.Join(err, w.Flush())
}

// ExportPlocate writes the names of a volume as a database of plocate at path, so that locate finds them below prefix, where the volume is mounted. It needs the
// program plocate-build, and returns how many names were left out since they have a newline. The file appears when it is complete.
func (v *View) ExportPlocate(ctx context.Context, volume int, prefix, path string) (left int, err error) {
	program, err := exec.LookPath("plocate-build")
	if err != nil {
		return 0, fmt.Errorf("export to plocate: %w", ErrNoPlocate)
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".plocate-*")
	if err != nil {
		return 0, fmt.Errorf("export to plocate: %w", err)
	}
	defer os.RemoveAll(dir)
	list, err := os.Create(filepath.Join(dir, "list"))
	if err != nil {
		return 0, fmt.Errorf("export to plocate: %w", err)
	}
	defer list.Close()
	if left, err = v.ListPaths(ctx, volume, prefix, list); err != nil {
		return left, fmt.Errorf("export to plocate: %w", err)
	}
	made := filepath.Join(dir, "db")
	// Whoever may read the database may see what is in it: the index has no mounted files whose directories could be looked at.
	out, err := exec.CommandContext(ctx, program, "--plaintext", "--require-visibility", "no", list.Name(), made).CombinedOutput()
	if err != nil {
		return left, fmt.Errorf("export to plocate: %s: %w: %s", program, err, bytes.TrimSpace(out))
	}
	if err := os.Rename(made, path); err != nil {
		return left, fmt.Errorf("export to plocate: %w", err)
	}
	return left, nil
}
