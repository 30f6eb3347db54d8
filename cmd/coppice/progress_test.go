package main

import (
	"bytes"
	"testing"
	"time"
)

func TestProgressOnATerminalAndElsewhere(t *testing.T) {
	var b bytes.Buffer
	p := newProgress(&b, "export web1")
	if p.terminal {
		t.Fatal("a buffer is a terminal")
	}
	p.show(1, 2) // too soon
	p.every = 0
	p.show(0, 0) // nothing known yet
	p.show(1<<20, 4<<20)
	p.end()
	if got := b.String(); got != "export web1: 25%, 1.0 MiB of 4.0 MiB\n" {
		t.Errorf("%q", got)
	}
	b.Reset()
	p = &progress{w: &b, what: "export web1", terminal: true, last: time.Now()}
	p.show(2<<20, 4<<20)
	p.end()
	if got := b.String(); got != "\rexport web1 [###############               ]  50%  2.0 MiB of 4.0 MiB \r\x1b[K" {
		t.Errorf("%q", got)
	}
}
