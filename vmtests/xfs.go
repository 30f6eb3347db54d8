package vmtests

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// smallestXFS is what mkfs.xfs makes for use. For its own tests, which it knows by their environment, it makes smaller ones.
const smallestXFS = 300 << 20

// xfsFromTree makes an xfs image with the tree's content by mkfs.xfs's prototype file: no mount is needed, so it works
// where the host's kernel cannot mount anything. Hard links become copies, times are new, names with blanks and special
// files are left out.
func xfsFromTree(ctx context.Context, tree, image string, sizeBytes int64) error {
	proto := image + ".proto"
	if err := writeProto(proto, tree); err != nil {
		return fmt.Errorf("write xfs prototype: %w", err)
	}
	argv := []string{"mkfs.xfs", "-q", "-p", proto, "-d", fmt.Sprintf("file,name=%s,size=%d", image, sizeBytes)}
	if sizeBytes < smallestXFS {
		argv = append([]string{"env", "TEST_DIR=any", "TEST_DEV=any", "QA_CHECK_FS=any"}, argv...)
	}
	_, err := command(ctx, "", argv[0], argv[1:]...)
	return errors.Join(err, os.Remove(proto))
}

// writeProto writes the prototype (mkfs.xfs(8), option -p): a boot file name, two numbers that mean nothing, then the
// tree, each directory ended by "$".
func writeProto(path, tree string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	fmt.Fprintf(w, "/\n0 0\n")
	info, err := os.Stat(tree)
	if err == nil {
		err = protoDir(w, "", tree, info)
	}
	return errors.Join(err, w.Flush(), f.Close())
}

// protoDir writes a directory; the tree's root has no name.
func protoDir(w io.Writer, name, dir string, info fs.FileInfo) error {
	fmt.Fprintf(w, "%s %s\n", name, protoMode('d', info))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := protoEntry(w, dir, e); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(w, "$")
	return err
}

func protoEntry(w io.Writer, dir string, e fs.DirEntry) error {
	path := filepath.Join(dir, e.Name())
	info, err := e.Info()
	if err != nil || strings.ContainsAny(path, " \t\n") {
		return err
	}
	switch {
	case e.IsDir():
		return protoDir(w, e.Name(), path, info)
	case e.Type().IsRegular():
		fmt.Fprintf(w, "%s %s %s\n", e.Name(), protoMode('-', info), path)
	case e.Type()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s %s %s\n", e.Name(), protoMode('l', info), target)
	}
	return nil
}

// protoMode is the mode, owner and group of an entry in the prototype's notation.
func protoMode(kind byte, info fs.FileInfo) string {
	text := []byte{kind, '-', '-'}
	if info.Mode()&fs.ModeSetuid != 0 {
		text[1] = 'u'
	}
	if info.Mode()&fs.ModeSetgid != 0 {
		text[2] = 'g'
	}
	var uid, gid uint32
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		uid, gid = st.Uid, st.Gid
	}
	return fmt.Sprintf("%s%03o %d %d", text, info.Mode().Perm(), uid, gid)
}
