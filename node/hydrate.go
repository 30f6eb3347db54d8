package node

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coppice/image"
)

const (
	// leastHydrateRate is how many bytes a second a copy gets even though guests read all the time.
	leastHydrateRate = 1 << 20
	// guestPause is how long after a guest's read the copy still keeps back.
	guestPause = 50 * time.Millisecond
	// hydrateRetry is how long a copy that cannot go on waits at most before it tries again.
	hydrateRetry = time.Minute
	// A copy leaves a twentieth of the file system free, at most spareBytes.
	spareBytes = 1 << 30
	spareShare = 20
)

// hydration is the copy of an image to this machine, made once for all devices on it.
type hydration struct {
	mu     sync.Mutex // guards what follows
	cancel context.CancelFunc
	ended  chan struct{}
	status Hydration
}

// report returns nil where nobody has asked for a copy.
func (h *hydration) report() *Hydration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cancel == nil {
		return nil
	}
	status := h.status
	return &status
}

func (h *hydration) set(change func(*Hydration)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(&h.status)
}

// giveUp lets the copy end soon. What is complete of it stays.
func (h *hydration) giveUp() (ended chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cancel == nil {
		return nil
	}
	h.cancel()
	h.cancel = nil
	return h.ended
}

// stop returns when the copy reads nothing more.
func (h *hydration) stop() {
	if ended := h.giveUp(); ended != nil {
		<-ended
	}
}

// localRef is where this machine keeps its own copy of an image.
func (a *roots) localRef(s *rootSet) image.Ref {
	path := a.cfg.LocalPath
	setDefault(&path, DefaultLocalPath)
	ref, err := image.ParseRef("oci:" + path + ":root:" + strings.TrimPrefix(s.ContentRoot().String(), "sha256:"))
	if err != nil {
		panic(err) // every path and digest makes a reference
	}
	return ref
}

// HydrateRoot has the image that a device stands on copied to this machine, for all devices on the same content.
func (d *Daemon) HydrateRoot(ctx context.Context, name string) (RootReport, error) {
	if err := d.begin(ctx); err != nil {
		return RootReport{}, err
	}
	defer d.ops.Done()
	v, s, err := d.holdRoot(name)
	if err != nil {
		return RootReport{}, err
	}
	defer func() { _ = d.roots.leave(s) }() // the device has it, or closes it
	d.roots.changes.Lock()
	defer d.roots.changes.Unlock()
	if err := d.setHydrate(s, true); err != nil {
		return RootReport{}, err
	}
	d.startHydration(s)
	return RootReport{Ref: d.roots.localRef(s).String(), Root: v.inspect(usage{}).Root, Devices: d.devicesOn(s)}, nil
}

// setHydrate writes into the records of all devices on a root whether it is to be copied to this machine. The caller holds roots.changes.
func (d *Daemon) setHydrate(s *rootSet, want bool) error {
	var errs []error
	for _, v := range d.all() {
		v.mu.Lock()
		if v.on(s) && v.rec.Device.Hydrate != want {
			v.rec.Device.Hydrate = want
			if v.state != StateDeleting {
				errs = append(errs, d.records.save(v.rec))
			}
		}
		v.mu.Unlock()
	}
	return errors.Join(errs...)
}

// startHydration begins to copy an image to this machine, unless that has begun. The caller has the set.
func (d *Daemon) startHydration(s *rootSet) {
	h := &s.hydrate
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cancel != nil {
		return
	}
	var ctx context.Context
	ctx, h.cancel = context.WithCancel(d.quit)
	h.ended = make(chan struct{})
	h.status = Hydration{State: HydrationCopying, Ref: d.roots.localRef(s).String()}
	go d.hydrate(ctx, s, h.ended)
}

func (d *Daemon) hydrate(ctx context.Context, s *rootSet, ended chan struct{}) {
	defer close(ended)
	local := d.roots.localRef(s)
	log := d.log.With("copy", local.String())
	for wait := time.Second; ; wait = min(2*wait, hydrateRetry) {
		err := d.hydrateOnce(ctx, s, local)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			s.hydrate.set(func(st *Hydration) { st.State, st.Error, st.DoneBytes = HydrationComplete, "", st.TotalBytes })
			log.Info("root is on this machine", "bytes", s.hydrate.report().TotalBytes)
			return
		}
		s.hydrate.set(func(st *Hydration) { st.State, st.Error = HydrationWaiting, oneLine(err) })
		log.Warn("root cannot be copied to this machine; it is tried again", "error", oneLine(err), "hint", Explain(err).Hint, "seconds", int(wait.Seconds()))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (d *Daemon) hydrateOnce(ctx context.Context, s *rootSet, local image.Ref) error {
	for _, r := range s.Replicas() {
		if r.Ref != local.String() {
			continue
		}
		if r.State == image.StateReady {
			return nil
		}
		if err := s.Remove(r.Ref); err != nil { // it is damaged, and not to be copied from
			return err
		}
	}
	im, err := s.one()
	if err != nil {
		return err
	}
	s.hydrate.set(func(st *Hydration) { st.State, st.TotalBytes = HydrationCopying, im.StoredBytes() })
	if err := d.copyHere(ctx, s, im, local); err != nil {
		return err
	}
	d.roots.changes.Lock()
	defer d.roots.changes.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.Add(ctx, local); err != nil && !errors.Is(err, image.ErrExists) {
		return err
	}
	return d.recordRoot(s)
}

func (d *Daemon) copyHere(ctx context.Context, s *rootSet, im *image.Image, local image.Ref) error {
	dst, err := local.Target(image.SourceOptions{})
	if err != nil {
		return fail(CodeFailed, "set local in coppice.toml, section images, to a directory of its own", "%w", err)
	}
	err = checkSpace(ctx, im, dst, local.Place)
	if err == nil {
		_, err = image.Copy(ctx, im, dst, local.Name, image.CopyOptions{
			Repair: true,
			Progress: func(done, total int64) {
				s.hydrate.set(func(st *Hydration) { st.DoneBytes, st.TotalBytes = done, total })
			},
			Pace: newPacer(&s.guests).pace,
		})
	}
	return errors.Join(err, dst.Close())
}

// checkSpace refuses a copy that would leave too little of the file system.
func checkSpace(ctx context.Context, im *image.Image, dst image.Target, dir string) error {
	need := int64(0)
	for _, b := range append(im.Packs(), im.Table()) {
		there, err := dst.HasBlob(ctx, b)
		if err != nil {
			return err
		}
		if !there {
			need += b.Size
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	free, spare := int64(st.Bavail)*st.Bsize, min(int64(st.Blocks)*st.Bsize/spareShare, spareBytes)
	if need > 0 && free-need < spare {
		return fail(CodeNoSpace, "make space there, or set local in coppice.toml, section images, to a directory on a larger disk",
			"copy root to %s: %d bytes are to be copied, and of the %d that are free %d are kept", dir, need, free, spare)
	}
	return nil
}

// pacer keeps a copy behind guests.
type pacer struct {
	guests *guests
	mu     sync.Mutex
	next   time.Time // when the next bytes may be read though guests read
}

func newPacer(g *guests) *pacer { return &pacer{guests: g} }

// pace is called when n bytes have been read, and returns when more may be: at once while nobody reads, else at [leastHydrateRate].
func (p *pacer) pace(ctx context.Context, n int) error {
	if !p.guests.busy() {
		return ctx.Err()
	}
	p.mu.Lock()
	if now := time.Now(); p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(n) * time.Second / leastHydrateRate)
	until := p.next
	p.mu.Unlock()
	const look = 10 * time.Millisecond
	for p.guests.busy() {
		left := time.Until(until)
		if left <= 0 {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(left, look)):
		}
	}
	return ctx.Err()
}

func (g *guests) busy() bool {
	return g.reading.Load() > 0 || time.Now().UnixNano()-g.last.Load() < int64(guestPause)
}

// report describes the replicas, and the copy on this machine.
func (s *rootSet) report() ([]image.ReplicaStatus, *Hydration) {
	return s.Replicas(), s.hydrate.report()
}
