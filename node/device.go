package node

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"coppice/union"
)

// device is one entry of the daemon's table.
type device struct {
	// use is held for reading by calls that work on what lies below the device, and may wait for its store; who closes that holds it
	// for writing. It is taken before mu.
	use sync.RWMutex

	mu       sync.RWMutex // guards what follows; nothing slow is done under it, because a list of all devices takes it
	state    State
	rec      record
	err      error    // why it failed
	disk     Disk     // set while live, deleting or stopping
	back     *backing // with disk, and where a recovery failed: see serveAgain
	restored *time.Time
	declared *CreateRequest // what a declaration asks for, with no name where its file is wrong; nil where there is none. Never changes
}

// enter moves the device from one of the states in from to the state to, and fails with
// what it is doing instead.
func (v *device) enter(to State, from ...State) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, s := range from {
		if v.state == s {
			v.state = to
			return nil
		}
	}
	return fail(CodeBusy, "wait for that to end; `coppice list` shows it", "device %s is %s", v.rec.Device.Name, v.state)
}

func (v *device) setLive(disk Disk, back *backing, rec record) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state, v.err, v.disk, v.back, v.rec = StateLive, nil, disk, back, rec
}

func (v *device) setFailed(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state, v.err, v.disk = StateFailed, err, nil
}

func (v *device) setState(s State) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.state = s
}

// closeBacking closes what lies below the stopped or detached disk.
func (v *device) closeBacking() error {
	v.use.Lock()
	defer v.use.Unlock()
	v.mu.Lock()
	back := v.back
	v.disk, v.back = nil, nil
	v.mu.Unlock()
	if back == nil {
		return nil
	}
	return back.close()
}

func (v *device) setID(id int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rec.Device.ID = id
}

func (v *device) record() record {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.rec
}

func (v *device) current() State {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.state
}

// inspect is report with statistics and the state of the store, which it may have to wait for.
func (v *device) inspect(u usage) Device {
	v.use.RLock()
	defer v.use.RUnlock()
	d := v.report(u)
	v.mu.RLock()
	disk, back := v.disk, v.back
	v.mu.RUnlock()
	if back != nil && back.device != nil {
		if root := back.image(); root != nil {
			d.Root.Replicas, d.Root.Hydration = root.set.report()
			d.Root.ChunkSize = root.set.ChunkSize()
			d.Cache = root.stats()
		}
		stats, info := back.device.Stats(), back.store.Info()
		d.Stats, d.Leaf.Info = &stats, &info
	}
	if disk != nil {
		d.InFlight = inFlight(disk)
	}
	return d
}

// report describes the device and waits for nothing.
func (v *device) report(u usage) Device {
	v.mu.RLock()
	defer v.mu.RUnlock()
	r := v.rec.Device
	d := Device{
		Name: r.Name, State: v.state, ID: r.ID, SizeBytes: r.SizeBytes, BlockSize: r.BlockSize,
		Queues: r.Queues, Depth: r.Depth, ReadOnly: r.ReadOnly,
		Root:    Root{Path: r.Root, Refs: r.Roots},
		Leaf:    Leaf{Store: r.Store, Layer: r.Layer},
		Created: v.rec.Created, CreateMS: v.rec.CreateMS, Restored: v.restored,
	}
	if r.ID >= 0 {
		d.Path = diskPath(r.ID)
	}
	if v.err != nil {
		e := Explain(v.err)
		d.Error, d.Hint = e.Message, e.Hint
	}
	if v.disk != nil {
		d.setParams(v.disk)
	}
	if v.back != nil && v.back.device != nil {
		if pin := v.back.layer.Pin(); pin.Kind != union.PinNone {
			d.Root.setPin(pin)
		} else {
			d.Root = Root{}
		}
		d.Leaf.setSpace(v.back.layer)
	}
	if d.Path != "" {
		d.Holders = u.holders(d.Path)
	}
	return d
}

// inFlight asks the threads that serve the disk; it returns nil where they are gone.
func inFlight(disk Disk) *InFlight {
	n := disk.InService()
	oldest, ok, err := disk.Oldest()
	if n < 0 || err != nil {
		return nil
	}
	in := &InFlight{Requests: n}
	if ok {
		in.Oldest = &OldestRequest{
			Op: oldest.Op.String(), Off: oldest.Off, Len: oldest.Len,
			AgeNanos: oldest.Age.Nanoseconds(), TargetIO: oldest.TargetIO, Waits: oldest.Waits,
		}
	}
	return in
}

func (l *Leaf) setSpace(layer *union.Layer) {
	store, quota, bytes := layer.Space()
	l.StoreSpace, l.Quota, l.QuotaBytes = &store, quota, bytes
}

func (r *Root) setPin(p union.Pin) {
	r.SizeBytes, r.Content, r.Verified = p.SizeBytes, hex.EncodeToString(p.Digest[:]), p.Kind == union.PinImage
	if p.ModTime != 0 {
		t := time.Unix(0, p.ModTime).UTC()
		r.Modified = &t
	}
}

// setParams replaces what was asked for by what the kernel made of it.
func (d *Device) setParams(disk Disk) {
	p := disk.Params()
	d.ID, d.Path = disk.ID(), disk.Path()
	d.SizeBytes, d.BlockSize, d.Queues, d.Depth, d.ReadOnly = p.SizeBytes, p.BlockSize, p.Queues, p.Depth, p.ReadOnly
	d.Recoverable = p.Recoverable
}

func diskPath(id int) string { return fmt.Sprintf("/dev/ublkb%d", id) }

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// ValidName tells whether a device may be called so: its name becomes a file name and a layer name.
func ValidName(name string) bool { return validName.MatchString(name) }

// NameHint says what [ValidName] takes.
const NameHint = "a name begins with a letter or digit, goes on with letters, digits, '.', '_' or '-', and has at most 63 characters"

// resolve checks a request by itself and fills in the defaults.
func (c DeviceConfig) resolve(r CreateRequest) (CreateRequest, error) {
	setDefault(&r.Layer, r.Name)
	setDefault(&r.Queues, c.Queues)
	setDefault(&r.Depth, c.Depth)
	setDefault(&r.BlockSize, c.BlockSize)
	bad := func(hint, format string, args ...any) (CreateRequest, error) {
		return r, fail(CodeBadRequest, hint, format, args...)
	}
	switch {
	case !ValidName(r.Name):
		return bad(NameHint, "%q is no device name", r.Name)
	case !filepath.IsAbs(r.Store):
		return bad("give an absolute path", "leaf store %q is not an absolute path", r.Store)
	case r.QuotaBytes < 0 || r.QuotaBytes > 0 && r.QuotaBytes < minQuota:
		return bad(quotaHint, "a quota of %d bytes is less than a block", r.QuotaBytes)
	case r.SizeBytes < 0 || r.SizeBytes%int64(r.BlockSize) != 0:
		return bad("choose a multiple of the block size", "a size of %d bytes is not a multiple of %d", r.SizeBytes, r.BlockSize)
	case r.ID < AutoID:
		return bad("leave it out for the lowest free one", "device number %d is negative", r.ID)
	case r.ID > maxID:
		return bad("", "device number %d is over %d", r.ID, maxID)
	}
	if err := checkGeometry(r.Queues, r.Depth, r.BlockSize); err != nil {
		return bad("", "%w", err)
	}
	if r.Root != "" && len(r.Roots) > 0 && r.Root != r.Roots[0] {
		return bad("give the first one in roots, or not at all", "root %s is not the first of the roots", r.Root)
	}
	if err := checkRoots(r.roots()); err != nil {
		return r, err
	}
	r.setRoots(r.roots())
	if r.Hydrate && (r.Root == "" || rootIsRaw(r.Root)) {
		return bad("make an image of it: coppice image build; or copy the disk by other means", "only an image is copied to this machine, not a raw disk")
	}
	if err := union.ValidLayerName(r.Layer); err != nil {
		return bad("choose another layer: --leaf STORE:LAYER", "%w", err)
	}
	if r.From != "" {
		if err := checkFrom(r.From); err != nil {
			return r, err
		}
	}
	return r, checkPaths(r)
}

func checkFrom(from string) error {
	if err := union.ValidLayerName(from); err != nil {
		return fail(CodeBadRequest, "`coppice store info STORE` lists the layers", "%w", err)
	}
	if strings.HasPrefix(from, exportPrefix) {
		return fail(CodeBadRequest, "freeze its device under a name of its own: coppice freeze NAME --as LAYER",
			"layer %q is of an export, which takes it back", from)
	}
	return nil
}

// maxID is the highest number that the driver accepts (UBLK_MINORS in
// drivers/block/ublk_drv.c, Linux 6.12, one minor number each).
const maxID = 1<<20 - 1

func checkPaths(r CreateRequest) error {
	if isDir(r.Store) {
		return fail(CodeBadLeaf, "--leaf takes the path of a leaf store, made by coppice store format", "leaf %s is a directory", r.Store)
	}
	for _, path := range rootPaths(r.roots()) {
		if sameFile(path, r.Store) {
			return fail(CodeBadRequest, "root and leaf can be two partitions of one disk, not the same one",
				"root %s and leaf %s are the same file", path, r.Store)
		}
	}
	if _, err := os.Stat(r.Store); os.IsNotExist(err) {
		return fail(CodeBadLeaf, "make it first: coppice store format "+r.Store+" (with --size for a file)", "open leaf: %w", err)
	}
	return nil
}
