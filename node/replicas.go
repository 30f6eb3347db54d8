package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"coppice/image"
)

const (
	otherContentHint = "give references of one image: `coppice image inspect REF` shows the content root of each"
	replicasHint     = "`coppice inspect NAME` shows the replicas"
)

// RootRequest names a replica of a device's root.
type RootRequest struct {
	Ref string `json:"ref"`
}

// RootReport tells which replicas a root has after a change, and which devices read them.
type RootReport struct {
	Ref     string   `json:"ref"`
	Root    Root     `json:"root"`
	Devices []string `json:"devices"`
}

// AddRoot takes one more replica of a device's root, for all devices on the same content. It is looked at first: it answers and has that content.
func (d *Daemon) AddRoot(ctx context.Context, name string, r RootRequest) (RootReport, error) {
	return d.changeRoot(ctx, name, r.Ref, func(s *rootSet, ref image.Ref) error {
		if len(s.Replicas()) >= MaxReplicas {
			return fail(CodeBadRequest, "remove one first: coppice root remove", "the root has %d replicas, which is all that it may have", MaxReplicas)
		}
		if err := d.refuseOwn(rootPaths([]string{r.Ref})...); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, openRootTime)
		defer cancel()
		if err := s.Add(ctx, ref); err != nil {
			return explainReplica(err)
		}
		if err := d.recordRoot(s); err != nil {
			return errors.Join(err, s.Remove(r.Ref), d.recordRoot(s))
		}
		return nil
	})
}

// RemoveRoot takes a replica away from all devices on the same content. The last one is refused.
func (d *Daemon) RemoveRoot(ctx context.Context, name string, r RootRequest) (RootReport, error) {
	return d.changeRoot(ctx, name, r.Ref, func(s *rootSet, ref image.Ref) error {
		if !s.known()[r.Ref] {
			return fail(CodeNotFound, replicasHint, "remove replica %s: the root has no such replica", r.Ref)
		}
		if r.Ref == d.roots.localRef(s).String() {
			s.hydrate.giveUp()
			if err := d.setHydrate(s, false); err != nil {
				return err
			}
		}
		if err := s.Remove(r.Ref); err != nil {
			return explainReplica(err)
		}
		return d.recordRoot(s)
	})
}

// changeRoot does something with a replica of a device's root.
func (d *Daemon) changeRoot(ctx context.Context, name, text string, change func(*rootSet, image.Ref) error) (RootReport, error) {
	if err := d.begin(ctx); err != nil {
		return RootReport{}, err
	}
	defer d.ops.Done()
	ref, err := checkReplica(text)
	if err != nil {
		return RootReport{}, err
	}
	v, s, err := d.holdRoot(name)
	if err != nil {
		return RootReport{}, err
	}
	defer func() { _ = d.roots.leave(s) }() // the device has it, or closes it
	if err := change(s, ref); err != nil {
		return RootReport{}, err
	}
	rep := RootReport{Ref: text, Root: v.inspect(usage{}).Root, Devices: d.devicesOn(s)}
	d.log.Info("replicas of a root changed", "device", name, "replica", text, "replicas", len(rep.Root.Replicas), "devices", len(rep.Devices))
	return rep, nil
}

// checkReplica refuses what can be no replica.
func checkReplica(text string) (image.Ref, error) {
	ref, err := checkRoot(text)
	if err == nil && ref.Kind == image.KindFile {
		err = fail(CodeBadRequest, "make an image of it: coppice image build", "root %s is a raw disk, which can be no replica: nothing proves what it holds", text)
	}
	return ref, err
}

// explainReplica says what to do about a replica that is refused.
func explainReplica(err error) error {
	switch {
	case errors.Is(err, image.ErrExists):
		return fail(CodeNameTaken, replicasHint, "%w", err)
	case errors.Is(err, image.ErrOther):
		return fail(CodeOtherRoot, otherContentHint, "%w", err)
	case errors.Is(err, image.ErrLast):
		return fail(CodeInUse, "add another one first: coppice root add NAME REF", "%w", err)
	case errors.Is(err, image.ErrRefused):
		return fail(CodeBadRoot, credentialsHint, "%w", err)
	}
	return fail(CodeBadRoot, "see to it that the replica can be reached, then try again", "%w", err)
}

// holdRoot adds a user to the set of a device's root.
func (d *Daemon) holdRoot(name string) (*device, *rootSet, error) {
	v, err := d.find(name)
	if err != nil {
		return nil, nil, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.back == nil || v.back.device == nil {
		return nil, nil, fail(CodeBusy, "wait until it is live; `coppice list` shows it", "device %s is %s", name, v.state)
	}
	root := v.back.image()
	if v.back.base == nil {
		return nil, nil, fail(CodeBadRequest, "there is nothing to do", "the layer of device %s is complete: it has no root", name)
	}
	if root == nil {
		return nil, nil, fail(CodeBadRequest, "make an image of it (coppice image build), and a device on that", "the root of device %s is a raw disk, which can have neither replicas nor an index", name)
	}
	d.roots.keep(root.set)
	return v, root.set, nil
}

// on tells whether the device stands on a root. The caller holds v.mu.
func (v *device) on(s *rootSet) bool {
	root := v.back.image()
	return root != nil && root.set == s && v.rec.Device.Root != ""
}

func (d *Daemon) devicesOn(s *rootSet) (names []string) {
	for _, v := range d.all() {
		v.mu.RLock()
		if v.on(s) {
			names = append(names, v.rec.Device.Name)
		}
		v.mu.RUnlock()
	}
	return names
}

// shareRoot lets all devices on the root of one that is live now know of the replicas that it has brought, and copies the image to this machine where that
// was asked for.
func (d *Daemon) shareRoot(v *device) {
	v.mu.RLock()
	root, hydrate := v.back.image(), v.rec.Device.Hydrate
	v.mu.RUnlock()
	if root == nil { // it may have been deleted meanwhile
		return
	}
	if err := d.recordRoot(root.set); err != nil {
		d.log.Warn("replicas are not on record everywhere; a restart may not know them all", "error", oneLine(err))
	}
	if hydrate {
		d.startHydration(root.set)
	}
}

// recordRoot writes the replicas of a root, as they are now, into the records of all devices on it.
func (d *Daemon) recordRoot(s *rootSet) error {
	return d.changeRecords(s, func(v *device) bool {
		before := v.rec.replicas()
		v.rec.setReplicas(v.back)
		return !slices.Equal(before, v.rec.replicas())
	})
}

// changeRecords changes the records of all devices on a root. change tells whether it has; it is called with the device's lock.
func (d *Daemon) changeRecords(s *rootSet, change func(*device) bool) error {
	d.roots.records.Lock()
	defer d.roots.records.Unlock()
	var errs []error
	for _, v := range d.all() {
		v.mu.Lock()
		changed, refs := false, v.rec.Device.roots()
		if v.on(s) && change(v) && v.state != StateDeleting { // who deletes it saves it, if it stays
			changed = true
			errs = append(errs, d.records.save(v.rec))
		}
		v.mu.Unlock()
		if changed {
			d.moveLeases(v, refs)
		}
	}
	return errors.Join(errs...)
}

// replicas is what a record says of them, to be compared.
func (r *record) replicas() (list []string) {
	for _, text := range r.Device.roots() {
		list = append(list, text+" "+r.Manifests[text].String())
	}
	return list
}

// ReplicateRequest asks for a copy of a device's root.
type ReplicateRequest struct {
	Dest string `json:"dest"`
}

// ReplicateEvent is one line of the answer: progress, or in the end Report.
type ReplicateEvent struct {
	Phase  string           `json:"phase,omitempty"` // copy, then verify
	Done   int64            `json:"done,omitempty"`  // bytes
	Total  int64            `json:"total,omitempty"`
	Report *ReplicateReport `json:"report,omitempty"`
}

// ReplicateReport tells what was copied.
type ReplicateReport struct {
	RootReport
	CopiedBytes int64 `json:"copied_bytes"`
	SharedBytes int64 `json:"shared_bytes"` // that were there
}

// ReplicateRoot copies the image that a device stands on to another place, reads all of the copy, and takes it as a replica for all devices on
// the same content. It goes on until ctx ends, and emit fails; what was copied then stays, for the next time.
func (d *Daemon) ReplicateRoot(ctx context.Context, name string, r ReplicateRequest, emit func(ReplicateEvent) error) error {
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer d.ops.Done()
	dest, err := checkDest(r.Dest)
	if err != nil {
		return err
	}
	if err := d.refuseOwn(rootPaths([]string{r.Dest})...); err != nil {
		return err
	}
	_, s, err := d.holdRoot(name)
	if err != nil {
		return err
	}
	defer func() { _ = d.roots.leave(s) }() // the device has it, or closes it
	if s.known()[r.Dest] {
		return fail(CodeNameTaken, replicasHint, "%s is a replica of it already", r.Dest)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(d.quit, cancel)
	defer stop()
	copied, err := d.copyAndVerify(ctx, s, dest, emit)
	if err != nil {
		if d.quit.Err() != nil {
			return fail(CodeStopping, "try again when it has been started again: what is done is not done twice", "the daemon is stopping")
		}
		return err
	}
	rep, err := d.AddRoot(ctx, name, RootRequest{r.Dest})
	if err != nil {
		return err
	}
	return emit(ReplicateEvent{Report: &ReplicateReport{rep, copied.CopiedBytes, copied.SharedBytes}})
}

// checkDest refuses what no image can be copied to.
func checkDest(text string) (image.Ref, error) {
	ref, err := checkReplica(text)
	if err != nil {
		return ref, err
	}
	if _, err := image.ParseDigest(ref.Name); err == nil {
		return ref, fail(CodeBadRequest, "write :TAG, not @sha256:…", "copy to %s: an image is copied to a tag", text)
	}
	if ref.Kind != image.KindLayout && ref.Kind != image.KindRegistry {
		return ref, fail(CodeBadRequest, "write oci:DIR:NAME:TAG or HOST/REPOSITORY:TAG", "copy to %s: a web server cannot be written to", text)
	}
	return ref, nil
}

// copyAttempts is how many replicas are tried: one may die while it is copied from. What was copied is not copied again.
const copyAttempts = 3

func (d *Daemon) copyAndVerify(ctx context.Context, s *rootSet, dest image.Ref, emit func(ReplicateEvent) error) (image.CopyReport, error) {
	source, err := d.cfg.Images.source()
	if err != nil {
		return image.CopyReport{}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tell := func(phase string) func(done, total int64) {
		pace := newPace()
		return func(done, total int64) {
			if pace.due() {
				if err := emit(ReplicateEvent{Phase: phase, Done: done, Total: total}); err != nil {
					cancel(clientGone(err))
				}
			}
		}
	}
	o := image.CopyOptions{Repair: dest.Kind == image.KindLayout, Progress: tell("copy")}
	report, err := copyTo(ctx, s, dest, source, o)
	for attempt := 1; err != nil && ctx.Err() == nil && attempt < copyAttempts; attempt++ {
		d.log.Warn("copy of a root tried again", "to", dest.String(), "error", oneLine(err))
		report, err = copyTo(ctx, s, dest, source, o)
	}
	for _, what := range report.Damaged {
		d.log.Warn("damaged, and not copied with the root", "to", dest.String(), "error", oneLine(errors.New(what)))
	}
	if err == nil {
		err = verifyCopy(ctx, s, dest, source, tell("verify"))
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return report, err
}

// copyTo copies from a replica that answers.
func copyTo(ctx context.Context, s *rootSet, dest image.Ref, source image.SourceOptions, o image.CopyOptions) (image.CopyReport, error) {
	dst, err := dest.Target(source)
	if err != nil {
		return image.CopyReport{}, fail(CodeFailed, "give a directory that can be written to, or a registry", "copy root: %w", err)
	}
	im, err := s.one()
	if err != nil {
		return image.CopyReport{}, errors.Join(err, dst.Close())
	}
	report, err := image.Copy(ctx, im, dst, dest.Name, o)
	return report, errors.Join(err, dst.Close())
}

// verifyCopy reads all of a copy.
func verifyCopy(ctx context.Context, s *rootSet, dest image.Ref, source image.SourceOptions, progress func(done, total int64)) error {
	im, src, err := image.OpenRef(ctx, dest, source)
	if err != nil {
		return fmt.Errorf("open the copy: %w", err)
	}
	defer func() { _ = errors.Join(im.Close(), src.Close()) }() // they were only read
	if im.ContentRoot() != s.ContentRoot() {
		return fail(CodeFailed, "see who else writes there, then try again", "the copy at %s holds %s, not %s", dest, im.ContentRoot(), s.ContentRoot())
	}
	report, err := image.Verify(ctx, im, progress)
	if err != nil {
		return err
	}
	if len(report.Problems) > 0 {
		return fail(CodeCorrupt, "see to the storage there, then try again", "the copy at %s is damaged: %s", dest, report.Problems[0])
	}
	return nil
}
