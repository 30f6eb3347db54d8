package node_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coppice/node"
	"coppice/union"
)

// export writes a device to path; during is called with each event.
func (r *rig) export(ctx context.Context, name, path string, during func(node.ExportEvent)) (node.ExportReport, error) {
	r.t.Helper()
	c := r.client()
	p, err := c.PrepareExport(ctx, name, node.ExportRequest{Dest: path})
	if err != nil {
		return node.ExportReport{}, err
	}
	return c.Export(ctx, name, p.Token, during)
}

func ignore(node.ExportEvent) {}

// large makes a device whose export takes seconds.
func (r *rig) large(name string) node.Device {
	q := r.request(name)
	q.SizeBytes = 32 << 30
	return r.create(q)
}

// noTrace asserts that an export left no layer and, where it failed, nothing at its destination.
func (r *rig) noTrace(device, dest string, layers int) {
	r.t.Helper()
	r.log.waitFor(r.t, func() bool { return state(r.t, r, device).State == node.StateLive })
	for name, l := range r.openLayers(device) {
		if strings.HasPrefix(name, "export-") || l.Parent != "" {
			r.t.Errorf("layer %s stands on %q", name, l.Parent)
		}
	}
	if n := len(r.openLayers(device)); n != layers {
		r.t.Errorf("%d layers", n)
	}
	left, err := filepath.Glob(dest + "*")
	if len(left) > 0 || err != nil {
		r.t.Errorf("left: %q %v", left, err)
	}
}

// Many exports of a live device: each is what the device held, and depth and space stay as they were.
func TestExports(t *testing.T) {
	r := newRig(t)
	r.start()
	web := r.create(r.request("web1"))
	dest := filepath.Join(r.dir, "out")
	var free int64
	for i := range 20 {
		text := fmt.Sprint("state ", i, ".")
		r.write(web.ID, text, 8192)
		rep, err := r.export(context.Background(), "web1", dest, func(e node.ExportEvent) {
			if e.Sealed != nil {
				r.write(web.ID, "after the seal", 8192)
			}
		})
		check(t, err)
		data, err := os.ReadFile(dest)
		check(t, err)
		sum := sha256.Sum256(data)
		if got := string(data[8192 : 8192+len(text)]); got != text || rep.SHA256 != hex.EncodeToString(sum[:]) || rep.SizeBytes != rootSize {
			t.Fatalf("export %d has %q, report %+v", i, got, rep)
		}
		check(t, os.Remove(dest))
		r.noTrace("web1", dest, 1)
		now := state(t, r, "web1").Leaf.Info.FreeBytes
		if i == 1 {
			free = now
		}
		if i > 1 && now < free-64<<10 {
			t.Errorf("export %d: %d bytes free, had %d", i, now, free)
		}
	}
	if got := r.read(web.ID, 8192, 14); got != "after the seal" {
		t.Errorf("the device has %q", got)
	}
}

func TestExportCancelledByClient(t *testing.T) {
	r := newRig(t)
	r.start()
	web := r.large("web1")
	r.write(web.ID, "kept", 0)
	dest := filepath.Join(r.dir, "out")
	ctx, cancel := context.WithCancel(context.Background())
	_, err := r.export(ctx, "web1", dest, func(e node.ExportEvent) {
		if e.Done > 0 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled export: %v", err)
	}
	r.noTrace("web1", dest, 1)
	if got := r.read(web.ID, 0, 4); got != "kept" {
		t.Errorf("the device has %q", got)
	}
	p, err := r.client().PrepareExport(context.Background(), "web1", node.ExportRequest{Dest: dest})
	check(t, err)
	check(t, r.client().CancelExport(context.Background(), "web1", p.Token))
	r.noTrace("web1", dest, 1)
}

// A daemon that is told to end ends its exports; while one runs its device is kept.
func TestExportEndsWithDaemon(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.large("web1")
	dest := filepath.Join(r.dir, "out")
	signalled := false
	_, err := r.export(context.Background(), "web1", dest, func(e node.ExportEvent) {
		if e.Done == 0 || signalled {
			return
		}
		signalled = true
		_, err := r.client().Delete(context.Background(), "web1")
		r.refused(err, node.CodeBusy, "is exporting")
		d.Signal()
	})
	if err == nil || node.CodeOf(err) != node.CodeStopping {
		t.Errorf("%s: %v", node.CodeOf(err), err)
	}
	check(t, d.Stop())
	r.start()
	r.noTrace("web1", dest, 1)
}

// What a daemon that died in the middle of an export left is merged by the next.
func TestLeftoverOfExportIsMerged(t *testing.T) {
	r := newRig(t)
	d := r.start()
	web := r.create(r.request("web1"))
	r.write(web.ID, "kept", 0)
	check(t, d.Stop())
	raw, err := union.OpenRaw(r.root)
	check(t, err)
	st, err := union.OpenStore(r.store, union.StoreOptions{RunDir: r.cfg.RunDir})
	check(t, err)
	l, err := st.OpenLayer("web1", union.LayerOptions{Pin: raw.Pin()})
	check(t, err)
	f, err := l.PrepareFreeze("export-20260101T000000-00000000")
	check(t, err)
	_, err = f.Seal()
	check(t, err)
	l.Release()
	check(t, errors.Join(st.Close(), raw.Close()))
	r.start()
	r.noTrace("web1", filepath.Join(r.dir, "none"), 1)
	if got := r.read(web.ID, 0, 4); got != "kept" {
		t.Errorf("the device has %q", got)
	}
}

func TestExportRefusals(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create(r.request("web1"))
	exists := r.file("exists", 100)
	for dest, say := range map[string]string{
		"relative": "not an absolute path", r.root: "is the root of device web1", exists: "it exists",
		r.dir: "it exists", r.dir + "/no/such": "no such file", "/dev/null": "it exists",
	} {
		_, err := r.client().PrepareExport(context.Background(), "web1", node.ExportRequest{Dest: dest})
		if err == nil || !strings.Contains(err.Error(), say) || node.HintOf(err) == "" {
			t.Errorf("%s: %v", dest, err)
		}
	}
	_, err := r.client().PrepareExport(context.Background(), "web2", node.ExportRequest{Dest: r.dir + "/out"})
	r.refused(err, node.CodeNotFound, "no such device")
	_, err = r.client().Export(context.Background(), "web1", "guessed", ignore)
	r.refused(err, node.CodeTimeout, "no freeze")
	r.noTrace("web1", r.dir+"/out", 1)
}

// The API reports extents in parts; a device with many has all of them, in order.
func TestChanged(t *testing.T) {
	r := newRig(t)
	r.start()
	q := r.request("web1")
	q.SizeBytes = 64 * mib
	web := r.create(q)
	const extents = 1500
	for i := range int64(extents) {
		r.write(web.ID, "x", i*8192)
	}
	r.freeze("web1", "cut")
	var got []union.ChangedExtent
	var total *node.ChangedTotal
	check(t, r.client().Changed(context.Background(), "web1", func(p node.ChangedPart) error {
		got, total = append(got, p.Extents...), p.Total
		return nil
	}))
	if len(got) != extents || total == nil || total.Extents != extents || total.DataBytes != extents*4096 || total.ZeroBytes != 0 {
		t.Fatalf("%d extents, %+v", len(got), total)
	}
	for i, x := range got {
		if x.Off != int64(i)*8192 || x.Len != 4096 || x.Zero {
			t.Fatalf("extent %d is %+v", i, x)
		}
	}
}

// Two exports to one file do not mix.
func TestExportsToOneDestination(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create(r.request("web1"))
	r.create(r.request("web2"))
	dest := filepath.Join(r.dir, "out")
	p, err := r.client().PrepareExport(context.Background(), "web1", node.ExportRequest{Dest: dest})
	check(t, err)
	_, err = r.client().PrepareExport(context.Background(), "web2", node.ExportRequest{Dest: dest})
	r.refused(err, node.CodeInUse, "in use")
	_, err = r.client().Export(context.Background(), "web1", p.Token, ignore)
	check(t, err)
	check(t, os.Remove(dest))
	r.noTrace("web1", dest, 2)
}
