package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"coppice/union"
)

// backing is all that lies below one kernel device: the merged device, its root and its share of
// the leaf store.
type backing struct {
	stores *stores
	store  *sharedStore
	base   union.Base
	layer  *union.Layer
	device *union.Device

	newLayer string // name of the layer, where it was made for this device just now
}

type backingOptions struct {
	roots    *roots
	root     rootWanted
	create   bool          // make the layer where there is none
	patience time.Duration // with a store that another process has open
	verify   bool          // CRC-32C of each leaf block that is read
}

// openBacking opens what r asks for. On failure nothing stays open and no new layer is left.
func openBacking(ctx context.Context, s *stores, r CreateRequest, o backingOptions) (_ *backing, err error) {
	b := &backing{stores: s}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.undo())
		}
	}()
	var rootErr error
	if o.create { // what is wrong with the root is said first
		if rootErr = b.openRoot(r, o); rootErr != nil && r.Root != "" {
			return nil, rootErr
		}
	}
	if b.store, err = s.acquire(ctx, r.Store, o.patience); err != nil {
		return nil, leafError(r, err)
	}
	if !o.create {
		if info, err := b.store.LayerInfo(r.Layer); err == nil {
			o.root.pin = info.Pin
		}
		rootErr = b.openRoot(r, o)
	}
	if rootErr, err = b.needRoot(r, o, rootErr); err != nil {
		return nil, err
	}
	if rootErr != nil {
		return nil, rootErr
	}
	if err := b.openLayer(r, o); err != nil {
		return nil, leafError(r, err)
	}
	b.device, err = union.NewDevice(b.layer, b.base, union.DeviceOptions{ReadOnly: r.ReadOnly, NoVerify: !o.verify, RootWait: o.roots.cfg.stall()})
	if err != nil {
		return nil, fmt.Errorf("merge %s with %s: %w", r.Layer, r.rootNames(), err)
	}
	if size := b.device.SizeBytes(); size%int64(r.BlockSize) != 0 {
		return nil, fail(CodeBadRequest, "use --block-size 512",
			"layer %s is of a device of %d bytes, which is not a multiple of the block size of %d", r.Layer, size, r.BlockSize)
	}
	return b, nil
}

func (b *backing) openRoot(r CreateRequest, o backingOptions) error {
	if len(o.root.refs) == 0 {
		return fail(CodeBadRoot, "give it: --root REF", "layer %s needs a root", r.Layer)
	}
	base, err := o.roots.open(o.root)
	if err != nil {
		return err
	}
	b.base = base
	if r.SizeBytes != 0 && r.SizeBytes < base.Size() {
		return fail(CodeBadRequest, "leave --size away for the size of the root, or give more",
			"a size of %d bytes would cut off the root %s, which has %d", r.SizeBytes, r.rootNames(), base.Size())
	}
	return nil
}

// needRoot leaves the root out, whether or not it could be opened, where the layer, or the one that it is made from, is complete.
func (b *backing) needRoot(r CreateRequest, o backingOptions, rootErr error) (error, error) {
	info, err := b.store.LayerInfo(r.Layer)
	if errors.Is(err, union.ErrNoLayer) && o.create && r.From != "" {
		info, err = b.store.LayerInfo(r.From)
	}
	if err != nil || info.Pin.Kind != union.PinNone {
		return rootErr, nil // what is wrong with the layer is found when it is opened
	}
	if o.create && r.Root != "" {
		return nil, fail(CodeOtherRoot, "leave --root away", "layer %s is complete: it stands on no root", info.Name)
	}
	if b.base != nil {
		err = b.base.Close()
		b.base = nil
	} else {
		err = nil
	}
	return nil, err
}

// openLayer opens the layer, or makes it, by default as large as the root in whole blocks or as the layer that it
// stands on. What it stands on matters only to a creation: later freezes change it.
func (b *backing) openLayer(r CreateRequest, how backingOptions) error {
	create := how.create
	o := union.LayerOptions{SizeBytes: r.SizeBytes}
	if b.base != nil {
		o.Pin = b.base.Pin()
	}
	if create {
		o.From = r.From
	}
	layer, err := b.store.OpenLayer(r.Layer, o)
	if create && errors.Is(err, union.ErrNoLayer) {
		if r.From == "" { // else it stands on what was taken before
			if err := how.roots.admit(b.base, how.root.refs); err != nil {
				return err
			}
		}
		o.Create = true
		if o.SizeBytes == 0 && o.From == "" && b.base != nil {
			o.SizeBytes = roundUp(b.base.Size(), int64(r.BlockSize))
		}
		o.QuotaBytes = r.QuotaBytes
		if layer, err = b.store.OpenLayer(r.Layer, o); err == nil {
			b.newLayer = r.Layer
		}
	}
	b.layer = layer
	if err == nil && create && b.newLayer == "" && r.QuotaBytes != 0 {
		return fail(CodeBadRequest, "leave --quota away, and give it afterwards: coppice set "+r.Name+" --quota SIZE",
			"layer %s exists already, and keeps the quota that it has", r.Layer)
	}
	return err
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// image returns the root where it is an image, or nil; b may be nil.
func (b *backing) image() *imageRoot {
	if b == nil {
		return nil
	}
	root, _ := b.base.(*imageRoot)
	return root
}

// close closes all of it and keeps the layer.
func (b *backing) close() error {
	var errs []error
	if b.layer != nil {
		b.layer.Release()
	}
	if b.base != nil {
		errs = append(errs, b.base.Close())
	}
	if b.store != nil {
		errs = append(errs, b.stores.release(b.store))
	}
	*b = backing{stores: b.stores}
	return errors.Join(errs...)
}

// undo closes all of it and removes the layer that was made for it.
func (b *backing) undo() error {
	if b.newLayer == "" {
		return b.close()
	}
	name, store := b.newLayer, b.store
	b.store = nil // outlives the layer
	err := b.close()
	if rm := store.RemoveLayer(name); rm != nil {
		err = errors.Join(err, fmt.Errorf("remove the new layer %s: %w", name, rm))
	}
	return errors.Join(err, b.stores.release(store))
}

// leafError explains what only the request can tell.
func leafError(r CreateRequest, err error) error {
	e := Explain(err)
	if e.Code == CodeFailed {
		e.Code = CodeBadLeaf
	}
	switch {
	case e.Code == CodeNotFormatted:
		e.Hint = "format it first: coppice store format " + r.Store
	case errors.Is(err, union.ErrOtherRoot) && r.From != "":
		e.Hint = "give the root that layer " + r.From + " stands on"
	case errors.Is(err, union.ErrOtherRoot):
		e.Hint = "give the root that the layer was made on, or choose another layer: --leaf " + r.Store + ":LAYER"
	case e.Hint == "":
		e.Hint = "--leaf takes the path of a leaf store, made by coppice store format"
	}
	return e
}
