package node_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice/node"
)

func (r *rig) machineEnds() {
	r.t.Helper()
	check(r.t, os.WriteFile(filepath.Join(r.cfg.RunDir, "ending"), nil, 0o600))
}

// While the machine goes down, a device in use is served until it is released, and then stopped like any other.
func TestDeviceIsServedUntilTheMachineHasUnmounted(t *testing.T) {
	r := newRig(t)
	r.cfg.LastWait = time.Hour
	d := r.start()
	r.create(r.request("web1"))
	r.write(0, "mine", 4096)
	r.kernel.Hold(0, true)
	r.machineEnds()
	d.Signal()
	for !strings.Contains(r.log.String(), "it is served until it is released") {
		time.Sleep(10 * time.Millisecond)
	}
	if got := r.read(0, 4096, 4); got != "mine" {
		t.Errorf("read %q", got)
	}
	r.kernel.Hold(0, false)
	check(t, d.Stop())
	if ids := r.kernel.IDs(); len(ids) != 0 {
		t.Errorf("devices left: %v", ids)
	}
}

// A device that is never released is taken from its users when the time is over: nobody would take it up again. What was said of the machine's end is forgotten by
// the next daemon.
func TestDeviceInUseDoesNotKeepTheMachineUp(t *testing.T) {
	r := newRig(t)
	r.cfg.LastWait = 10 * time.Millisecond
	d := r.start()
	r.create(r.request("web1"))
	r.kernel.Hold(0, true)
	r.machineEnds()
	check(t, d.Stop())
	if ids := r.kernel.IDs(); len(ids) != 0 {
		t.Errorf("devices left: %v", ids)
	}
	r.start()
	if got := state(t, r, "web1"); got.State != node.StateLive {
		t.Errorf("web1 is %+v", got)
	}
	if _, err := os.Stat(filepath.Join(r.cfg.RunDir, "ending")); err == nil {
		t.Error("the machine still ends")
	}
}

// A daemon that serves says that it works; one that is gone does not.
func TestAnswers(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("web1"))
	check(t, d.Answers(t.Context()))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Answers(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("an answer that nobody waited for: %v", err)
	}
	check(t, d.Stop())
	if err := d.Answers(t.Context()); node.CodeOf(err) != node.CodeNoDaemon {
		t.Errorf("a stopped daemon answers: %v", err)
	}
}
