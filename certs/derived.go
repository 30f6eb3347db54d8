package certs

import "sync"

// Derived is a value that is made of what files say, and made anew when that has changed. It is safe for concurrent use.
type Derived[T any] struct {
	files *Files
	build func(*Content) T
	drop  func(T)

	mu    sync.Mutex // guards what follows
	now   T
	built bool
	gen   int // of the content that now was made of
}

// Derive returns a value that is made by build when it is asked for first. drop, if not nil, is given each value that another one has taken the place of. Without
// files, which may be nil, build is called once, with nil.
func Derive[T any](files *Files, build func(*Content) T, drop func(T)) *Derived[T] {
	return &Derived[T]{files: files, build: build, drop: drop}
}

// Current returns the value of what the files say now: see [Files.Current].
func (d *Derived[T]) Current() T {
	d.mu.Lock()
	defer d.mu.Unlock()
	var content *Content
	gen := 0
	if d.files != nil {
		content, gen = d.files.Current()
	}
	if d.built && gen == d.gen {
		return d.now
	}
	before, stale := d.now, d.built
	d.now, d.built, d.gen = d.build(content), true, gen
	if stale && d.drop != nil {
		d.drop(before)
	}
	return d.now
}
