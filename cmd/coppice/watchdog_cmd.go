package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// watchdogCommand is the name of a command that is not for people.
const watchdogCommand = "thaw-watchdog"

// Messages to the watchdog: one of these and the number of a file system.
const (
	msgArm    = 'a' // it is about to be frozen
	msgDisarm = 'd' // it is not frozen, or not any more
)

// watchdogCmd thaws file systems whose freezer died or takes too long. They are open as descriptors from
// 3 on, the freezer's messages come on standard input, and one byte on standard output says that it is ready.
type watchdogCmd struct {
	Files int `arg:"" help:"Number of file systems."`
}

// Run ends when the freezer has.
func (c *watchdogCmd) Run(env *environment) error {
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := lockMemory(); err != nil {
		return err
	}
	const firstFile = 3
	files := make([]*os.File, c.Files)
	for i := range files {
		files[i] = os.NewFile(uintptr(firstFile+i), "file system")
	}
	if _, err := env.out.Write([]byte{'r'}); err != nil {
		return fmt.Errorf("say ready: %w", err)
	}
	w := watchdog{limit: watchdogLimit, again: 100 * time.Millisecond, armed: make([]bool, c.Files), thaw: func(i int) { _ = ioctl(files[i], fiThaw) }}
	w.run(os.Stdin)
	return nil
}

// watchdog is what the command does, without the kernel.
type watchdog struct {
	limit, again time.Duration
	armed        []bool
	thaw         func(i int)
}

// run reads messages until their sender is gone, and thaws then what is still armed. Once something has been
// armed for the limit, it is thawed again and again: a freeze may still be under way.
func (w *watchdog) run(in io.Reader) {
	messages := make(chan [2]byte)
	go func() {
		defer close(messages)
		for {
			var m [2]byte
			if _, err := io.ReadFull(in, m[:]); err != nil {
				return
			}
			messages <- m
		}
	}()
	var late <-chan time.Time
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				w.thawArmed()
				return
			}
			if i := int(m[1]); i < len(w.armed) {
				w.armed[i] = m[0] == msgArm
			}
			if late == nil && m[0] == msgArm {
				late = time.After(w.limit)
			}
		case <-late:
			w.thawArmed()
			late = time.After(w.again)
		}
	}
}

func (w *watchdog) thawArmed() {
	for i, armed := range w.armed {
		if armed {
			w.thaw(i)
		}
	}
}
