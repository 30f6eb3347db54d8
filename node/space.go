package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"coppice/union"
)

// spaceConfig is how stores deal with want of space, and with other nodes.
type spaceConfig struct {
	fullWait time.Duration
	lease    union.LeaseOptions
	log      *slog.Logger
}

func (c spaceConfig) options(runDir, path string) union.StoreOptions {
	return union.StoreOptions{RunDir: runDir, Lease: c.lease, FullWait: c.fullWait, Notify: func(e union.SpaceEvent) { c.tell(path, e) }}
}

// tell logs that a store or a layer's quota got fuller or emptier.
func (c spaceConfig) tell(path string, e union.SpaceEvent) {
	level, what, todo := slog.LevelWarn, "store is getting full", "coppice store grow "+path
	if e.Layer != "" {
		what, todo = "quota of layer is getting full", "coppice set NAME --quota SIZE"
	}
	switch e.State {
	case union.SpaceOK:
		level, what, todo = slog.LevelInfo, "space is back to normal", ""
	case union.SpaceFull:
		level = slog.LevelError
	case union.SpaceWaiting:
		level, what = slog.LevelError, "WRITES WAIT FOR SPACE"
	}
	args := []any{"store", path, "state", string(e.State), "was", string(e.Was), "used_percent", e.UsedPercent, "available_bytes", e.AvailableBytes}
	if e.Layer != "" {
		args = append(args, "layer", e.Layer)
	}
	if e.Waiting > 0 {
		args = append(args, "waiting", e.Waiting, "seconds", c.fullWait.Seconds())
	}
	if e.Refused > 0 {
		args = append(args, "refused", e.Refused)
	}
	if todo != "" {
		args = append(args, "to_do", todo)
	}
	c.log.Log(context.Background(), level, what, args...)
}

const (
	minQuota  = 4096
	quotaHint = "give at least 4K, or none"
)

// SetRequest changes a device. What is nil stays as it is.
type SetRequest struct {
	QuotaBytes *int64 `json:"quota_bytes,omitempty"` // of data of its layer; 0 for none
}

// SetReport tells what a device's layer is like after a change.
type SetReport struct {
	Device  string          `json:"device"`
	Layer   union.LayerInfo `json:"layer"`
	Warning string          `json:"warning,omitempty"`
}

// Set changes a device while it is in use.
func (d *Daemon) Set(ctx context.Context, name string, r SetRequest) (SetReport, error) {
	if err := d.begin(ctx); err != nil {
		return SetReport{}, err
	}
	defer d.ops.Done()
	if r.QuotaBytes == nil {
		return SetReport{}, fail(CodeBadRequest, "give --quota SIZE", "nothing to set")
	}
	if q := *r.QuotaBytes; q < 0 || q > 0 && q < minQuota {
		return SetReport{}, fail(CodeBadRequest, quotaHint, "a quota of %d bytes is less than a block", q)
	}
	v, err := d.find(name)
	if err != nil {
		return SetReport{}, err
	}
	layer, err := v.hold()
	if err != nil {
		return SetReport{}, err
	}
	defer v.use.RUnlock()
	info, err := layer.SetQuota(*r.QuotaBytes)
	if err != nil {
		return SetReport{}, err
	}
	rep := SetReport{Device: name, Layer: info}
	if info.QuotaBytes > 0 && info.DataBytes > info.QuotaBytes {
		rep.Warning = fmt.Sprintf("layer %s holds %d bytes already, more than its quota of %d: until it holds less, what it holds can be overwritten and discarded, "+
			"and nothing else written", info.Name, info.DataBytes, info.QuotaBytes)
	}
	d.log.Info("quota set", "device", name, "layer", info.Name, "quota_bytes", info.QuotaBytes, "data_bytes", info.DataBytes)
	return rep, nil
}

// hold returns the layer of a device that is served, with use held for reading.
func (v *device) hold() (*union.Layer, error) {
	v.use.RLock()
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.back == nil || v.back.layer == nil {
		defer v.use.RUnlock()
		return nil, fail(CodeBusy, "wait until it is live; `coppice list` shows it", "device %s is %s", v.rec.Device.Name, v.state)
	}
	return v.back.layer, nil
}

// GrowRequest asks for a store to become larger.
type GrowRequest struct {
	Store     string `json:"store"`                // absolute path
	SizeBytes int64  `json:"size_bytes,omitempty"` // 0: all that is there
}

// GrowStore makes a store larger, while devices use it. It need not be open.
func (d *Daemon) GrowStore(ctx context.Context, r GrowRequest) (union.StoreInfo, error) {
	var none union.StoreInfo
	if err := d.begin(ctx); err != nil {
		return none, err
	}
	defer d.ops.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.cfg.operationTime())
	defer cancel()
	if !filepath.IsAbs(r.Store) {
		return none, fail(CodeBadRequest, "give an absolute path", "leaf store %q is not an absolute path", r.Store)
	}
	st, err := d.stores.acquire(ctx, r.Store, 0)
	if err != nil {
		return none, err
	}
	info, err := st.Grow(r.SizeBytes)
	if err := errors.Join(err, d.stores.release(st)); err != nil {
		return none, err
	}
	d.log.Info("store grown", "store", r.Store, "size_bytes", info.SizeBytes)
	return info, nil
}

// GrowStoreOffline is GrowStore where no daemon has runDir, which need not exist.
func GrowStoreOffline(runDir string, r GrowRequest) (info union.StoreInfo, err error) {
	o := union.StoreOptions{}
	if _, err := os.Stat(runDir); !errors.Is(err, fs.ErrNotExist) {
		o.RunDir = runDir
		lock, err := takeRunLock(runDir, 0)
		if err != nil {
			return info, err
		}
		defer func() { err = errors.Join(err, lock.release()) }()
	}
	st, err := union.OpenStore(r.Store, o)
	if err != nil {
		return info, err
	}
	info, err = st.Grow(r.SizeBytes)
	return info, errors.Join(err, st.Close())
}
