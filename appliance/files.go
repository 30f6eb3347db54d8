package appliance

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coppice/image"
)

// ErrBadOption is the cause where an appliance cannot be as it was asked for.
var ErrBadOption = errors.New("cannot be served so")

const (
	apiName = "v1"
	// writeTime is how long a client may take nothing of a file.
	writeTime = 30 * time.Second
	jsonType  = "application/json"
)

var (
	namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	filePattern = regexp.MustCompile(`^(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})$`)
)

// files serves what a reader of a layout asks for.
type files struct{ dirs map[string]string } // by the name under which they are served

// newFiles looks whether directories can be served.
func newFiles(dirs []string) (files, error) {
	f := files{map[string]string{}}
	for _, dir := range dirs {
		name := filepath.Base(dir)
		fail := func(err error) (files, error) { return files{}, fmt.Errorf("images in %s: %w", dir, err) }
		if !namePattern.MatchString(name) || name == apiName {
			return fail(fmt.Errorf("the name %q cannot be part of a reference: %w", name, ErrBadOption))
		}
		if other, ok := f.dirs[name]; ok {
			return fail(fmt.Errorf("has the same name as %s: %w", other, ErrBadOption))
		}
		l, err := image.OpenLayout(dir)
		if err != nil {
			return fail(err)
		}
		if err := l.Close(); err != nil {
			return fail(err)
		}
		f.dirs[name] = dir
	}
	return f, nil
}

// ServeHTTP answers requests for files, and for ranges of them.
func (f files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	dir, ok := f.dirs[name]
	if !ok || !filePattern.MatchString(rest) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	file, info, err := openFile(dir, rest)
	switch {
	case errors.Is(err, os.ErrNotExist):
		w.WriteHeader(http.StatusNotFound)
		return
	case err != nil:
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	defer file.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	if digest := path.Base(rest); digest == rest {
		w.Header().Set("Content-Type", jsonType)
	} else {
		w.Header().Set("ETag", `"`+digest+`"`)
	}
	http.ServeContent(unhurried{w}, r, "", info.ModTime(), file)
}

// openFile opens a file below a directory, wherever links there lead.
func openFile(dir, name string) (*os.File, os.FileInfo, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = root.Close() }()                              // it was only read
	file, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe is not waited for
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s in %s is not a file", name, dir)
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, info, nil
}

// unhurried is an answer that goes on for as long as the other side takes something of it.
type unhurried struct{ http.ResponseWriter }

// Write gives the other side time for a piece.
func (u unhurried) Write(p []byte) (int, error) {
	// Where that cannot be set, as in a test, nobody is at the other end.
	_ = http.NewResponseController(u.ResponseWriter).SetWriteDeadline(time.Now().Add(writeTime))
	return u.ResponseWriter.Write(p)
}
