package node_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coppice/node"
)

// edit changes a record between two daemons, as a crash at another moment would have left it.
func (r *rig) edit(name string, change func(map[string]any)) {
	r.t.Helper()
	data, err := os.ReadFile(r.recordPath(name))
	check(r.t, err)
	rec := map[string]any{}
	check(r.t, json.Unmarshal(data, &rec))
	change(rec)
	data, err = json.Marshal(rec)
	check(r.t, err)
	check(r.t, os.WriteFile(r.recordPath(name), data, 0o600))
}

// stopped makes a device and ends the daemon, in use or not.
func stopped(t *testing.T, held bool) *rig {
	t.Helper()
	r := newRig(t)
	d := r.start()
	r.create(r.request("web1"))
	r.kernel.Hold(0, held)
	check(t, d.Stop())
	if held {
		r.kernel.Hold(0, false)
	}
	return r
}

func TestUnreportedCreationIsUndone(t *testing.T) {
	for _, inKernel := range []bool{true, false} {
		r := stopped(t, inKernel)
		r.edit("web1", func(rec map[string]any) { rec["phase"], rec["new_layer"] = "creating", true })
		d := r.start()
		r.nothingLeft("web1")
		check(t, d.Stop())
		if l := r.layers(); len(l) != 0 {
			t.Errorf("layers left: %v", l)
		}
	}
}

func TestUnreportedCreationKeepsLayerWithData(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("web1"))
	r.write(0, "precious", 0)
	check(t, d.Stop())
	r.edit("web1", func(rec map[string]any) { rec["phase"], rec["new_layer"] = "creating", true })
	d = r.start()
	r.nothingLeft("web1")
	check(t, d.Stop())
	if l := r.layers(); len(l) != 1 {
		t.Errorf("layers: %v", l)
	}
}

func TestUnreportedDeletion(t *testing.T) {
	r := stopped(t, false)
	r.edit("web1", func(rec map[string]any) { rec["phase"] = "deleting" })
	r.start()
	r.nothingLeft("web1")

	r = stopped(t, true)
	r.edit("web1", func(rec map[string]any) { rec["phase"] = "deleting" })
	r.start()
	if s := state(t, r, "web1"); s.State != node.StateLive {
		t.Errorf("a device that the kernel still has is %s", s.State)
	}
}

func TestDeadDeviceIsMadeAnew(t *testing.T) {
	r := stopped(t, false)
	var token uint64
	r.edit("web1", func(rec map[string]any) { token = 77; rec["token"] = "77" })
	check(t, r.kernel.Plant(0, token, true))
	r.start()
	if s := state(t, r, "web1"); s.State != node.StateLive || s.ID != 0 {
		t.Errorf("restored as %+v", s)
	}
}

func TestForeignDeviceIsLeftAlone(t *testing.T) {
	r := stopped(t, false)
	check(t, r.kernel.Plant(0, 12345, false))
	r.start()
	if s := state(t, r, "web1"); s.State != node.StateFailed || !strings.Contains(s.Error, "another server") {
		t.Errorf("restored as %+v", s)
	}
	if ids := r.kernel.IDs(); len(ids) != 1 {
		t.Error("the other server's device was removed")
	}
}

func TestRecordsFromBeforeRebootAreForgotten(t *testing.T) {
	r := stopped(t, false)
	r.edit("web1", func(rec map[string]any) { rec["boot_id"] = "another boot" })
	r.start()
	r.nothingLeft("web1")
	if !r.log.contains("before the reboot") || !r.log.contains(r.root) {
		t.Errorf("not said in the log:\n%s", r.log)
	}
	r.create(r.request("web1"))
}

func TestDamagedRecordsAreReportedAndKept(t *testing.T) {
	r := stopped(t, false)
	check(t, os.WriteFile(r.recordPath("torn"), []byte(`{"version":1,`), 0o600))
	check(t, os.WriteFile(r.recordPath("newer"), []byte(`{"version":2,"device":{"name":"newer"}}`), 0o600))
	check(t, os.WriteFile(r.recordPath("moved"), []byte(`{"version":1,"device":{"name":"web1"}}`), 0o600))
	d := r.start()
	for _, name := range []string{"torn", "newer", "moved"} {
		if s := state(t, r, name); s.State != node.StateFailed || s.Error == "" || s.Path != "" {
			t.Errorf("%s reported as %+v", name, s)
		}
	}
	if state(t, r, "web1").State != node.StateLive {
		t.Error("the sound record was not acted on")
	}
	check(t, d.Stop())
	if !r.hasRecord("torn") || !r.hasRecord("newer") {
		t.Error("records gone")
	}
}

func TestFailedRecoveryIsTriedAgainByTheNextDaemon(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("web1"))
	r.create(r.request("web2"))
	r.write(0, "mine", 0)
	r.kernel.Hold(0, true)
	check(t, d.Stop())
	r.kernel.FailStart(errors.New("not today"))
	d = r.start()
	for _, name := range []string{"web1", "web2"} { // one to be recovered, one to be made anew
		if s := state(t, r, name); s.State != node.StateFailed || !strings.Contains(s.Error, "not today") {
			t.Errorf("%s reported as %+v", name, s)
		}
	}
	r.kernel.FailStart(nil)
	check(t, d.Stop())
	r.start()
	if got := r.read(0, 0, 4); got != "mine" || state(t, r, "web2").State != node.StateLive {
		t.Errorf("read %q after the second restart", got)
	}
}

func TestDeleteAfterFailedRecoveryFreesTheLayer(t *testing.T) {
	r := stopped(t, true)
	r.kernel.FailStart(errors.New("not today"))
	r.start()
	r.kernel.FailStart(nil)
	_, err := r.client().Delete(context.Background(), "web1")
	check(t, err)
	r.nothingLeft("web1")
	r.create(r.request("web1"))
}

func TestDeviceSnatchedFromTheDaemon(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("web1"))
	r.write(0, "mine", 0)
	r.kernel.Snatch(0)
	r.log.wait(t, "device lost")
	if s := state(t, r, "web1"); s.State != node.StateFailed || !strings.Contains(s.Error, "another program") {
		t.Errorf("reported as %+v", s)
	}
	check(t, d.Stop())
	r.start()
	if got := r.read(0, 0, 4); got != "mine" {
		t.Errorf("read %q after the restart", got)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	r := newRig(t)
	r.start()
	_, err := node.New(node.Config{RunDir: r.cfg.RunDir, Driver: r.driver()})
	if node.CodeOf(err) != node.CodeInUse || !strings.Contains(err.Error(), "pid") || node.HintOf(err) == "" {
		t.Fatalf("second daemon: %v", err)
	}
	r.create(r.request("web1"))
}

func (r *rig) driver() node.Driver {
	r.t.Helper()
	d, err := r.kernel.NewDriver()
	check(r.t, err)
	r.t.Cleanup(func() { check(r.t, d.Close()) })
	return d
}

// Devices that are taken up together look at the root that they have in common once, and each has it open then.
func TestRawRootIsLookedAtOnce(t *testing.T) {
	const devices, most = 12, 10 * mib // what to find out about one root, and all else, is less than that
	r := newRig(t)
	check(t, os.Truncate(r.root, 8*mib))
	d := r.start()
	for i := range devices {
		r.kernel.Hold(r.create(r.request(fmt.Sprint("web", i))).ID, true)
	}
	check(t, d.Stop())
	before := bytesRead(t)
	r.start()
	if n := bytesRead(t) - before; n > most {
		t.Errorf("%d MiB were read for %d devices", n/mib, devices)
	}
	if n := opened(t, r.root); n != devices {
		t.Errorf("the root is open %d times", n)
	}
	for i := range devices {
		if got := r.read(i, 0, 4); got != "root" {
			t.Errorf("device %d has %q", i, got)
		}
		r.kernel.Hold(i, false)
	}
}

// bytesRead is how much this process has read by system calls.
func bytesRead(t *testing.T) (n int64) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	check(t, err)
	_, err = fmt.Sscanf(string(text), "rchar: %d", &n)
	check(t, err)
	return n
}

// opened is how often this process has a file open.
func opened(t *testing.T, path string) (n int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	check(t, err)
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && to == path {
			n++
		}
	}
	return n
}
