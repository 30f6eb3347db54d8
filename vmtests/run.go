package vmtests

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"coppice/vmtests/wire"
)

// Job is a command to run in the guest.
type Job struct {
	Argv    []string
	Env     []string      // added to the agent's PATH, HOME, TMPDIR, LC_ALL and COPPICE_VM=1
	Dir     string        // working directory in the guest; default /
	Timeout time.Duration // 0: none beside the context
	Output  io.Writer     // standard output and error of the command as they come; nil drops them
}

// ErrGuestGone is wrapped by errors that say that a VM ended, panicked or stopped answering.
var ErrGuestGone = errors.New("guest is gone")

// ErrEmulator is wrapped beside ErrGuestGone where the guest died of a known flaw of the emulator and not of its own: while
// the kernel patches its code on one virtual CPU, another runs into a breakpoint that is gone already. It is rare, hits any
// guest with two CPUs, and says nothing about what ran; only trying again helps.
var ErrEmulator = errors.New("emulator ran a stale breakpoint")

// staleBreakpoint is how the guest's kernel reports it; nothing else in the tests sets breakpoints in the kernel.
const staleBreakpoint = "Oops: int3:"

// hangGrace is how long after a job's time-out the guest may take to report it before the host calls it hung.
const hangGrace = 45 * time.Second

// Run executes a job and waits for its end. The error tells that the VM failed; how the command ended is in the result.
// When ctx ends the command gets SIGTERM, then SIGKILL.
func (vm *VM) Run(ctx context.Context, job Job) (wire.Exit, error) {
	id, events, err := vm.begin()
	if err != nil {
		return wire.Exit{}, err
	}
	defer vm.end(id)
	run := wire.Run{Argv: job.Argv, Env: job.Env, Dir: job.Dir, Timeout: job.Timeout}
	if err := vm.conn.Send(wire.Request{ID: id, Run: &run}); err != nil {
		return wire.Exit{}, vm.gone(err)
	}
	var hung <-chan time.Time
	if job.Timeout > 0 {
		timer := time.NewTimer(job.Timeout + hangGrace)
		defer timer.Stop()
		hung = timer.C
	}
	done := ctx.Done()
	for {
		select {
		case ev, ok := <-events:
			switch {
			case !ok:
				return wire.Exit{}, vm.gone(nil)
			case ev.Exit != nil:
				return *ev.Exit, nil
			case job.Output != nil:
				if _, err := job.Output.Write(ev.Output); err != nil {
					return wire.Exit{}, fmt.Errorf("pass on output: %w", err)
				}
			}
		case <-done:
			done = nil
			vm.signal(id, syscall.SIGTERM)
			time.AfterFunc(5*time.Second, func() { vm.signal(id, syscall.SIGKILL) })
		case <-hung:
			return wire.Exit{}, vm.gone(fmt.Errorf("run %q: no answer %v after its time-out\n%s", job.Argv, hangGrace, vm.Dump()))
		case <-vm.exited:
			// The last events may still be on their way; the receiver closes the channel after them.
			select {
			case ev, ok := <-events:
				if ok && ev.Exit != nil {
					return *ev.Exit, nil
				}
			case <-time.After(time.Second):
			}
			return wire.Exit{}, vm.gone(nil)
		}
	}
}

// outputLimit is how long a command of Output may take, on a machine that has much else to do.
const outputLimit = 5 * time.Minute

// Output runs a command and returns what it printed. A command that does not end with status 0 is an error.
func (vm *VM) Output(ctx context.Context, argv ...string) (string, error) {
	var out bytes.Buffer
	exit, err := vm.Run(ctx, Job{Argv: argv, Output: &out, Timeout: outputLimit})
	if err == nil && !exit.OK() {
		err = fmt.Errorf("run %q in guest: %s\n%s%s", argv, exit, out.String(), exit.Dump)
	}
	return out.String(), err
}

func (vm *VM) signal(id uint64, sig syscall.Signal) {
	_ = vm.conn.Send(wire.Request{ID: id, Signal: &wire.Signal{Number: int(sig)}})
}

func (vm *VM) begin() (uint64, <-chan wire.Event, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.runs == nil {
		return 0, nil, vm.gone(nil)
	}
	id, ch := vm.next, make(chan wire.Event, 64)
	vm.next++
	vm.runs[id] = ch
	return id, ch, nil
}

// end forgets a run and takes what is still under way to it, so that the receiver is not held up.
func (vm *VM) end(id uint64) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	ch := vm.runs[id]
	delete(vm.runs, id)
	for len(ch) > 0 {
		<-ch
	}
}

// Dump asks the guest for its kernel log with the state of all tasks. It never fails: where the guest does not answer,
// it says so.
func (vm *VM) Dump() string {
	id, events, err := vm.begin()
	if err != nil {
		return err.Error()
	}
	defer vm.end(id)
	if err := vm.conn.Send(wire.Request{ID: id, Dump: &struct{}{}}); err != nil {
		return err.Error()
	}
	select {
	case ev := <-events:
		return ev.Dump
	case <-vm.exited:
		return "dump guest: it is gone"
	case <-time.After(30 * time.Second):
		return "dump guest: the agent does not answer"
	}
}

// gone describes the loss of the VM with all that helps to understand it.
func (vm *VM) gone(cause error) error {
	why := ErrGuestGone
	switch console := vm.console(); {
	case strings.Contains(console, staleBreakpoint):
		why = fmt.Errorf("%w: %w", ErrGuestGone, ErrEmulator)
	case strings.Contains(console, "Kernel panic"):
		why = fmt.Errorf("%w: kernel panic", ErrGuestGone)
	}
	return fmt.Errorf("%w\n%s", errors.Join(why, cause), vm.Report())
}

// Report returns QEMU's command line and the end of the console.
func (vm *VM) Report() string {
	var b strings.Builder
	if vm.cmd != nil {
		fmt.Fprintf(&b, "--- command: %s\n", shellQuote(vm.cmd.Args))
	}
	fmt.Fprintf(&b, "--- console (last lines)\n%s\n", lastLines(vm.console(), 200))
	return b.String()
}

// noConsole begins what stands for the console where there is none, as after Kill.
const noConsole = "no console: "

func (vm *VM) console() string {
	text, err := os.ReadFile(filepath.Join(vm.dir, "console"))
	if err != nil {
		return fmt.Sprint(noConsole, err)
	}
	return string(text)
}

func shellQuote(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if strings.ContainsAny(a, " '\"$&;|<>()*?\\") {
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
