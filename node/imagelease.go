package node

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/google/uuid"

	"coppice/image"
	"coppice/union"
)

const (
	// leaseRenewal is how often the leases of devices are renewed.
	leaseRenewal = 24 * time.Hour
	// leasePatience is how long an operation waits for a directory with leases that does not answer.
	leasePatience = 5 * time.Second
)

type leasesBody struct {
	Leases []image.Lease `json:"leases"`
}

// Leases returns who needs images: the devices, and the other layers of the stores that are open.
func (d *Daemon) Leases() []image.Lease {
	all := []image.Lease{}
	type key struct {
		store storeKey
		layer string
	}
	seen := map[key]bool{}
	for _, v := range d.all() {
		lease, ok := d.leaseOf(v)
		if !ok {
			continue
		}
		if k, err := keyOf(lease.Store); err == nil {
			seen[key{k, lease.Layer}] = true
		}
		for _, text := range v.record().Device.roots() {
			lease.Ref, lease.Name = text, ""
			if ref, err := image.ParseRef(text); err == nil {
				lease.Name = ref.Name
			}
			all = append(all, lease)
		}
	}
	for _, st := range d.stores.all() {
		st.mu.Lock()
		if st.Store != nil {
			for _, l := range st.Info().Layers {
				if l.Pin.Kind == union.PinImage && !seen[key{st.key, l.Name}] {
					all = append(all, d.lease("", st.Path(), l.Name, l.Pin))
				}
			}
		}
		st.mu.Unlock()
	}
	return all
}

// all returns the stores that are open, or about to be.
func (s *stores) all() (list []*sharedStore) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.open {
		list = append(list, st)
	}
	return list
}

func (d *Daemon) lease(device, store, layer string, pin union.Pin) image.Lease {
	id := d.cfg.leaseOptions().Node
	if id == uuid.Nil {
		id = union.MachineID()
	}
	host, _ := os.Hostname() // one without a name is known by its id
	l := image.Lease{Node: id.String(), Host: host, Device: device, Store: store, Layer: layer, ContentRoot: image.Digest(pin.Digest)}
	if id == uuid.Nil {
		l.Node = host
	}
	return l
}

// leaseOf is what a device needs of its root, if that is an image.
func (d *Daemon) leaseOf(v *device) (image.Lease, bool) {
	v.mu.RLock()
	rec, back := v.rec.Device, v.back
	var pin union.Pin
	if back != nil && back.layer != nil {
		pin = back.layer.Pin()
	}
	v.mu.RUnlock()
	return d.lease(rec.Name, rec.Store, rec.Layer, pin), pin.Kind == union.PinImage
}

// takeLeases writes a device's leases into the directories that it has its root from, or renews them, as far as they can be written.
func (d *Daemon) takeLeases(v *device) {
	within(leasePatience, func() {
		d.leasing.Lock() // so that none is taken after it was given back
		defer d.leasing.Unlock()
		lease, ok := d.leaseOf(v)
		if !ok || v.current() != StateLive {
			return
		}
		rec := v.record()
		for _, text := range rec.Device.roots() {
			lease.Manifest = rec.Manifests[text]
			if err := takeLease(lease, text); err != nil {
				d.noLease(lease, text, err)
			}
		}
	})
}

// noLease says that others cannot see who needs an image. Where a directory can only be read, that is so.
func (d *Daemon) noLease(lease image.Lease, ref string, err error) {
	level := d.log.Warn
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		level = d.log.Info
	}
	level("no lease of the root; other nodes may remove it", "device", lease.Device, "root", ref, "error", oneLine(err))
}

func takeLease(lease image.Lease, text string) error {
	ref, err := image.ParseRef(text)
	if err != nil || ref.Kind != image.KindLayout {
		return err
	}
	l, err := image.OpenLayout(ref.Place)
	if err != nil {
		return err
	}
	lease.Name = ref.Name
	if lease.Manifest == (image.Digest{}) {
		lease.Manifest, err = l.ManifestOf(context.Background(), ref.Name, lease.ContentRoot)
	}
	if err == nil {
		err = l.PutLease(lease)
	}
	return errors.Join(err, l.Close())
}

// dropLeases gives the leases of a device on some references of its root back, where left has no other in the same directory.
func (d *Daemon) dropLeases(rec record, texts, left []string) {
	within(leasePatience, func() {
		d.leasing.Lock()
		defer d.leasing.Unlock()
		lease := d.lease(rec.Device.Name, rec.Device.Store, rec.Device.Layer, union.Pin{})
		for _, text := range texts {
			ref, err := image.ParseRef(text)
			if err != nil || ref.Kind != image.KindLayout || slices.Contains(rootPaths(left), ref.Place) {
				continue
			}
			l, err := image.OpenLayout(ref.Place)
			if err == nil {
				err = errors.Join(l.DropLease(lease), l.Close())
			}
			if err != nil {
				d.log.Info("lease of a root not given back; it ends by itself", "device", lease.Device, "root", text, "error", oneLine(err))
			}
		}
	})
}

// moveLeases takes the leases that a device needs whose root had other references before.
func (d *Daemon) moveLeases(v *device, before []string) {
	rec := v.record()
	left := rec.Device.roots()
	d.dropLeases(rec, slices.DeleteFunc(slices.Clone(before), func(ref string) bool { return slices.Contains(left, ref) }), left)
	d.takeLeases(v)
}

// within returns when f has, or after a time; f goes on then.
func within(limit time.Duration, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(limit):
	}
}

// renewLeases renews the leases of all devices until the daemon stops.
func (d *Daemon) renewLeases() {
	tick := time.NewTicker(leaseRenewal)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for _, v := range d.all() {
				d.takeLeases(v)
			}
		case <-d.quit.Done():
			return
		}
	}
}

func (s *server) leases(*http.Request) (any, error) { return leasesBody{s.d.Leases()}, nil }

// Leases returns who needs images on this machine.
func (c *Client) Leases(ctx context.Context) ([]image.Lease, error) {
	var l leasesBody
	return l.Leases, about("find out who needs images", c.send(ctx, http.MethodGet, "leases", nil, &l, true))
}
