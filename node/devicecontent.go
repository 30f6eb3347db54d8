package node

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ReadRequest asks to read what a device holds at one moment.
type ReadRequest struct {
	Force bool `json:"force,omitempty"` // also where the store is nearly full
}

// OpenedCut is the answer when the content of a device can be read, as it was when it was sealed.
type OpenedCut struct {
	SealMS float64 `json:"seal_ms"` // how long the seal took, in milliseconds
	OpenedContent
}

// PrepareContent makes ready to seal what the device's layer holds. It is followed by DeviceContent or CancelContent within [FreezeLimit].
func (d *Daemon) PrepareContent(ctx context.Context, name string, r ReadRequest) (PreparedFreeze, error) {
	return d.prepareCut(ctx, name, passingName(), StateReading, r.Force, nil)
}

// lentCuts has what clients read, by the token of the cut.
type lentCuts struct {
	mu   sync.Mutex
	open map[string]*lentCut
}

type lentCut struct {
	end   context.CancelFunc
	ended chan struct{} // closed when nothing is left of the cut
}

// enter notes that a cut is read until leave is called.
func (t *lentCuts) enter(token string, end context.CancelFunc) (leave func()) {
	l := &lentCut{end, make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = make(map[string]*lentCut)
	}
	t.open[token] = l
	return func() {
		t.mu.Lock()
		delete(t.open, token)
		t.mu.Unlock()
		close(l.ended)
	}
}

// finish ends the reading of a cut, if it is read, and waits until nothing is left of it.
func (t *lentCuts) finish(ctx context.Context, token string) (found bool, err error) {
	t.mu.Lock()
	l, ok := t.open[token]
	t.mu.Unlock()
	if !ok {
		return false, nil
	}
	l.end()
	select {
	case <-l.ended:
		return true, nil
	case <-ctx.Done():
		return true, ctx.Err()
	}
}

// CancelContent leaves the device as it was. Where its content is being read, it ends that, and returns when nothing is left of the seal.
func (d *Daemon) CancelContent(ctx context.Context, name, token string) error {
	if found, err := d.lent.finish(ctx, token); found {
		return err
	}
	k, err := d.takeCut(name, token, StateReading)
	if err != nil {
		return err
	}
	return d.cancelCut(k)
}

// DeviceContent seals what the device's layer holds, tells opened where clients read it, and makes the layer one again when ctx ends, or the daemon.
func (d *Daemon) DeviceContent(ctx context.Context, name, token string, opened func(OpenedCut) error) error {
	k, err := d.takeCut(name, token, StateReading)
	if err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer d.lent.enter(token, end)()
	defer d.endWork(k.v)
	began := time.Now()
	sealed, err := d.seal(k)
	if err != nil {
		return err
	}
	err = d.lendCut(ctx, k, sealed, opened)
	err = errors.Join(err, k.v.layer().Merge())
	if err != nil {
		d.log.Warn("reading failed", "device", name, "error", oneLine(err))
		return err
	}
	d.log.Info("device read", "device", name, "ms", milliseconds(time.Since(began)))
	return nil
}

// lendCut lets clients read a layer that was sealed for that. Its root is the device's, and stays open with it.
func (d *Daemon) lendCut(ctx context.Context, k *cut, sealed SealedFreeze, opened func(OpenedCut) error) error {
	k.v.mu.RLock()
	back, root := k.v.back, k.v.rec.Device.Root
	k.v.mu.RUnlock()
	l, err := back.store.OpenSealed(sealed.Layer.Name)
	if err != nil {
		return err
	}
	c := &content{layer: l, root: root}
	if c.Content, err = l.Content(back.base); err != nil {
		l.CloseSealed()
		return err
	}
	err = d.lendContent(ctx, c, func(o OpenedContent) error { return opened(OpenedCut{SealMS: sealed.SealMS, OpenedContent: o}) })
	return errors.Join(err, c.close())
}
