package node

import (
	"context"
	"errors"
	"io/fs"
	"slices"
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
	work sync.WaitGroup

	mu     sync.Mutex         // guards what follows
	cancel context.CancelFunc // nil where nobody asked for a copy, or does not any more
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
func (h *hydration) giveUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cancel != nil {
		h.cancel()
		h.cancel = nil
	}
}

// stop returns when the copy reads nothing more.
func (h *hydration) stop() {
	h.giveUp()
	h.work.Wait()
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
	if err := d.setHydrate(s, true); err != nil {
		return RootReport{}, err
	}
	d.startHydration(s)
	return RootReport{Ref: d.roots.localRef(s).String(), Root: v.inspect(usage{}).Root, Devices: d.devicesOn(s)}, nil
}

// setHydrate writes into the records of all devices on a root whether it is to be copied to this machine.
func (d *Daemon) setHydrate(s *rootSet, want bool) error {
	return d.changeRecords(s, func(v *device) bool {
		changed := v.rec.Device.Hydrate != want
		v.rec.Device.Hydrate = want
		return changed
	})
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
	h.status = Hydration{State: HydrationCopying, Ref: d.roots.localRef(s).String()}
	h.work.Go(func() { d.hydrate(ctx, s) })
}

// hydrate makes the copy, and makes it anew where it is lost or damaged, until ctx ends.
func (d *Daemon) hydrate(ctx context.Context, s *rootSet) {
	local := d.roots.localRef(s)
	log := d.log.With("copy", local.String())
	for wait := time.Second; ctx.Err() == nil; {
		copied, err := d.hydrateOnce(ctx, s, local)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			s.hydrate.set(func(st *Hydration) { st.State, st.Error, st.DoneBytes = HydrationComplete, "", st.TotalBytes })
			if copied {
				log.Info("root is on this machine", "bytes", s.hydrate.report().TotalBytes)
			}
			wait = hydrateRetry
		default:
			s.hydrate.set(func(st *Hydration) { st.State, st.Error = HydrationWaiting, oneLine(err) })
			log.Warn("root cannot be copied to this machine; it is tried again", "error", oneLine(err), "hint", Explain(err).Hint, "seconds", int(wait.Seconds()))
		}
		pause(ctx, wait)
		wait = min(2*wait, hydrateRetry)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// hydrateOnce makes the copy a replica that can be read, and reports whether something had to be done for it.
func (d *Daemon) hydrateOnce(ctx context.Context, s *rootSet, local image.Ref) (copied bool, err error) {
	have, whole := s.localCopy(ctx, local)
	im, err := s.one()
	if err != nil {
		return false, err
	}
	s.hydrate.set(func(st *Hydration) { st.TotalBytes = im.StoredBytes() })
	if whole {
		return false, nil
	}
	if have { // it is damaged, and not to be copied from
		if err := s.Remove(local.String()); err != nil {
			return false, err
		}
		if im, err = s.one(); err != nil {
			return false, err
		}
	}
	s.hydrate.set(func(st *Hydration) { st.State, st.Error = HydrationCopying, "" })
	if err := d.copyHere(ctx, s, im, local); err != nil {
		return false, err
	}
	if err := s.Add(ctx, local); err != nil && !errors.Is(err, image.ErrExists) {
		return false, err
	}
	if err := ctx.Err(); err != nil { // somebody wants it no more
		return false, errors.Join(err, s.Remove(local.String()))
	}
	return true, d.recordRoot(s)
}

// localCopy tells whether the copy is a replica, and whether it can be read. One that was not looked at yet is waited for.
func (s *rootSet) localCopy(ctx context.Context, local image.Ref) (have, whole bool) {
	for ; ctx.Err() == nil; pause(ctx, 50*time.Millisecond) {
		all := s.Replicas()
		i := slices.IndexFunc(all, func(r image.ReplicaStatus) bool { return r.Ref == local.String() })
		if i < 0 {
			return false, false
		}
		if r := all[i]; r.State != image.StateDown || r.Failures > 0 {
			return true, r.State == image.StateReady || r.State == image.StateSlow
		}
	}
	return false, false
}

func (d *Daemon) copyHere(ctx context.Context, s *rootSet, im *image.Image, local image.Ref) error {
	dst, err := local.Target(image.SourceOptions{})
	if err != nil {
		return fail(CodeFailed, "set local in coppice.toml, section images, to a directory of its own", "%w", err)
	}
	err = checkSpace(ctx, im, dst, local.Place)
	if err == nil {
		var report image.CopyReport
		report, err = image.Copy(ctx, im, dst, local.Name, image.CopyOptions{
			Repair: true,
			Progress: func(done, total int64) {
				s.hydrate.set(func(st *Hydration) { st.DoneBytes, st.TotalBytes = done, total })
			},
			Pace: newPacer(&s.guests).pace,
		})
		for _, what := range report.Damaged {
			d.log.Warn("damaged, and not copied with the root", "root", s.ContentRoot().String(), "error", oneLine(errors.New(what)))
		}
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
	return fits(dir, need, int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize)
}

// fits refuses to store need bytes in a file system of total bytes of which some are free, if too few would be left.
func fits(dir string, need, free, total int64) error {
	spare := min(total/spareShare, spareBytes)
	if need == 0 || free-need >= spare {
		return nil
	}
	return fail(CodeNoSpace, "make space there, or set local in coppice.toml, section images, to a directory on a larger disk",
		"copy root to %s: %d bytes are to be copied, and of the %d that are free %d are kept", dir, need, free, spare)
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
