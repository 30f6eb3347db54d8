package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"coppice/node"
	"coppice/union"
)

// reading calls do with what a device holds.
func (r *rig) reading(name string, do func(node.LayerContent) error) error {
	r.t.Helper()
	ctx := context.Background()
	p, err := r.client().PrepareContent(ctx, name, node.ReadRequest{})
	if err != nil {
		return err
	}
	return r.client().WithDeviceContent(ctx, name, p.Token, func(c node.LayerContent, o node.OpenedCut) error {
		if o.SealMS <= 0 || o.SizeBytes != c.Size() {
			r.t.Errorf("opened %+v", o)
		}
		return do(c)
	})
}

// prints are those of a content by block.
func prints(t *testing.T, c node.LayerContent) map[uint64]uint64 {
	t.Helper()
	all := map[uint64]uint64{}
	for x, err := range c.Prints() {
		check(t, err)
		all[x.Block] = x.Print
	}
	return all
}

// The content of a live device is what it held when it was sealed; only blocks that were written since have another print, and nothing is left afterwards.
func TestDeviceContent(t *testing.T) {
	r := newRig(t)
	r.start()
	q := r.request("web1")
	q.SizeBytes = 64 * mib
	web := r.create(q)
	const blocks = 5000 // more than a part of the answer has
	for i := range int64(blocks) {
		r.write(web.ID, "x", i*4096)
	}
	before := map[uint64]uint64{}
	for round := range 3 {
		then := fmt.Sprint("then", round)
		r.write(web.ID, then, 8192)
		check(t, r.reading("web1", func(c node.LayerContent) error {
			r.write(web.ID, "now!", 8192)
			p := make([]byte, 8192)
			if _, err := c.ReadAt(p, 8192); err != nil || string(p[:5]) != then || string(p[4096:4097]) != "x" {
				t.Errorf("it had %q, %v", p[:5], err)
			}
			if n, err := c.ReadAt(p, c.Size()-4096); n != 4096 || !errors.Is(err, io.EOF) {
				t.Errorf("the end: %d bytes, %v", n, err)
			}
			many := []node.ContentRange{{0, 4096}, {8192, 4096}, {20480, 8192}, {c.Size() - 4096, 4096}, {0, 5 << 20}} // the last one is more than is read with others
			parts, alone := make([]byte, 4096*5+5<<20), make([]byte, 5<<20)
			check(t, c.ReadRanges(parts, many))
			for _, x := range many {
				if _, err := c.ReadAt(alone[:x.Len], x.Off); err != nil || !bytes.Equal(alone[:x.Len], parts[:x.Len]) {
					t.Errorf("%+v is not what is read alone: %v", x, err)
				}
				parts = parts[x.Len:]
			}
			for _, bad := range []node.ContentRange{{-4096, 4096}, {0, 0}, {c.Size(), 4096}} {
				if err := c.ReadRanges(make([]byte, bad.Len), []node.ContentRange{bad}); node.CodeOf(err) != node.CodeBadRequest {
					t.Errorf("%+v: %v", bad, err)
				}
			}
			_, err := r.client().Delete(context.Background(), "web1")
			r.refused(err, node.CodeBusy, "is reading")
			_, err = r.client().PrepareContent(context.Background(), "web1", node.ReadRequest{})
			r.refused(err, node.CodeBusy, "is reading")
			var data int64
			for x, err := range c.Changed() {
				check(t, err)
				data += x.Len
			}
			now := prints(t, c)
			if len(now) != blocks || data != blocks*4096 {
				t.Errorf("%d prints, %d bytes changed", len(now), data)
			}
			for block, p := range now {
				if same := before[block] == p; round > 0 && same == (block == 2) {
					t.Errorf("round %d: block %d has print %#x, had %#x", round, block, p, before[block])
				}
			}
			before = now
			return nil
		}))
		// At once, not a little later.
		if s := state(t, r, "web1").State; s != node.StateLive {
			t.Errorf("the device is %s", s)
		}
		r.noTrace("web1", filepath.Join(r.dir, "none"), 1)
	}
	if got := r.read(web.ID, 8192, 4); got != "now!" {
		t.Errorf("the device has %q", got)
	}
}

// Whatever ends a reading early, the device goes on as it was.
func TestDeviceContentEndsEarly(t *testing.T) {
	r := newRig(t)
	d := r.start()
	web := r.create(r.request("web1"))
	r.write(web.ID, "kept", 0)
	ctx := context.Background()
	broken := errors.New("broken")
	if err := r.reading("web1", func(node.LayerContent) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	r.noTrace("web1", filepath.Join(r.dir, "none"), 1)

	p, err := r.client().PrepareContent(ctx, "web1", node.ReadRequest{})
	check(t, err)
	_, err = r.client().Seal(ctx, "web1", p.Token)
	r.refused(err, node.CodeTimeout, "no freeze")
	check(t, r.client().CancelContent(ctx, "web1", p.Token))
	r.refused(r.client().CancelContent(ctx, "web1", p.Token), node.CodeTimeout, "no freeze")

	var pin union.Pin
	err = r.reading("web1", func(c node.LayerContent) error {
		pin = c.Pin()
		d.Signal()
		<-d.Ended()
		_, err := c.ReadAt(make([]byte, 4096), 0)
		if err == nil {
			t.Error("read after the end of the daemon")
		}
		return err
	})
	if err == nil || pin == (union.Pin{}) {
		t.Errorf("%v, pin %+v", err, pin)
	}
	check(t, d.Stop())
	r.start()
	r.noTrace("web1", filepath.Join(r.dir, "none"), 1)
	if got := r.read(web.ID, 0, 4); got != "kept" {
		t.Errorf("the device has %q", got)
	}
}
