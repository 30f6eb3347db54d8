package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"coppice/union"
)

// LayerRequest names a layer of a store.
type LayerRequest struct {
	Store string `json:"store"` // absolute path
	Layer string `json:"layer"`
}

// RemoveLayer forgets a layer that nothing uses, and frees its space. The store need not be open.
func (d *Daemon) RemoveLayer(ctx context.Context, r LayerRequest) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer d.ops.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.operationTime())
	defer cancel()
	if !filepath.IsAbs(r.Store) {
		return fail(CodeBadRequest, "give an absolute path", "leaf store %q is not an absolute path", r.Store)
	}
	for _, v := range d.all() {
		if err := v.record().refuseRemoval(r); err != nil {
			return err
		}
	}
	st, err := d.stores.acquire(ctx, r.Store, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(removeLayer(st.Store, r.Layer), d.stores.release(st)); err != nil {
		return err
	}
	d.log.Info("layer removed", "store", r.Store, "layer", r.Layer)
	return nil
}

// refuseRemoval refuses to remove the layer of a device, served or not.
func (rec record) refuseRemoval(r LayerRequest) error {
	if rec.Device.Layer != r.Layer || !sameFile(rec.Device.Store, r.Store) {
		return nil
	}
	return fail(CodeInUse, "delete the device first: coppice delete "+rec.Device.Name,
		"layer %s is of device %s: %w", r.Layer, rec.Device.Name, union.ErrLayerInUse)
}

func removeLayer(st *union.Store, layer string) error {
	err := st.RemoveLayer(layer)
	if errors.Is(err, union.ErrLayerInUse) {
		e := Explain(err)
		e.Hint = "remove first what stands on it or reads it, let its detach end, or stop that (coppice detach --stop); `coppice store info STORE` tells, for a store in use `coppice inspect NAME -o json`"
		return e
	}
	return err
}

// RemoveLayerOffline is RemoveLayer where no daemon has runDir, which need not exist. Devices that a daemon left there keep
// their layers.
func RemoveLayerOffline(runDir string, r LayerRequest) error {
	refuse := func() error { return refuseRecorded(runDir, r) }
	return withStoreOffline(runDir, r.Store, refuse, func(st *union.Store) error { return removeLayer(st, r.Layer) })
}

// refuseRecorded refuses to remove the layer of a device that a daemon left. What it left before a reboot is gone.
func refuseRecorded(runDir string, r LayerRequest) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	dir := filepath.Join(runDir, devicesName)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	all, err := records{dir}.load()
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.err != nil {
			return fmt.Errorf("find out who uses the layer: %w", l.err)
		}
		if l.BootID != boot {
			continue
		}
		if err := l.refuseRemoval(r); err != nil {
			return err
		}
	}
	return nil
}
