package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"coppice/union"
)

// MoveRequest asks for a layer to be moved to another store.
type MoveRequest struct {
	Store   string `json:"store"` // absolute path
	Layer   string `json:"layer"`
	ToStore string `json:"to_store"` // absolute path
	ToLayer string `json:"to_layer"` // "" for the same name
	Copy    bool   `json:"copy"`     // leave the layer where it is, too
}

// MoveEvent is one line of the answer: progress, or in the end Report.
type MoveEvent struct {
	Done   int64       `json:"done,omitempty"` // bytes of the device; copied first, then compared
	Total  int64       `json:"total,omitempty"`
	Report *MoveReport `json:"report,omitempty"`
}

// MoveReport tells what was moved.
type MoveReport struct {
	Store string          `json:"store"`
	Layer union.LayerInfo `json:"layer"`
}

func (r MoveRequest) check() (MoveRequest, error) {
	setDefault(&r.ToLayer, r.Layer)
	for _, path := range []string{r.Store, r.ToStore} {
		if !filepath.IsAbs(path) {
			return r, fail(CodeBadRequest, "give an absolute path", "leaf store %q is not an absolute path", path)
		}
	}
	for _, name := range []string{r.Layer, r.ToLayer} {
		if err := union.ValidLayerName(name); err != nil {
			return r, fail(CodeBadRequest, "`coppice store info STORE` lists the layers", "%w", err)
		}
	}
	if sameFile(r.Store, r.ToStore) {
		return r, fail(CodeBadRequest, "give another store", "%s and %s are the same store", r.Store, r.ToStore)
	}
	return r, nil
}

// options are those of the copy; progress is told now and then.
func (r MoveRequest) options(progress func(done, total int64)) union.CopyOptions {
	pace := newPace()
	return union.CopyOptions{Move: !r.Copy, Progress: func(done, total int64) {
		if pace.due() {
			progress(done, total)
		}
	}}
}

// MoveLayer copies a layer that no device uses to another store, verifies the copy, and then removes the layer. To end ctx, and an error of
// emit, end it, and nothing of the copy is left.
func (d *Daemon) MoveLayer(ctx context.Context, r MoveRequest, emit func(MoveEvent) error) error {
	r, err := r.check()
	if err != nil {
		return err
	}
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer d.ops.Done()
	for _, v := range d.all() {
		if err := v.record().refuseRemoval(LayerRequest{Store: r.Store, Layer: r.Layer}); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.quit, cancel)()
	from, err := d.stores.acquire(ctx, r.Store, 0)
	if err != nil {
		return err
	}
	to, err := d.stores.acquire(ctx, r.ToStore, 0)
	if err != nil {
		return errors.Join(err, d.stores.release(from))
	}
	info, err := from.CopyLayer(ctx, r.Layer, to.Store, r.ToLayer, r.options(func(done, total int64) {
		if emit(MoveEvent{Done: done, Total: total}) != nil {
			cancel()
		}
	}))
	if err = errors.Join(moveError(err), d.stores.release(to), d.stores.release(from)); err != nil {
		return err
	}
	d.log.Info("layer copied to another store", "store", r.Store, "layer", r.Layer, "to", r.ToStore, "as", r.ToLayer, "moved", !r.Copy)
	return emit(MoveEvent{Report: &MoveReport{Store: r.ToStore, Layer: *info}})
}

// moveError tells what to do where a layer cannot be moved.
func moveError(err error) error {
	if !errors.Is(err, union.ErrLayerInUse) {
		return err
	}
	e := Explain(err)
	e.Hint = "delete the device that has it, remove first what stands on it, or leave it where it is too: --copy"
	return e
}

// MoveLayerOffline is MoveLayer where no daemon has runDir.
func MoveLayerOffline(ctx context.Context, runDir string, r MoveRequest, progress func(done, total int64)) (*MoveReport, error) {
	r, err := r.check()
	if err != nil {
		return nil, err
	}
	report := &MoveReport{Store: r.ToStore}
	refuse := func() error { return refuseRecorded(runDir, LayerRequest{Store: r.Store, Layer: r.Layer}) }
	err = withStoresOffline(runDir, []string{r.Store, r.ToStore}, refuse, func(st []*union.Store) error {
		info, err := st[0].CopyLayer(ctx, r.Layer, st[1], r.ToLayer, r.options(progress))
		if err != nil {
			return moveError(err)
		}
		report.Layer = *info
		return nil
	})
	return report, err
}

// withStoreOffline is withStoresOffline with one store.
func withStoreOffline(runDir, path string, check func() error, do func(*union.Store) error) error {
	return withStoresOffline(runDir, []string{path}, check, func(st []*union.Store) error { return do(st[0]) })
}

// withStoresOffline opens stores where no daemon has runDir, which need not exist, and closes them after do. Where runDir exists, check is
// called first, if not nil.
func withStoresOffline(runDir string, paths []string, check func() error, do func([]*union.Store) error) (err error) {
	o := union.StoreOptions{}
	if _, err := os.Stat(runDir); !errors.Is(err, fs.ErrNotExist) {
		o.RunDir = runDir
		lock, err := takeRunLock(runDir, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, lock.release()) }()
		if check != nil {
			if err := check(); err != nil {
				return err
			}
		}
	}
	var open []*union.Store
	defer func() {
		for _, st := range open {
			err = errors.Join(err, st.Close())
		}
	}()
	for _, path := range paths {
		st, err := union.OpenStore(path, o)
		if err != nil {
			return err
		}
		open = append(open, st)
	}
	return do(open)
}
