package powercut

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"coppice/union"
)

// DeviceRoot is a root in a file that is a block device in the guest: their pins differ in the modification time.
type DeviceRoot struct{ *union.Raw }

// Pin identifies the root as the guest did.
func (r DeviceRoot) Pin() union.Pin {
	pin := r.Raw.Pin()
	pin.ModTime = 0
	return pin
}

// Recover opens a store as after a power cut, writes what a device on each layer reads into dir/LAYER, and checks the store. What is
// wrong with the store is in problems; the error is for what kept it from being opened or read.
func Recover(ctx context.Context, store string, layers map[string]union.Base, dir string) (how union.Recovery, problems []union.Problem, err error) {
	s, err := union.OpenStore(store, union.StoreOptions{NoLease: true})
	if err != nil {
		return how, nil, err
	}
	how = s.Info().Recovery
	for name, root := range layers {
		if err = export(ctx, s, name, root, filepath.Join(dir, name)); err != nil {
			break
		}
	}
	if err := errors.Join(err, s.Close()); err != nil {
		return how, nil, err
	}
	report, err := union.Check(store, union.CheckOptions{})
	if err != nil {
		return how, nil, fmt.Errorf("check: %w", err)
	}
	return how, report.Problems, nil
}

// export seals a layer, which only a sealed one's content can be read of, and reads it.
func export(ctx context.Context, s *union.Store, name string, root union.Base, path string) error {
	l, err := s.OpenLayer(name, union.LayerOptions{Pin: root.Pin()})
	if err != nil {
		return err
	}
	defer l.Release()
	as := "cut-" + name
	freeze, err := l.PrepareFreeze(as)
	if err != nil {
		return err
	}
	if _, err := freeze.Seal(); err != nil {
		freeze.Cancel()
		return err
	}
	sealed, err := s.OpenSealed(as)
	if err != nil {
		return err
	}
	defer sealed.CloseSealed()
	w, err := union.CreateExport(path, sealed.SizeBytes())
	if err != nil {
		return err
	}
	_, err = sealed.Export(ctx, root, w, union.ExportOptions{})
	return errors.Join(err, w.Close())
}
