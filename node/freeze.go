package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"sync"
	"time"

	"coppice/union"
)

// FreezeLimit is how long a prepared freeze waits to be sealed before it is cancelled.
const FreezeLimit = 10 * time.Second

// exportPrefix begins the names of the layers that exports, and those who read a device's content, make and take back.
const exportPrefix = union.ExportPrefix

// FreezeRequest asks for a layer to be sealed.
type FreezeRequest struct {
	As    string `json:"as"`              // name of the sealed layer
	Force bool   `json:"force,omitempty"` // also where the store is nearly full
}

// PreparedFreeze is a freeze that only has to be sealed: nothing slow stands in its way any more. While it
// waits, the store makes no checkpoint and no layer comes or goes.
type PreparedFreeze struct {
	Token     string  `json:"token"`
	ExpiresMS float64 `json:"expires_ms"` // from now, in milliseconds: then it is cancelled by itself
}

// SealedFreeze is what a freeze made.
type SealedFreeze struct {
	Layer  union.LayerInfo `json:"layer"`
	SealMS float64         `json:"seal_ms"` // how long the seal took, in milliseconds
}

// cut is a prepared freeze. Who takes it out of the table owns it.
type cut struct {
	v      *device
	name   string // of the device
	during State  // what it is for: the device's state until it ends
	freeze *union.Freeze
	timer  *time.Timer
	export *exportTarget // of an export
}

// cuts has the prepared freezes by token.
type cuts struct {
	mu   sync.Mutex
	open map[string]*cut
}

// take removes and returns the cut with the token, if it is there, of that device and that kind.
func (c *cuts) take(name, token string, during State) (*cut, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.open[token]
	if !ok || k.name != name || k.during != during {
		return nil, false
	}
	delete(c.open, token)
	k.timer.Stop()
	return k, true
}

func (d *Daemon) takeCut(name, token string, during State) (*cut, error) {
	if k, ok := d.cuts.take(name, token, during); ok {
		return k, nil
	}
	return nil, fail(CodeTimeout, "try again; nothing was sealed",
		"no freeze of %s waits under that token: it was cancelled, or took longer than %s", name, FreezeLimit)
}

// PrepareFreeze makes ready to seal what the device's layer holds. It is followed by Seal or CancelFreeze within
// [FreezeLimit]; meanwhile no other operation on the device is admitted.
func (d *Daemon) PrepareFreeze(ctx context.Context, name string, r FreezeRequest) (PreparedFreeze, error) {
	if strings.HasPrefix(r.As, exportPrefix) {
		return PreparedFreeze{}, fail(CodeBadRequest, "choose another name",
			"layer name %q: names that begin with %s belong to exports", r.As, exportPrefix)
	}
	if err := union.ValidLayerName(r.As); err != nil {
		return PreparedFreeze{}, fail(CodeBadRequest, "choose another name", "%w", err)
	}
	return d.prepareCut(ctx, name, r.As, StateFreezing, r.Force, nil)
}

// prepareCut takes the device out of the state live until endWork.
func (d *Daemon) prepareCut(ctx context.Context, name, as string, during State, force bool, export *exportTarget) (PreparedFreeze, error) {
	var none PreparedFreeze
	if err := d.begin(ctx); err != nil {
		return none, err
	}
	v, err := d.find(name)
	if err == nil {
		err = v.enter(during, StateLive)
	}
	if err != nil {
		d.ops.Done()
		return none, err
	}
	k := &cut{v: v, name: name, during: during, export: export}
	if !force {
		err = v.layer().Store().FreezeAllowed()
	}
	if err == nil {
		k.freeze, err = v.layer().PrepareFreeze(as)
	}
	if err != nil {
		d.endWork(v)
		return none, err
	}
	token := rand.Text()
	d.cuts.mu.Lock()
	d.cuts.open[token] = k
	k.timer = time.AfterFunc(FreezeLimit, func() { d.expireCut(name, token, during) })
	d.cuts.mu.Unlock()
	return PreparedFreeze{Token: token, ExpiresMS: milliseconds(FreezeLimit)}, nil
}

func milliseconds(t time.Duration) float64 { return float64(t.Microseconds()) / 1000 }

// Seal makes what the device's layer holds a sealed layer. All that was acknowledged before is in it.
func (d *Daemon) Seal(name, token string) (SealedFreeze, error) {
	k, err := d.takeCut(name, token, StateFreezing)
	if err != nil {
		return SealedFreeze{}, err
	}
	defer d.endWork(k.v)
	return d.seal(k)
}

// seal logs on the side: the log may lie on a file system that is frozen until the caller has answered.
func (d *Daemon) seal(k *cut) (SealedFreeze, error) {
	began := time.Now()
	info, err := k.freeze.Seal()
	sealed := SealedFreeze{Layer: info, SealMS: milliseconds(time.Since(began))}
	if err != nil {
		go d.log.Warn("freeze failed", "device", k.name, "error", oneLine(err))
		return SealedFreeze{}, err
	}
	go d.log.Info("layer sealed", "device", k.name, "layer", info.Name, "ms", sealed.SealMS)
	return sealed, nil
}

// CancelFreeze leaves the device as it was.
func (d *Daemon) CancelFreeze(name, token string) error {
	k, err := d.takeCut(name, token, StateFreezing)
	if err != nil {
		return err
	}
	return d.cancelCut(k)
}

func (d *Daemon) cancelCut(k *cut) error {
	defer d.endWork(k.v)
	k.freeze.Cancel()
	return k.export.close()
}

func (d *Daemon) expireCut(name, token string, during State) {
	k, ok := d.cuts.take(name, token, during)
	if !ok {
		return
	}
	err := d.cancelCut(k)
	d.log.Warn("freeze was not sealed in time and is cancelled", "device", name, "error", err)
}

// passingName names a layer that is made only to be taken back.
func passingName() string {
	return fmt.Sprintf("%s%s-%08x", exportPrefix, time.Now().UTC().Format("20060102T150405"), mathrand.Uint32())
}

// endWork makes the device live again after a freeze, an export or a reading, and sees to it where it was lost
// meanwhile.
func (d *Daemon) endWork(v *device) {
	defer d.ops.Done()
	v.setState(StateLive)
	v.mu.RLock()
	disk := v.disk
	v.mu.RUnlock()
	select {
	case <-disk.Done():
		go d.watch(v, disk)
	default:
	}
}

// layer is the leaf of a device that is served.
func (v *device) layer() *union.Layer {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.back.layer
}

// mergeLeftover takes back the layer of an export that an earlier daemon did not live to end.
func (d *Daemon) mergeLeftover(back *backing) {
	parent := back.layer.Info().Parent
	if !strings.HasPrefix(parent, exportPrefix) {
		return
	}
	err := back.layer.Merge()
	if errors.Is(err, union.ErrLayerInUse) {
		return
	}
	if err != nil {
		d.log.Warn("layer of an unfinished export stays", "layer", parent, "store", back.store.Info().Path, "error", oneLine(err))
		return
	}
	d.log.Info("layer of an unfinished export merged", "layer", parent, "into", back.layer.Name())
}
