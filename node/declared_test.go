package node_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice/node"
	"coppice/union"
)

// declaring gives the rig's daemons a directory of declared devices, and returns how to write one.
func (r *rig) declaring() (write func(file, text string)) {
	r.t.Helper()
	r.cfg.DevicesPath = filepath.Join(r.dir, "devices.d")
	check(r.t, os.MkdirAll(r.cfg.DevicesPath, 0o755))
	return func(file, text string) {
		r.t.Helper()
		text = strings.NewReplacer("ROOT", r.root, "STORE", r.store).Replace(text)
		check(r.t, os.WriteFile(filepath.Join(r.cfg.DevicesPath, file), []byte(text), 0o644))
	}
}

// await lists the devices until ok says that they are as they should be.
func (r *rig) await(ok func(map[string]node.Device) bool) map[string]node.Device {
	r.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		list, err := r.client().List(context.Background())
		check(r.t, err)
		byName := make(map[string]node.Device)
		for _, d := range list {
			byName[d.Name] = d
		}
		if ok(byName) {
			return byName
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("devices are %+v\n%s", list, r.log)
		}
	}
}

// Declared devices are there when the daemon is ready. A file that is wrong is told of, by its line, and keeps no other from being made.
func TestDeclaredDevices(t *testing.T) {
	r := newRig(t)
	write := r.declaring()
	write("web1.toml", "root = \"ROOT\"\nleaf = \"STORE\"\nsize = \"8M\"\nid = 7\nread_only = false\n")
	write("web2.toml", "root = [\"ROOT\"]\nleaf = \"STORE\"\nlayer = \"other\"\nblock_size = 4096\nsize = 8388608\n")
	write("typo.toml", "root = \"ROOT\"\nlaef = \"STORE\"\n")
	write("noleaf.toml", "root = \"ROOT\"\n")
	write("number.toml", "root = 3\nleaf = \"STORE\"\n")
	write("-bad-.toml", "root = \"ROOT\"\nleaf = \"STORE\"\n")
	write("README", "no declaration")
	d := r.start()
	got := r.await(func(m map[string]node.Device) bool { return m["web2"].State == node.StateLive })
	if len(got) != 5 || got["web1"].State != node.StateLive || got["web1"].ID != 7 || got["web1"].SizeBytes != 8*mib ||
		got["web2"].Leaf.Layer != "other" || got["web2"].BlockSize != 4096 {
		t.Errorf("devices are %+v", got)
	}
	for name, want := range map[string]string{"typo": "line 2: unknown key \"laef\"", "noleaf": "it names no leaf", "number": "neither a string nor a list"} {
		if v := got[name]; v.State != node.StateFailed || !strings.Contains(v.Error, want) || v.Hint == "" {
			t.Errorf("%s: %s %q, want %q", name, v.State, v.Error, want)
		}
	}
	if !strings.Contains(r.log.String(), "its name is no device's") {
		t.Errorf("nothing is said of -bad-.toml:\n%s", r.log)
	}
	// Records of an earlier daemon go before declarations.
	check(t, d.Stop())
	write("web1.toml", "root = \"ROOT\"\nleaf = \"STORE\"\nid = 9\n")
	d = r.start()
	got = r.await(func(m map[string]node.Device) bool { return m["web1"].State == node.StateLive })
	if got["web1"].ID != 7 || got["web1"].Restored == nil {
		t.Errorf("web1 is %+v", got["web1"])
	}
	check(t, d.Stop())
}

// A declared device whose leaf is not there yet is listed as failed, and made when it is; so is one that is declared, or corrected, before a reload.
func TestDeclaredDevicesComeLater(t *testing.T) {
	r := newRig(t)
	write := r.declaring()
	later := r.store + "-later"
	write("late.toml", "root = \"ROOT\"\nleaf = \"STORE-later\"\n")
	write("wrong.toml", "root = \"ROOT\"\nleaf = \"STORE\"\nqueues = \"many\"\n")
	d := r.start()
	got := r.await(func(m map[string]node.Device) bool { return m["late"].State == node.StateFailed })
	if !strings.Contains(got["late"].Error, later) {
		t.Errorf("late is %+v", got["late"])
	}
	_, err := union.Format(later+".new", union.FormatOptions{SizeBytes: storeSize})
	check(t, err)
	check(t, os.Rename(later+".new", later))
	r.await(func(m map[string]node.Device) bool { return m["late"].State == node.StateLive })
	write("wrong.toml", "root = \"ROOT\"\nleaf = \"STORE\"\nqueues = 1\n")
	check(t, d.Reload(t.Context(), r.cfg))
	r.await(func(m map[string]node.Device) bool { return m["wrong"].State == node.StateLive })
	// One that is deleted stays away until the next start.
	was, err := r.client().Delete(t.Context(), "late")
	check(t, err)
	if was.Declared != filepath.Join(r.cfg.DevicesPath, "late.toml") {
		t.Errorf("declared in %q", was.Declared)
	}
	check(t, d.Stop())
	r.start()
	r.await(func(m map[string]node.Device) bool { return m["late"].State == node.StateLive })
}

// A device that is made with Save is declared; where it cannot be made, or is declared already, nothing is written.
func TestSavedDevice(t *testing.T) {
	r := newRig(t)
	r.declaring()
	d := r.start()
	req := r.request("web1")
	req.Save, req.Depth = true, 64
	path := filepath.Join(r.cfg.DevicesPath, "web1.toml")
	if made := r.create(req); made.Declared != path {
		t.Errorf("declared in %q", made.Declared)
	}
	missing := req
	missing.Name, missing.Root = "web2", r.root+".not"
	if _, err := r.client().Create(t.Context(), missing); err == nil {
		t.Error("a root that is not there is taken")
	}
	if _, err := os.Stat(filepath.Join(r.cfg.DevicesPath, "web2.toml")); err == nil {
		t.Error("a device that could not be made is declared")
	}
	_, err := r.client().Delete(t.Context(), "web1")
	check(t, err)
	if _, err := r.client().Create(t.Context(), req); node.CodeOf(err) != node.CodeNameTaken {
		t.Errorf("declared twice: %v", err)
	}
	check(t, d.Stop())
	r.start()
	got := r.await(func(m map[string]node.Device) bool { return m["web1"].State == node.StateLive })
	if got["web1"].Depth != 64 || got["web1"].Leaf.Store != r.store {
		t.Errorf("web1 is %+v", got["web1"])
	}
}

// udev finds the name of each kernel device, from before the kernel has it until it has not any more; also after a crash.
func TestNamesForUdev(t *testing.T) {
	r := newRig(t)
	dir := filepath.Join(r.cfg.RunDir, "udev")
	want := func(files ...string) {
		t.Helper()
		var got []string
		entries, err := os.ReadDir(dir)
		check(t, err)
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			check(t, err)
			got = append(got, fmt.Sprintf("%s %s", e.Name(), strings.TrimSpace(string(text))))
		}
		if strings.Join(got, "; ") != strings.Join(files, "; ") {
			t.Errorf("names are %q, want %q", got, files)
		}
	}
	d := r.start()
	r.create(r.request("web1"))
	r.create(r.request("web2"))
	want("ublkb0 COPPICE_NAME=web1", "ublkb1 COPPICE_NAME=web2")
	_, err := r.client().Delete(t.Context(), "web1")
	check(t, err)
	missing := r.request("web3")
	missing.Root += ".not"
	if _, err := r.client().Create(t.Context(), missing); err == nil {
		t.Error("a root that is not there is taken")
	}
	want("ublkb1 COPPICE_NAME=web2")
	check(t, d.Stop())
	want() // stopped: the number may be another server's by the next start
	check(t, os.WriteFile(filepath.Join(dir, "ublkb5"), []byte("COPPICE_NAME=gone\n"), 0o600))
	r.start()
	want("ublkb1 COPPICE_NAME=web2")
}
