package vmtests

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
)

// packageVersion is the version of the package that systems have.
const packageVersion = "0.0.0"

// Package builds the Debian package for guests and returns its path. Version and time in it are always the same ones, so that it is
// another file only where what it has is different.
func (b *Build) Package(ctx context.Context) (string, error) {
	return b.PackageOf(ctx, packageVersion)
}

// PackageOf is Package with another version.
func (b *Build) PackageOf(ctx context.Context, version string) (string, error) {
	unlock, err := lockFile(filepath.Join(b.dir, "deb.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	out, err := command(ctx, b.repo, "make", "-s", "deb", "DEB_ARCHS=amd64", "OUT="+filepath.Join(b.dir, "deb"), "DEB_VERSION="+version, "SOURCE_DATE_EPOCH=1")
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
