package vmtests

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// Package builds the Debian package for guests and returns its path. Version and time in it are always the same ones, so that it is
// another file only where what it has is different.
func (b *Build) Package(ctx context.Context) (string, error) {
	unlock, err := lockFile(filepath.Join(b.dir, "deb.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	out, err := command(ctx, b.repo, "make", "-s", "deb", "DEB_ARCHS=amd64", "OUT="+filepath.Join(b.dir, "deb"), "DEB_VERSION=0.0.0", "SOURCE_DATE_EPOCH=1")
	if err != nil {
		return "", fmt.Errorf("build package: %w", err)
	}
	path := lastLines(out, 1)
	if !strings.HasSuffix(path, ".deb") {
		return "", fmt.Errorf("build package: make deb ends with %q, which is no package", path)
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(b.repo, path)
	}
	return path, nil
}
