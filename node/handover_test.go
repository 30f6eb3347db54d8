package node_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice/node"
	"coppice/ublk"
	"coppice/union"
)

// left is what a daemon that has handed its devices over left for the next one.
func (r *rig) left() (u node.Upgrade) {
	r.t.Helper()
	data, err := os.ReadFile(filepath.Join(r.cfg.RunDir, "upgrade.json"))
	check(r.t, err)
	check(r.t, json.Unmarshal(data, &u))
	return u
}

// A read that no server answers and a write that waits for space hold no upgrade up: the next program serves them, from a store that was closed in order.
func TestUpgradeWaitsForNoServer(t *testing.T) {
	r := newRig(t)
	server, content := newPlace(t, filepath.Join(r.dir, "images")), imageContent(1)
	_, r.root = server.build("a:1", content)
	r.cfg.FullWait = "1h"
	r.cfg.LeaveTime = time.Minute // no reason to give up
	d := r.start()
	req := r.request("web1")
	req.QuotaBytes = 64 << 10
	web := r.create(req)
	disk := r.kernel.Disk(web.ID)
	_, err := disk.WriteAt(make([]byte, 64<<10), 0)
	check(t, err)
	server.silent.Store(true)
	const readAt, writeAt = 512 << 10, 256 << 10
	got, gotErr := make([]byte, 4096), make(chan error, 1)
	go func() { _, err := disk.ReadAt(got, readAt); gotErr <- err }()
	writeErr := make(chan error, 1)
	go func() { _, err := disk.WriteAt(bytes.Repeat([]byte{7}, 4096), writeAt); writeErr <- err }()
	r.eventually("both waiting", func() bool { return server.asked.Load() > 0 && disk.InService() == 2 })
	r.seen("WRITES WAIT FOR SPACE", "layer=web1")

	r.handOver(d)
	u := r.left()
	names, took := stepsOf(u)
	const goal, busy = 500 * time.Millisecond, 20 // how much slower a machine may be
	if names != "requests driver stores" || took["requests"]+took["stores"] > goal*busy {
		t.Errorf("steps %+v", u.Steps)
	}
	t.Logf("%+v", u.Steps)
	server.silent.Store(false)
	r.start()
	check(t, <-gotErr)
	if !bytes.Equal(got, content[readAt:readAt+4096]) {
		t.Error("the read got other content")
	}
	quota := int64(1 << 20)
	_, err = r.client().Set(context.Background(), "web1", node.SetRequest{QuotaBytes: &quota})
	check(t, err)
	check(t, <-writeErr)
	now, err := r.client().Inspect(context.Background(), "web1")
	check(t, err)
	if rec := now.Leaf.Info.Recovery; rec.Records != 0 || rec.FromProcess != 0 {
		t.Errorf("the store was recovered as after a crash: %+v", rec)
	}
	if p := []byte(r.read(web.ID, writeAt, 4096)); !bytes.Equal(p, bytes.Repeat([]byte{7}, 4096)) {
		t.Error("the write was not served")
	}
}

// Where a device cannot be left in time, the log says which, what that waited for, and which requests of it were in service. The store of another is closed in
// order all the same.
func TestUpgradeTellsWhatHoldsIt(t *testing.T) {
	r := newRig(t)
	other := filepath.Join(r.dir, "other")
	_, err := union.Format(other, union.FormatOptions{SizeBytes: storeSize})
	check(t, err)
	r.cfg.FullWait, r.cfg.LeaveTime = "1h", 1500*time.Millisecond
	d := r.start()
	req := r.request("stuck")
	req.QuotaBytes = 64 << 10
	stuck := r.create(req)
	req = r.request("good")
	req.Store = other
	good := r.create(req)
	r.write(good.ID, "kept", 0)
	disk := r.kernel.Disk(stuck.ID)
	_, err = disk.WriteAt(make([]byte, 64<<10), 0)
	check(t, err)
	disk.Submit(ublk.Descriptor{Op: ublk.OpWrite, Off: 256 << 10, Len: 8192}, make([]byte, 8192), nil)
	r.seen("WRITES WAIT FOR SPACE", "layer=stuck")
	r.kernel.StallDetach(stuck.ID)

	r.handOver(d)
	if names, _ := stepsOf(r.left()); names != "requests stores" {
		t.Errorf("steps %s", names)
	}
	r.seen("WARN", "device not left yet", "device=stuck", "step=requests", "in_service=1", "queue 0 tag ", "write of 8192 bytes at 262144 since", "waits for space in the store")
	r.seen("ERROR", "DEVICE NOT LEFT IN TIME", "device=stuck", "step=requests", "in service: queue 0 tag ", "write of 8192 bytes at 262144 since")
	for _, line := range strings.Split(r.log.String(), "\n") {
		if strings.Contains(line, "NOT LEFT") && strings.Contains(line, "device=good") {
			t.Error(line)
		}
	}
	st, err := union.OpenStore(other, union.StoreOptions{RunDir: r.cfg.RunDir})
	check(t, err)
	if rec := st.Info().Recovery; rec.Records != 0 || rec.FromProcess != 0 {
		t.Errorf("the store of the other device was not closed in order: %+v", rec)
	}
	check(t, st.Close())
	check(t, r.kernel.EndStalled(stuck.ID))
}
