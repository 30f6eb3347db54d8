package node_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/node"
	"coppice/ublk"
	"coppice/ublk/ublktest"
	"coppice/union"
)

// fill writes to a device from a place on until there is no space, and returns where that is.
func (r *rig) fill(disk *ublktest.Fake, off int64) int64 {
	r.t.Helper()
	p := make([]byte, 64<<10)
	for {
		if _, err := disk.WriteAt(p, off); errors.Is(err, syscall.ENOSPC) {
			return off
		} else if err != nil {
			r.t.Fatal(err)
		}
		off += int64(len(p))
	}
}

// seen waits until the daemon's log has a line with all the words.
func (r *rig) seen(words ...string) {
	r.t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		for line := range strings.Lines(r.log.String()) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return
			}
		}
		if time.Since(began) > 2*time.Minute {
			r.t.Fatalf("no line with %q in the log:\n%s", words, r.log.String())
		}
	}
}

// A write to a full store waits, and goes on when the store is grown; the daemon says so, list and inspect show it.
func TestFullStoreWaitsAndGrows(t *testing.T) {
	r := newRig(t)
	r.cfg.FullWait = "1m"
	r.start()
	req := r.request("web1")
	req.SizeBytes = 256 * mib
	web := r.create(req)
	disk := r.kernel.Disk(web.ID)
	c, ctx := r.client(), context.Background()
	bytes := int64(0)
	written := make(chan error, 1)
	go func() {
		p := make([]byte, 64<<10)
		for ; bytes < 100*mib; bytes += int64(len(p)) {
			if _, err := disk.WriteAt(p, bytes); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	r.seen("WRITES WAIT FOR SPACE", "ERROR", "store="+r.store, "waiting=1", "seconds=60", "to_do=\"coppice store grow "+r.store)
	list, err := c.List(ctx)
	check(t, err)
	if s := list[0].Leaf.StoreSpace; s == nil || s.State != union.SpaceWaiting || s.Waiting != 1 {
		t.Errorf("listed %+v", s)
	}
	if d, err := c.Inspect(ctx, "web1"); err != nil || d.Leaf.Info.Space.State != union.SpaceWaiting || d.InFlight.Requests != 1 || d.InFlight.Oldest.Waits != "space in the store" {
		t.Errorf("%+v %+v %v", d.Leaf.Info, d.InFlight, err)
	}
	// Overwrites and flushes go on, and so do freezes where they are forced.
	_, err = disk.WriteAt(make([]byte, 4096), 0)
	check(t, err)
	check(t, disk.Flush())
	_, err = c.PrepareFreeze(ctx, "web1", node.FreezeRequest{As: "cut"})
	r.refused(err, node.CodeNoSpace, "nearly full")
	p, err := c.PrepareFreeze(ctx, "web1", node.FreezeRequest{As: "cut", Force: true})
	check(t, err)
	_, err = c.Seal(ctx, "web1", p.Token)
	check(t, err)

	_, err = c.GrowStore(ctx, node.GrowRequest{Store: r.store, SizeBytes: 48 * mib})
	r.refused(err, node.CodeBadRequest, "never shrinks")
	_, err = c.GrowStore(ctx, node.GrowRequest{Store: "leaf"})
	r.refused(err, node.CodeBadRequest, "not an absolute path")
	info, err := c.GrowStore(ctx, node.GrowRequest{Store: r.store, SizeBytes: 160 * mib})
	if err != nil || info.SizeBytes != 160*mib {
		t.Fatalf("%+v %v", info, err)
	}
	check(t, <-written)
	r.seen("space is back to normal", "INFO")
	r.seen("store grown", "size_bytes=")
	if d, err := c.Inspect(ctx, "web1"); err != nil || d.Leaf.Info.Space.Waiting != 0 || d.Leaf.Info.Space.Refused != 0 || d.Leaf.Info.Space.Waits == 0 {
		t.Errorf("%+v %v", d.Leaf.Info.Space, err)
	}
}

// A quota is set, raised and removed through the API; who waits because of it goes on.
func TestQuotaThroughAPI(t *testing.T) {
	r := newRig(t)
	r.cfg.FullWait = "1m"
	d := r.start()
	req := r.request("web1")
	req.SizeBytes, req.QuotaBytes = 64*mib, 1*mib
	web := r.create(req)
	c, ctx := r.client(), context.Background()
	disk := r.kernel.Disk(web.ID)
	for off := int64(0); off < 1*mib; off += 64 << 10 {
		_, err := disk.WriteAt(make([]byte, 64<<10), off)
		check(t, err)
	}
	written := make(chan error, 1)
	go func() {
		written <- disk.Do(ublk.Descriptor{Op: ublk.OpWrite, Off: 8 * mib, Len: 4096}, make([]byte, 4096))
	}()
	r.seen("WRITES WAIT FOR SPACE", "layer=web1")
	quota := int64(2 * mib)
	rep, err := c.Set(ctx, "web1", node.SetRequest{QuotaBytes: &quota})
	if err != nil || rep.Warning != "" || rep.Layer.QuotaBytes != quota || rep.Layer.Space == nil {
		t.Errorf("%+v %v", rep, err)
	}
	check(t, <-written)
	r.seen("space is back to normal", "layer=web1")
	quota = 1 * mib
	rep, err = c.Set(ctx, "web1", node.SetRequest{QuotaBytes: &quota})
	if err != nil || !strings.Contains(rep.Warning, "more than its quota") {
		t.Errorf("%+v %v", rep, err)
	}
	check(t, d.Stop())
	r.start()
	got, err := c.Inspect(ctx, "web1")
	if err != nil || got.Leaf.QuotaBytes != quota || got.Leaf.Quota.State != union.SpaceFull {
		t.Errorf("after a restart %+v %v", got.Leaf, err)
	}
	_, err = c.Set(ctx, "web1", node.SetRequest{})
	r.refused(err, node.CodeBadRequest, "nothing to set")
	quota = -1
	_, err = c.Set(ctx, "web1", node.SetRequest{QuotaBytes: &quota})
	r.refused(err, node.CodeBadRequest, "less than a block")
	_, err = c.Set(ctx, "web9", node.SetRequest{QuotaBytes: &quota})
	r.refused(err, node.CodeBadRequest, "less than a block")
	quota = 0
	_, err = c.Set(ctx, "web9", node.SetRequest{QuotaBytes: &quota})
	r.refused(err, node.CodeNotFound, "no such device")
	rep, err = c.Set(ctx, "web1", node.SetRequest{QuotaBytes: &quota})
	if err != nil || rep.Layer.QuotaBytes != 0 || rep.Layer.Space != nil {
		t.Errorf("%+v %v", rep, err)
	}
}

// With no time to wait, ENOSPC comes at once.
func TestFullWaitOfZero(t *testing.T) {
	r := newRig(t)
	r.cfg.FullWait = "0"
	r.start()
	req := r.request("web1")
	req.SizeBytes = 256 * mib
	web := r.create(req)
	end := r.fill(r.kernel.Disk(web.ID), 0)
	r.seen("store is getting full", "state=full", "ERROR")
	if end < 50*mib || end > 54*mib {
		t.Errorf("%d bytes could be written", end)
	}
	if strings.Contains(r.log.String(), "WAIT") {
		t.Error("somebody waited")
	}
}
