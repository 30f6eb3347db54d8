package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"coppice/union"
)

// DetachRequest asks for a layer to be made complete: that of a device, or one of a store.
type DetachRequest struct {
	Device string `json:"device"` // or Store and Layer
	Store  string `json:"store"`  // absolute path
	Layer  string `json:"layer"`
	// Root is the absolute path of the root that the layer stands on. It may be left out for the layer of a device, and
	// where a device has that root.
	Root           string `json:"root"`
	BytesPerSecond int64  `json:"bytes_per_second"` // 0: what the devices leave
	Background     bool   `json:"background"`       // answer as soon as it goes on by itself
	Stop           bool   `json:"stop"`             // give up, and free what was copied
}

// DetachStatus tells how far a layer is detached.
type DetachStatus struct {
	Store string `json:"store"`
	Layer string `json:"layer"`
	union.DetachProgress
	Complete bool   `json:"complete"`
	Waiting  string `json:"waiting,omitempty"` // for what: the root cannot be read
}

// detaches has the layers that are being detached. They go on whatever becomes of the devices and of who asked.
type detaches struct {
	mu   sync.Mutex
	jobs map[detachKey]*detachJob
}

type detachKey struct {
	store storeKey
	layer string
}

// detachJob is one layer being detached.
type detachJob struct {
	request DetachRequest // resolved: Store, Layer, and Root where there is one
	store   *sharedStore
	base    union.Base
	ctx     context.Context
	cancel  context.CancelFunc
	ended   chan struct{}
	err     error // why it ended, once ended is closed

	mu   sync.Mutex // guards what follows
	last DetachStatus
	gone bool // the store is released
}

func (j *detachJob) setWaiting(why string) {
	j.mu.Lock()
	j.last.Waiting = why
	j.mu.Unlock()
}

func (j *detachJob) status() DetachStatus {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.gone {
		return j.last
	}
	j.last.Store, j.last.Layer = j.request.Store, j.request.Layer
	if info, err := j.store.LayerInfo(j.request.Layer); err == nil {
		j.last.TotalBytes = info.SizeBytes
		if info.Detach != nil {
			j.last.DetachProgress, j.last.Waiting = *info.Detach, ""
		}
	}
	return j.last
}

// release gives back what the job has open.
func (j *detachJob) release(s *stores) error {
	j.cancel()
	j.status()
	j.mu.Lock()
	j.gone = true
	j.mu.Unlock()
	var err error
	if j.base != nil {
		err = j.base.Close()
	}
	return errors.Join(err, s.release(j.store))
}

// Detach starts to detach a layer, or takes part in what goes on already, and tells the progress until it is complete, or ctx ends. That
// does not end the work, nor does an error of emit.
func (d *Daemon) Detach(ctx context.Context, r DetachRequest, emit func(DetachStatus) error) error {
	r, err := d.resolveDetach(r)
	if err != nil {
		return err
	}
	if r.Stop {
		return d.stopDetach(ctx, r, emit)
	}
	j, err := d.startDetach(ctx, r, 0)
	if err != nil {
		return err
	}
	if r.Background {
		return emit(j.status())
	}
	const every = 200 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-j.ended:
			if j.err != nil {
				return j.err
			}
			return emit(DetachStatus{Store: r.Store, Layer: r.Layer, Complete: true})
		case <-tick.C:
			if err := emit(j.status()); err != nil {
				return clientGone(err)
			}
		}
	}
}

// resolveDetach finds out which layer of which store is meant.
func (d *Daemon) resolveDetach(r DetachRequest) (DetachRequest, error) {
	if r.Device != "" {
		v, err := d.find(r.Device)
		if err != nil {
			return r, err
		}
		rec := v.record().Device
		r.Store, r.Layer = rec.Store, rec.Layer
		setDefault(&r.Root, rec.Root)
	}
	switch {
	case !filepath.IsAbs(r.Store):
		return r, fail(CodeBadRequest, "give an absolute path", "leaf store %q is not an absolute path", r.Store)
	case r.BytesPerSecond < 0:
		return r, fail(CodeBadRequest, "leave it out for what the devices leave", "%d bytes per second are negative", r.BytesPerSecond)
	}
	if r.Root != "" {
		if _, err := checkRoot(r.Root); err != nil {
			return r, err
		}
	}
	if err := union.ValidLayerName(r.Layer); err != nil {
		return r, fail(CodeBadRequest, "`coppice store info STORE` lists the layers", "%w", err)
	}
	return r, nil
}

// startDetach returns the job for the layer, which it starts unless it runs.
func (d *Daemon) startDetach(ctx context.Context, r DetachRequest, patience time.Duration) (*detachJob, error) {
	if err := d.begin(ctx); err != nil {
		return nil, err
	}
	j, started, err := d.enterDetach(ctx, r, patience)
	if !started {
		d.ops.Done()
		return j, err
	}
	stop := context.AfterFunc(d.quit, j.cancel)
	go func() {
		defer d.ops.Done()
		defer stop()
		d.runDetach(j.ctx, j)
	}()
	return j, nil
}

// enterDetach opens what the job needs, and puts it into the table.
func (d *Daemon) enterDetach(ctx context.Context, r DetachRequest, patience time.Duration) (_ *detachJob, started bool, err error) {
	st, err := d.stores.acquire(ctx, r.Store, patience)
	if err != nil {
		return nil, false, err
	}
	key := detachKey{st.key, r.Layer}
	if j := d.detaches.find(key); j != nil {
		return j, false, d.stores.release(st)
	}
	// Without the lock: a root may take long to open.
	j := &detachJob{request: r, store: st, ended: make(chan struct{})}
	j.ctx, j.cancel = context.WithCancel(context.Background())
	if j.base, err = d.detachBase(&j.request, st); err != nil {
		return nil, false, errors.Join(err, j.release(d.stores))
	}
	if other := d.detaches.enter(key, j); other != j {
		return other, false, j.release(d.stores)
	}
	if err := d.saveDetach(j); err != nil {
		d.detaches.leave(key)
		err = errors.Join(err, j.release(d.stores))
		j.err = err
		close(j.ended) // for those who found it meanwhile
		return nil, false, err
	}
	return j, true, nil
}

func (t *detaches) find(key detachKey) *detachJob {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.jobs[key]
}

// enter returns the job that has the key from now on: j, unless there is one.
func (t *detaches) enter(key detachKey, j *detachJob) *detachJob {
	t.mu.Lock()
	defer t.mu.Unlock()
	if other := t.jobs[key]; other != nil {
		return other
	}
	t.jobs[key] = j
	return j
}

func (t *detaches) leave(key detachKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.jobs, key)
}

// detachBase opens the root that the layer stands on, if any: the one given, or that of a device.
func (d *Daemon) detachBase(r *DetachRequest, st *sharedStore) (union.Base, error) {
	info, err := st.LayerInfo(r.Layer)
	if err != nil {
		return nil, err
	}
	if info.Pin.Kind == union.PinNone {
		return nil, nil
	}
	setDefault(&r.Root, d.rootWith(info.Pin))
	if begun, err := readDetach(d.detachPath(st, r.Layer)); err == nil {
		setDefault(&r.Root, begun.Root)
	}
	if r.Root == "" {
		return nil, fail(CodeBadRequest, "give it: --root REF", "layer %s stands on a root that no device has", r.Layer)
	}
	base, err := d.roots.openFor(r.Root, info.Pin)
	if err != nil {
		return nil, err
	}
	if diff := info.Pin.Difference(base.Pin()); diff != "" {
		err := fail(CodeOtherRoot, "give the root that the layer was made on", "layer %s: %w: this one has %s", r.Layer, union.ErrOtherRoot, diff)
		return nil, errors.Join(err, base.Close())
	}
	return base, nil
}

// rootWith returns the path of a root that a device has open, or "".
func (d *Daemon) rootWith(pin union.Pin) string {
	for _, v := range d.all() {
		v.mu.RLock()
		back, path := v.back, v.rec.Device.Root
		found := back != nil && back.base != nil && back.base.Pin() == pin
		v.mu.RUnlock()
		if found && path != "" {
			return path
		}
	}
	return ""
}

// runDetach works until the layer is complete or cannot become so. While the root cannot be read, it tries again.
func (d *Daemon) runDetach(ctx context.Context, j *detachJob) {
	r := j.request
	log := d.log.With("store", r.Store, "layer", r.Layer)
	log.Info("detaching layer")
	err := j.work(ctx, func(err error) { log.Warn("detach waits for the root", "error", oneLine(err)) })
	if err == nil {
		d.forgetRoots(j.store)
	}
	stopped := ctx.Err() != nil
	if !stopped || err == nil { // or the next daemon goes on
		err = errors.Join(err, d.removeDetach(j))
	}
	d.detaches.leave(detachKey{j.store.key, r.Layer})
	err = errors.Join(err, j.release(d.stores))
	switch {
	case err == nil:
		log.Info("layer detached")
	case stopped:
		log.Info("detach stops for now")
	default:
		log.Error("detach failed", "error", oneLine(err))
	}
	j.err = err
	close(j.ended)
}

// rootRetry is how long a detach waits before it reads a root again that could not be read.
const rootRetry = 5 * time.Second

func (j *detachJob) work(ctx context.Context, waits func(error)) error {
	for {
		err := j.store.Detach(ctx, j.request.Layer, j.base, union.DetachOptions{BytesPerSecond: j.request.BytesPerSecond})
		if !errors.Is(err, union.ErrRoot) {
			return err
		}
		j.setWaiting(oneLine(err))
		waits(err)
		pause(ctx, rootRetry)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (d *Daemon) stopDetach(ctx context.Context, r DetachRequest, emit func(DetachStatus) error) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer d.ops.Done()
	st, err := d.stores.acquire(ctx, r.Store, 0)
	if err != nil {
		return err
	}
	if j := d.detaches.find(detachKey{st.key, r.Layer}); j != nil {
		j.cancel()
		<-j.ended
		err = d.removeDetach(j)
	}
	if err = errors.Join(err, st.StopDetach(r.Layer), d.stores.release(st)); err != nil {
		return err
	}
	d.forgetRoots(st)
	return emit(DetachStatus{Store: r.Store, Layer: r.Layer})
}

// detachOf returns the state of the layer of a device, where it is being detached.
func (d *Daemon) detachOf(v *device) *DetachStatus {
	v.mu.RLock()
	var key detachKey
	if v.back != nil && v.back.store != nil {
		key = detachKey{v.back.store.key, v.rec.Device.Layer}
	}
	v.mu.RUnlock()
	j := d.detaches.find(key)
	if j == nil {
		return nil
	}
	s := j.status()
	return &s
}

// forgetRoots takes the root from the records of devices on the store that need it no more.
func (d *Daemon) forgetRoots(st *sharedStore) {
	for _, v := range d.all() {
		v.mu.Lock()
		rec := &v.rec
		stale := v.state != StateDeleting && v.back != nil && v.back.store == st && v.back.layer != nil && rec.Device.Root != "" &&
			v.back.layer.Pin().Kind == union.PinNone
		var err error
		if stale {
			rec.Device.setRoots(nil)
			err = d.records.save(*rec)
		}
		v.mu.Unlock()
		if err != nil {
			d.log.Warn("record of a device keeps a root that it does not need", "error", err)
		}
	}
}

// detachRecords is where requests lie that a later daemon goes on with.
func (d *Daemon) detachRecords() string { return filepath.Join(d.cfg.RunDir, detachesName) }

func (d *Daemon) detachPath(st *sharedStore, layer string) string {
	return filepath.Join(d.detachRecords(), st.UUID().String()+"-"+layer+recordSuffix)
}

func readDetach(path string) (r DetachRequest, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err
}

func (d *Daemon) saveDetach(j *detachJob) error {
	data, err := json.Marshal(j.request)
	if err == nil {
		err = os.MkdirAll(d.detachRecords(), 0o750)
	}
	if err == nil {
		err = writeAtomically(d.detachPath(j.store, j.request.Layer), append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("save record of the detach of %s: %w", j.request.Layer, err)
	}
	return nil
}

func (d *Daemon) removeDetach(j *detachJob) error {
	if err := os.Remove(d.detachPath(j.store, j.request.Layer)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove record of the detach of %s: %w", j.request.Layer, err)
	}
	return nil
}

// resumeDetaches goes on with what an earlier daemon began.
func (d *Daemon) resumeDetaches() {
	entries, err := os.ReadDir(d.detachRecords())
	if err != nil {
		return // none was ever begun
	}
	var list []DetachRequest
	for _, e := range entries {
		path := filepath.Join(d.detachRecords(), e.Name())
		if strings.HasPrefix(e.Name(), tempPrefix) {
			_ = os.Remove(path)
			continue
		}
		r, err := readDetach(path)
		if err != nil {
			d.log.Error("record of a detach cannot be used; ask for it again", "record", path, "error", oneLine(err))
			continue
		}
		list = append(list, r)
	}
	d.startDetaches(list)
}

func (d *Daemon) startDetaches(list []DetachRequest) {
	for _, r := range list {
		if _, err := d.startDetach(d.quit, r, patience); err != nil {
			d.log.Error("detach not resumed; ask for it again", "store", r.Store, "layer", r.Layer, "error", oneLine(err))
		}
	}
}

// marked returns the layers of a device's store whose detach did not end, where the device has the root that they need: after a
// reboot there are no records.
func (b *backing) marked(root string) (list []DetachRequest) {
	for _, l := range b.store.Info().Layers {
		if l.Detaching && (l.Pin.Kind == union.PinNone || b.base != nil && b.base.Pin() == l.Pin) {
			list = append(list, DetachRequest{Store: b.store.Path(), Layer: l.Name, Root: root})
		}
	}
	return list
}

// DetachOffline is Detach in this process, where no daemon has runDir.
func DetachOffline(ctx context.Context, runDir string, r DetachRequest, progress func(DetachStatus)) (DetachStatus, error) {
	status := DetachStatus{Store: r.Store, Layer: r.Layer}
	if r.Background {
		return status, fail(CodeNoDaemon, "start the daemon, or leave --background away", "no daemon is running that could go on with it")
	}
	err := withStoreOffline(runDir, r.Store, nil, func(st *union.Store) error {
		if r.Stop {
			return st.StopDetach(r.Layer)
		}
		err := detachHere(ctx, st, r, progress)
		status.Complete = err == nil
		return err
	})
	return status, err
}

func detachHere(ctx context.Context, st *union.Store, r DetachRequest, progress func(DetachStatus)) (err error) {
	info, err := st.LayerInfo(r.Layer)
	if err != nil {
		return err
	}
	var base union.Base
	if info.Pin.Kind != union.PinNone {
		if r.Root == "" {
			return fail(CodeBadRequest, "give it: --root REF", "layer %s stands on a root", r.Layer)
		}
		if base, err = new(roots).openFor(r.Root, info.Pin); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, base.Close()) }()
	}
	done := make(chan error, 1)
	go func() {
		done <- st.Detach(ctx, r.Layer, base, union.DetachOptions{BytesPerSecond: r.BytesPerSecond})
	}()
	const every = 200 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if info, err := st.LayerInfo(r.Layer); err == nil && info.Detach != nil {
				progress(DetachStatus{Store: r.Store, Layer: r.Layer, DetachProgress: *info.Detach})
			}
		}
	}
}
