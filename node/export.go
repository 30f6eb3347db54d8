package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"coppice/union"
)

// ExportRequest asks for the content of a device to be written elsewhere.
type ExportRequest struct {
	// Dest is the absolute path of a file that does not exist, or of a block device at least as large.
	Dest  string `json:"dest"`
	Force bool   `json:"force,omitempty"` // also where the store is nearly full
}

// ExportEvent is one line of the answer to a sealed export: first Sealed, then progress, at the end Report or Error.
type ExportEvent struct {
	Sealed *SealedFreeze `json:"sealed,omitempty"`
	Done   int64         `json:"done,omitempty"` // bytes
	Total  int64         `json:"total,omitempty"`
	Report *ExportReport `json:"report,omitempty"`
	Error  *Error        `json:"error,omitempty"`
}

// ExportReport tells what was exported.
type ExportReport struct {
	Device string `json:"device"`
	Dest   string `json:"dest"`
	union.ExportResult
	SHA256  string  `json:"sha256"` // of the whole content, in hex
	TotalMS float64 `json:"total_ms"`
}

// exportTarget is where a prepared export goes.
type exportTarget struct {
	file *union.ExportFile
	path string
}

// close closes the destination. What is not complete is removed.
func (t *exportTarget) close() error {
	if t == nil {
		return nil
	}
	return t.file.Close()
}

// PrepareExport opens the destination and makes ready to seal what the device's layer holds. It is followed by
// Export or CancelExport within [FreezeLimit].
func (d *Daemon) PrepareExport(ctx context.Context, name string, r ExportRequest) (PreparedFreeze, error) {
	var none PreparedFreeze
	if !filepath.IsAbs(r.Dest) {
		return none, fail(CodeBadRequest, "give an absolute path", "destination %q is not an absolute path", r.Dest)
	}
	if err := d.refuseDest(r.Dest); err != nil {
		return none, err
	}
	v, err := d.find(name)
	if err != nil {
		return none, err
	}
	size, err := v.servedSize()
	if err != nil {
		return none, err
	}
	file, err := union.CreateExport(r.Dest, size)
	if err != nil {
		return none, destError(err)
	}
	target := &exportTarget{file: file, path: r.Dest}
	p, err := d.prepareCut(ctx, name, passingName(), StateExporting, r.Force, target)
	if err != nil {
		return none, errors.Join(err, target.close())
	}
	return p, nil
}

func destError(err error) error {
	e := Explain(err)
	if e.Code == CodeFailed || e.Code == CodeBadLeaf {
		e.Code, e.Hint = CodeBadRequest, "give the path of a file that does not exist, in a folder that does, or of a block device that is large enough"
	}
	return e
}

// refuseDest refuses to overwrite a root, and to write to what this daemon serves.
func (d *Daemon) refuseDest(dest string) error {
	if err := d.refuseOwn(dest, filepath.Dir(dest)); err != nil {
		return err
	}
	for _, v := range d.all() {
		rec := v.record().Device
		if slices.ContainsFunc(rootPaths(rec.roots()), func(path string) bool { return sameFile(path, dest) }) {
			return fail(CodeInUse, "give another destination", "%s is the root of device %s", dest, rec.Name)
		}
	}
	return nil
}

// servedSize is the size of a device that has a layer open.
func (v *device) servedSize() (int64, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.state != StateLive {
		return 0, fail(CodeBusy, "wait for that to end; `coppice list` shows it", "device %s is %s", v.rec.Device.Name, v.state)
	}
	return v.back.layer.SizeBytes(), nil
}

// CancelExport leaves the device as it was, and nothing at a destination that is a file.
func (d *Daemon) CancelExport(name, token string) error {
	k, err := d.takeCut(name, token, StateExporting)
	if err != nil {
		return err
	}
	return d.cancelCut(k)
}

// Export seals what the device's layer holds, writes it to the destination, and makes the layer
// one again, whatever happens. It ends early with ctx and with the daemon. Events are given from the calling
// goroutine; an error of emit ends it too.
func (d *Daemon) Export(ctx context.Context, name, token string, emit func(ExportEvent) error) error {
	k, err := d.takeCut(name, token, StateExporting)
	if err != nil {
		return err
	}
	defer d.endWork(k.v)
	began := time.Now()
	sealed, err := d.seal(k)
	if err != nil {
		return errors.Join(err, k.export.close())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.quit, cancel)()
	report, err := d.exportSealed(ctx, cancel, k, sealed, emit)
	if merge := k.v.layer().Merge(); merge != nil {
		err = errors.Join(err, merge)
	}
	if err != nil {
		d.log.Warn("export failed", "device", name, "to", k.export.path, "error", oneLine(err))
		return err
	}
	report.TotalMS = milliseconds(time.Since(began))
	d.log.Info("device exported", "device", name, "to", report.Dest, "written_bytes", report.WrittenBytes, "ms", report.TotalMS)
	return emit(ExportEvent{Report: report})
}

func (d *Daemon) exportSealed(ctx context.Context, cancel func(), k *cut, sealed SealedFreeze, emit func(ExportEvent) error) (*ExportReport, error) {
	if err := emit(ExportEvent{Sealed: &sealed}); err != nil {
		return nil, errors.Join(clientGone(err), k.export.close())
	}
	var pace pace
	var gone error
	progress := func(done, total int64) {
		if gone == nil && pace.due() {
			if gone = emit(ExportEvent{Done: done, Total: total}); gone != nil {
				cancel()
			}
		}
	}
	res, err := k.write(ctx, sealed.Layer.Name, progress)
	if gone != nil {
		err = errors.Join(clientGone(gone), err)
	}
	if err != nil {
		return nil, err
	}
	return &ExportReport{Device: k.name, Dest: k.export.path, ExportResult: *res, SHA256: hex.EncodeToString(res.Digest[:])}, nil
}

func clientGone(err error) error { return fmt.Errorf("tell the client: %w", err) }

// write exports the sealed layer to the destination and closes it.
func (k *cut) write(ctx context.Context, layer string, progress func(done, total int64)) (*union.ExportResult, error) {
	k.v.mu.RLock()
	back := k.v.back
	k.v.mu.RUnlock()
	l, err := back.store.OpenSealed(layer)
	if err != nil {
		return nil, errors.Join(err, k.export.close())
	}
	defer l.CloseSealed()
	res, err := l.Export(ctx, past(back.base), k.export.file, union.ExportOptions{Progress: progress})
	return res, errors.Join(err, k.export.close())
}
