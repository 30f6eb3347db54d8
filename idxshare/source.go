package idxshare

import (
	"errors"
	"io"
	"io/fs"
	"sync"
	"time"
)

// fileName is what the database is called in its file system.
const fileName = "index"

// source is a file system with the database as its only file, each opening of which has a place and an error of its own. SQLite asks it for pages.
type source struct {
	r    io.ReaderAt
	size int64

	mu     sync.Mutex
	opened *sourceFile // most recently
}

// Open opens the database.
func (s *source) Open(name string) (fs.File, error) {
	if name != fileName {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	f := &sourceFile{source: s}
	s.mu.Lock()
	s.opened = f
	s.mu.Unlock()
	return f, nil
}

type sourceFile struct {
	*source
	at int64

	mu  sync.Mutex
	err error // why a read failed, which SQLite does not tell
}

// takeError returns why a read failed since the last call.
func (f *sourceFile) takeError() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.err
	f.err = nil
	return err
}

// Read reads from where Seek went.
func (f *sourceFile) Read(p []byte) (int, error) {
	if f.at >= f.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), f.size-f.at)]
	n, err := f.r.ReadAt(p, f.at)
	f.at += int64(n)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrNoProgress // who reads takes an end of file for zeros, and this is none
	}
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	return n, err
}

// Seek sets where Read goes on.
func (f *sourceFile) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart || offset < 0 {
		return 0, fs.ErrInvalid
	}
	f.at = offset
	return offset, nil
}

// Close does nothing: the reader is its owner's.
func (f *sourceFile) Close() error { return nil }

// Stat returns the size.
func (f *sourceFile) Stat() (fs.FileInfo, error) { return sourceInfo(f.size), nil }

// sourceInfo is the size as what fs.FS has for it.
type sourceInfo int64

func (i sourceInfo) Name() string       { return fileName }
func (i sourceInfo) Size() int64        { return int64(i) }
func (i sourceInfo) Mode() fs.FileMode  { return 0o444 }
func (i sourceInfo) ModTime() time.Time { return time.Time{} }
func (i sourceInfo) IsDir() bool        { return false }
func (i sourceInfo) Sys() any           { return nil }
