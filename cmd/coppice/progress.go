package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// progress shows how far long work has come: a bar that is drawn again on a terminal, a line now and
// then elsewhere.
type progress struct {
	w        io.Writer
	what     string
	terminal bool
	every    time.Duration
	last     time.Time
	drawn    bool
}

func newProgress(w io.Writer, what string) *progress {
	p := &progress{w: w, what: what, terminal: isTerminal(w), every: 5 * time.Second, last: time.Now()}
	if p.terminal {
		p.every = 100 * time.Millisecond
	}
	return p
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// show is called as often as one likes.
func (p *progress) show(done, total int64) {
	now := time.Now()
	if total <= 0 || now.Sub(p.last) < p.every {
		return
	}
	p.last = now
	percent := int(100 * done / total)
	if !p.terminal {
		fmt.Fprintf(p.w, "%s: %d%%, %s of %s\n", p.what, percent, showBytes(done), showBytes(total))
		return
	}
	const width = 30
	full := width * percent / 100
	p.drawn = true
	fmt.Fprintf(p.w, "\r%s [%s%s] %3d%%  %s of %s ", p.what, strings.Repeat("#", full), strings.Repeat(" ", width-full), percent, showBytes(done), showBytes(total))
}

// end takes the bar away.
func (p *progress) end() {
	if p.drawn {
		const eraseLine = "\x1b[K"
		fmt.Fprint(p.w, "\r"+eraseLine)
	}
}
