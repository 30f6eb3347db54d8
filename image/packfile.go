package image

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
)

// packer writes the packs of a build, one after the other. A full one becomes durable in the background; it has
// its last name, pack-N, from then on.
type packer struct {
	dir    string
	target int64
	marks  []packMark

	f   *os.File
	w   *bufio.Writer
	out hashWriter

	syncing errgroup.Group
}

// newPacker goes on behind packs that are complete, and removes others, which a journal to come must not take for its own.
func newPacker(dir string, target int64, done []packMark) (*packer, error) {
	p := &packer{dir: dir, target: target, marks: done}
	p.syncing.SetLimit(2)
	files, err := filepath.Glob(filepath.Join(dir, "pack-*"))
	if err != nil {
		return nil, err
	}
	keep := map[string]bool{}
	for n := range done {
		keep[packPath(dir, n)] = true
	}
	for _, path := range files {
		if keep[path] {
			continue
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func packPath(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("pack-%d", n)) }

// append adds the stored bytes of a chunk to the pack that is open.
func (p *packer) append(stored []byte) (place, error) {
	if p.f == nil {
		f, err := os.Create(packPath(p.dir, len(p.marks)) + ".partial")
		if err != nil {
			return place{}, err
		}
		p.f = f
		if p.w == nil {
			p.w = bufio.NewWriterSize(nil, 1<<20)
		}
		p.w.Reset(f)
		p.out = hashWriter{w: p.w, h: sha256.New()}
	}
	at := place{pack: uint32(len(p.marks)), stored: uint32(len(stored)), offset: p.out.n}
	_, err := p.out.Write(stored)
	return at, err
}

func (p *packer) full() bool { return p.f != nil && p.out.n >= p.target }

// finish closes the open pack: all chunks before next are stored.
func (p *packer) finish(next int64) (packMark, error) {
	if err := p.w.Flush(); err != nil {
		return packMark{}, err
	}
	f, path := p.f, packPath(p.dir, len(p.marks))
	p.f = nil
	p.syncing.Go(func() error {
		defer f.Close()
		if err := f.Sync(); err != nil {
			return err
		}
		return os.Rename(f.Name(), path)
	})
	m := packMark{next: next, size: p.out.n, digest: p.out.digest()}
	p.marks = append(p.marks, m)
	return m, nil
}

// wait waits until all closed packs are durable.
func (p *packer) wait() error { return p.syncing.Wait() }

// abandon gives up the open pack.
func (p *packer) abandon() error {
	err := p.wait()
	if p.f != nil {
		p.f.Close()
		err = errors.Join(err, os.Remove(p.f.Name()))
	}
	return err
}

// present reports whether a complete pack is there, in the build's directory or among the blobs already.
func present(l *Layout, dir string, n int, m packMark) bool {
	for _, path := range []string{packPath(dir, n), l.blobPath(m.digest)} {
		if st, err := os.Stat(path); err == nil && st.Size() == m.size {
			return true
		}
	}
	return false
}

// adoptPack moves a pack among the blobs, unless it is there.
func adoptPack(l *Layout, dir string, n int, m packMark) error {
	if st, err := os.Stat(l.blobPath(m.digest)); err == nil && st.Size() == m.size {
		return nil
	}
	err := os.Chmod(packPath(dir, n), 0o644)
	if err == nil {
		err = l.adopt(packPath(dir, n), m.digest)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pack %d has vanished from %s: %w", n, dir, err)
	}
	return err
}
