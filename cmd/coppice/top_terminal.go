package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/term"
)

// Escape sequences of ECMA-48, and of xterm for the other screen; all terminals of the last decades know them.
const (
	escOtherScreen = "\x1b[?1049h\x1b[?25l" // which has no cursor
	escOwnScreen   = "\x1b[0m\x1b[?25h\x1b[?1049l"
	escHome        = "\x1b[H"
	escEraseBelow  = "\x1b[0m\x1b[J"
	escReverse     = "\x1b[7m"
	escBold        = "\x1b[1m"
	escNormal      = "\x1b[0m"
)

// terminal is one whose whole screen is drawn on. Its methods are for one goroutine.
type terminal struct {
	in, out *os.File
	was     *term.State // of in; nil while the terminal is as it was before, and where in is none

	keys    chan byte // those that are pressed
	reading sync.Once
}

// openTerminal takes a terminal over, until close. in may be something else: then there are no keys.
func openTerminal(in, out *os.File) (*terminal, error) {
	t := &terminal{in: in, out: out, keys: make(chan byte)}
	return t, t.enter()
}

// enter takes the terminal over; to do that once more is harmless.
func (t *terminal) enter() error {
	if term.IsTerminal(int(t.in.Fd())) {
		was, err := term.MakeRaw(int(t.in.Fd()))
		if err != nil {
			return fmt.Errorf("take over terminal: %w", err)
		}
		if t.was == nil {
			t.was = was
		}
		t.reading.Do(func() { go t.read() })
	}
	if _, err := t.out.WriteString(escOtherScreen); err != nil {
		return errors.Join(fmt.Errorf("take over terminal: %w", err), t.close())
	}
	return nil
}

// close leaves the terminal as it was. To close twice is harmless.
func (t *terminal) close() error {
	_, err := t.out.WriteString(escOwnScreen)
	if t.was != nil {
		err = errors.Join(term.Restore(int(t.in.Fd()), t.was), err)
		t.was = nil
	}
	if err != nil {
		return fmt.Errorf("give terminal back: %w", err)
	}
	return nil
}

func (t *terminal) hasKeys() bool { return t.was != nil }

// Keys that have no character of their own, and those that a raw terminal makes no signals of.
const (
	keyEnd     = 0x03 // control-C
	keySuspend = 0x1a // control-Z
	keyRight   = '>'
	keyLeft    = '<'
)

// read passes keys on until there are no more. It never ends before, but with the process.
func (t *terminal) read() {
	defer close(t.keys)
	p := make([]byte, 64)
	for {
		n, err := t.in.Read(p)
		if err != nil || n == 0 {
			return
		}
		text := strings.NewReplacer("\x1b[C", string(keyRight), "\x1bOC", string(keyRight), "\x1b[D", string(keyLeft), "\x1bOD", string(keyLeft)).Replace(string(p[:n]))
		if strings.HasPrefix(text, "\x1b") { // a key that means nothing here
			continue
		}
		for i := range len(text) {
			t.keys <- text[i]
		}
	}
}

// size returns columns and lines; what the terminal does not say is taken to be as ever.
func (t *terminal) size() (width, height int) {
	width, height, err := term.GetSize(int(t.out.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		return 80, 24
	}
	return width, height
}

// draw replaces what is on the screen. Lines are no longer than it is wide, and no more than it is high.
func (t *terminal) draw(lines []topLine, width int) error {
	var b strings.Builder
	b.WriteString(escHome)
	for i, l := range lines {
		if i > 0 {
			b.WriteString("\r\n")
		}
		switch l.style {
		case styleHeading:
			b.WriteString(escReverse)
		case styleTrouble:
			b.WriteString(escBold)
		}
		b.WriteString(l.text)
		b.WriteString(strings.Repeat(" ", max(width-utf8.RuneCountInString(l.text), 0)))
		b.WriteString(escNormal)
	}
	// Where the last line is full, the cursor stands on its last character, which erasing would take.
	_, height := t.size()
	if len(lines) < height {
		b.WriteString("\r\n" + escEraseBelow)
	}
	_, err := t.out.WriteString(b.String())
	return err
}
