package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

type topCmd struct {
	output
	Interval time.Duration `default:"1s" help:"How long to look before what happened is shown (${default})."`
	Once     bool          `help:"Show what happens within one interval, and end."`
	Count    int           `short:"n" placeholder:"COUNT" help:"End after so many intervals; 0 is never (${default})." default:"0"`
}

// leastInterval keeps top from being what the machine is busy with.
const leastInterval = 100 * time.Millisecond

// Validate refuses what makes no sense.
func (c *topCmd) Validate() error {
	switch {
	case c.Interval < leastInterval:
		return fmt.Errorf("--interval: %s is less than %s", c.Interval, leastInterval)
	case c.Count < 0:
		return fmt.Errorf("--count: %d is negative", c.Count)
	}
	return nil
}

// Run shows what happens, on the whole screen of a terminal, and elsewhere as lines.
func (c *topCmd) Run(env *environment) error {
	if c.Once {
		c.Count = 1
	}
	client := env.client()
	client.Wait = 0 // one that is gone is shown to be
	eye := &topEye{client: client, sys: "/sys"}
	first := eye.look(env.ctx)
	if first.answered.IsZero() {
		return first.err
	}
	out, ok := env.out.(*os.File)
	if !ok || !isTerminal(out) || c.Once || c.Output == "json" {
		return c.lines(env, eye, first)
	}
	return onTerminal(os.Stdin, out, func(t *terminal) error {
		return (&topSession{c: c, eye: eye, terminal: t, before: first, report: compareLooks(topLook{}, first)}).run(env.ctx)
	})
}

// lines prints a report for each interval.
func (c *topCmd) lines(env *environment, eye *topEye, before topLook) error {
	tick := time.NewTicker(c.Interval)
	defer tick.Stop()
	for n := 0; c.Count == 0 || n < c.Count; n++ {
		select {
		case <-env.ctx.Done():
			return nil
		case <-tick.C:
		}
		now := eye.look(env.ctx)
		if env.ctx.Err() != nil {
			return nil
		}
		r := compareLooks(before, now)
		before = now
		if c.Output == "json" {
			if err := json.NewEncoder(env.out).Encode(r); err != nil {
				return fmt.Errorf("print result: %w", err)
			}
			continue
		}
		for _, l := range (topScreen{}).lines(r) {
			fmt.Fprintln(env.out, l.text)
		}
		fmt.Fprintln(env.out)
	}
	return nil
}

// onTerminal has do draw on a terminal, which is left as it was however that ends.
func onTerminal(in, out *os.File, do func(*terminal) error) (err error) {
	t, err := openTerminal(in, out)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, t.close()) // a panic goes on after that
	}()
	return do(t)
}

// topSession is top on a terminal.
type topSession struct {
	c        *topCmd
	eye      *topEye
	terminal *terminal
	screen   topScreen
	before   topLook
	report   topReport
	shown    int // reports
}

// looked is what a look in the background came to.
type looked struct {
	look     topLook
	panicked any // what it ended with instead
	stack    []byte
}

// run goes on until it is asked to end.
func (s *topSession) run(ctx context.Context) error {
	// Those that would end the program have it give the terminal back; the environment knows two more.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGHUP, unix.SIGQUIT, unix.SIGWINCH, unix.SIGCONT)
	defer signal.Stop(signals)
	tick := time.NewTicker(s.c.Interval)
	defer tick.Stop()
	looks := make(chan looked, 1)
	looking := false // at most one look is under way: a daemon that hangs is not asked again and again
	keys := s.terminal.keys
	s.screen.keys = s.terminal.hasKeys()
	for {
		if err := s.draw(); err != nil {
			return fmt.Errorf("draw on terminal: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case got := <-signals:
			if end, err := s.signal(got); end || err != nil {
				return err
			}
		case key, ok := <-keys:
			if !ok { // the terminal is gone, or will say nothing more
				return nil
			}
			if end, err := s.press(key); end || err != nil {
				return err
			}
		case <-tick.C:
			if !looking && !s.screen.paused {
				looking = true
				go s.lookInto(ctx, looks)
			}
		case l := <-looks:
			looking = false
			if l.panicked != nil {
				panic(fmt.Sprintf("%v\n\n%s", l.panicked, l.stack))
			}
			if s.screen.paused || ctx.Err() != nil {
				continue
			}
			s.report, s.before = compareLooks(s.before, l.look), l.look
			if s.shown++; s.shown == s.c.Count {
				return s.draw()
			}
		}
	}
}

// lookInto looks in the background. A panic is the session's: the terminal is given back before it is shown.
func (s *topSession) lookInto(ctx context.Context, looks chan<- looked) {
	var l looked
	defer func() {
		if l.panicked = recover(); l.panicked != nil {
			l.stack = debug.Stack()
		}
		looks <- l
	}()
	l.look = s.eye.look(ctx)
}

func (s *topSession) draw() error {
	s.screen.width, s.screen.height = s.terminal.size()
	return s.terminal.draw(s.screen.lines(s.report), s.screen.width)
}

// signal tells whether to end.
func (s *topSession) signal(got os.Signal) (end bool, err error) {
	switch got {
	case unix.SIGHUP, unix.SIGQUIT:
		return true, nil
	case unix.SIGCONT: // who stopped us has had the terminal
		return false, s.terminal.enter()
	}
	return false, nil
}

// press does what a key is for, and tells whether to end.
func (s *topSession) press(key byte) (end bool, err error) {
	switch key {
	case 'q', 'Q', keyEnd:
		return true, nil
	case keySuspend:
		return false, s.suspend()
	case 'p', ' ':
		s.screen.paused = !s.screen.paused
	case keyRight:
		s.screen.sort = (s.screen.sort + 1) % len(topColumns)
	case keyLeft:
		s.screen.sort = (s.screen.sort + len(topColumns) - 1) % len(topColumns)
	case 'r', 'R':
		s.screen.reversed = !s.screen.reversed
	}
	return false, nil
}

// suspend stops the program, as control-Z does, until a shell has it go on.
func (s *topSession) suspend() error {
	if err := errors.Join(s.terminal.close(), unix.Kill(0, unix.SIGTSTP)); err != nil {
		return err
	}
	// Threads stop a little later. Where nobody could have the program go on, the kernel does not stop it.
	const patience = 200 * time.Millisecond
	time.Sleep(patience)
	return s.terminal.enter()
}
