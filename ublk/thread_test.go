package ublk_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// placed notes where it is called.
type placed struct {
	ublk.Null
	set unix.CPUSet
	err error
}

func (p *placed) Serve(r *ublk.Request) {
	p.err = unix.SchedGetaffinity(0, &p.set)
	r.Complete(0)
}

func TestThreadIsPinned(t *testing.T) {
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	rs := newReactors(t, ublk.ReactorConfig{})
	closeAtEnd(t, rs)
	for cpu := range 1024 {
		if !all.IsSet(cpu) {
			continue
		}
		h := &placed{}
		f := served(t, rs, h, ublktest.FakeConfig{Depth: 1, MaxIO: 4096}, cpu)
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
		if h.err != nil || h.set.Count() != 1 || !h.set.IsSet(cpu) {
			t.Errorf("served on %d CPUs, CPU %d among them: %v (%v)", h.set.Count(), cpu, h.set.IsSet(cpu), h.err)
		}
	}
}

// failing panics when it serves.
type failing struct{ ublk.Null }

func (*failing) Serve(*ublk.Request) { panic("handler went wrong") }

const panicEnv = "COPPICE_TEST_PANIC"

// A panic of a Handler ends the process, whose successor then gets the requests anew.
func TestHandlerPanicIsNotSwallowed(t *testing.T) {
	if os.Getenv(panicEnv) != "" {
		f := served(t, newReactors(t, ublk.ReactorConfig{}), &failing{}, ublktest.FakeConfig{Depth: 1, MaxIO: 4096})
		t.Fatal("the request was answered: ", f.Flush())
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHandlerPanicIsNotSwallowed$", "-test.timeout=20s")
	cmd.Env = append(os.Environ(), panicEnv+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "panic: handler went wrong") {
		t.Errorf("process ended with %v and this output:\n%s", err, out)
	}
}
