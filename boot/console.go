package boot

import (
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"coppice/node"
)

// again is how often a message about something that is still so is repeated.
const again = time.Minute

// console is where a person sees what the boot does.
type console struct {
	w    io.Writer
	last string
	when time.Time
}

// say prints a line.
func (c *console) say(format string, args ...any) {
	fmt.Fprintf(c.w, "coppice: "+format+"\n", args...)
}

// repeat prints a line that says what is waited for: once, when it changes, and from time to time.
func (c *console) repeat(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if text == c.last && time.Since(c.when) < again {
		return
	}
	c.last, c.when = text, time.Now()
	c.say("%s", text)
}

// sinceStart tells how long the machine has been running.
func sinceStart() string {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return "some time"
	}
	return fmt.Sprintf("%.1f s", time.Duration(t.Nano()).Seconds())
}

// problem is an error that a person must mend, with what to do about it.
func problem(code node.Code, hint, format string, args ...any) error {
	return &node.Error{Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
}
