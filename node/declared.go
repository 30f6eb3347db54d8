package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"coppice/image"
)

// DefaultDevicesPath is where devices are declared that are to be there whenever the daemon runs: NAME.toml declares device NAME.
const DefaultDevicesPath = "/etc/coppice/devices.d"

const (
	declarationSuffix = ".toml"
	// maxDeclaration is the size in bytes of the largest file that is read.
	maxDeclaration = 64 << 10
	// declaredPatience is how long the daemon's start waits for declared devices; those whose root or leaf is not there yet come later.
	declaredPatience = 30 * time.Second
)

// declaration is the content of a file that declares a device. Its keys are the flags of coppice create; what is left out has the same default.
type declaration struct {
	Root      any    `toml:"root,omitempty"`       // a reference, or a list of them, of replicas
	Leaf      string `toml:"leaf"`                 // absolute path of the leaf store
	Layer     string `toml:"layer,omitempty"`      // "" for the one named as the device
	From      string `toml:"from,omitempty"`       // sealed layer that a new one stands on
	Size      Bytes  `toml:"size,omitempty"`       // of the device
	Quota     Bytes  `toml:"quota,omitempty"`      // of a layer that is made
	Queues    int    `toml:"queues,omitempty"`     // hardware queues
	Depth     int    `toml:"depth,omitempty"`      // requests in flight per queue
	BlockSize Bytes  `toml:"block_size,omitempty"` // 512 or 4096
	ReadOnly  bool   `toml:"read_only,omitempty"`
	Hydrate   bool   `toml:"hydrate,omitempty"`
	ID        *int   `toml:"id,omitempty"` // N of /dev/ublkbN; nil for the lowest free one
}

// request makes of a declaration what [Daemon.Create] takes.
func (c declaration) request(name string) (CreateRequest, error) {
	r := CreateRequest{
		Name: name, Store: c.Leaf, Layer: c.Layer, From: c.From, SizeBytes: int64(c.Size), QuotaBytes: int64(c.Quota), Queues: c.Queues, Depth: c.Depth,
		BlockSize: int(c.BlockSize), ReadOnly: c.ReadOnly, Hydrate: c.Hydrate, ID: AutoID,
	}
	if c.ID != nil {
		r.ID = *c.ID
	}
	roots, err := texts(c.Root)
	if err != nil {
		return r, fail(CodeBadRoot, rootHint, "root: %w", err)
	}
	for _, text := range roots {
		ref, err := image.ParseRef(text)
		if err == nil {
			ref, err = ref.Abs()
		}
		if err != nil {
			return r, fail(CodeBadRoot, rootHint, "root: %w", err)
		}
		r.Roots = append(r.Roots, ref.String())
	}
	return r, nil
}

// declarationOf is the reverse of request, but for what a request leaves to the daemon.
func declarationOf(r CreateRequest) declaration {
	c := declaration{
		Leaf: r.Store, Layer: r.Layer, From: r.From, Size: Bytes(r.SizeBytes), Quota: Bytes(r.QuotaBytes), Queues: r.Queues, Depth: r.Depth,
		BlockSize: Bytes(r.BlockSize), ReadOnly: r.ReadOnly, Hydrate: r.Hydrate,
	}
	if roots := r.roots(); len(roots) > 0 {
		c.Root = roots
	}
	if r.ID != AutoID {
		c.ID = &r.ID
	}
	return c
}

// readDeclaration reads the file at path. A key that it does not know is an error.
func readDeclaration(path string) (c declaration, err error) {
	bad := func(format string, args ...any) (declaration, error) {
		return c, fail(CodeBadRequest, "correct the file; its keys are in docs/cli.md, section Files", "read "+path+": "+format, args...)
	}
	info, err := os.Stat(path)
	if err != nil {
		return bad("%w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxDeclaration {
		return bad("no regular file of at most %d bytes", maxDeclaration)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return bad("%w", err)
	}
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&c); err != nil {
		return bad("%s", tomlProblem(err))
	}
	if c.Leaf == "" {
		return bad("it names no leaf")
	}
	return c, nil
}

// texts takes a string or a list of strings.
func texts(value any) (list []string, err error) {
	switch v := value.(type) {
	case nil:
	case string:
		list = []string{v}
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("%v is no string", e)
			}
			list = append(list, s)
		}
	default:
		return nil, fmt.Errorf("%v is neither a string nor a list of strings", v)
	}
	return list, nil
}

// declarationPath returns where a device is declared, or "" where the daemon has no directory for that.
func (d *Daemon) declarationPath(name string) string {
	if d.cfg.DevicesPath == "" {
		return ""
	}
	return filepath.Join(d.cfg.DevicesPath, name+declarationSuffix)
}

// declared returns the path of the file that declares a device, or "" where none does.
func (d *Daemon) declared(name string) string {
	path := d.declarationPath(name)
	if path == "" {
		return ""
	}
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// declare writes the file that declares the device that r asks for. One that is there is not replaced.
func (d *Daemon) declare(r CreateRequest) error {
	path := d.declarationPath(r.Name)
	if path == "" {
		return fail(CodeBadRequest, "leave --save out, or set devices in the daemon's configuration", "the daemon has no directory of declared devices")
	}
	if d.declared(r.Name) != "" {
		return fail(CodeNameTaken, "remove or change that file, or leave --save out", "%s declares a device of that name already", path)
	}
	data, err := toml.Marshal(declarationOf(r))
	if err == nil {
		err = os.MkdirAll(d.cfg.DevicesPath, 0o755)
	}
	if err == nil {
		err = writeAtomically(path, data)
	}
	if err != nil {
		return fmt.Errorf("declare device: %w", err)
	}
	return nil
}

// makeDeclared makes the declared devices that are not there, and returns when each has been tried or [declaredPatience] is over. A device that
// cannot be made is listed as failed, and keeps no other from being made.
func (d *Daemon) makeDeclared() {
	names, err := d.declaredNames()
	if err != nil {
		d.log.Error("declared devices not made", "error", err)
	}
	tried := make(chan struct{})
	go func() {
		defer close(tried)
		var list []*device
		for _, name := range names {
			if v := d.enterDeclared(name); v != nil {
				list = append(list, v)
			}
		}
		forEach(list, d.tryDeclared)
	}()
	select {
	case <-tried:
	case <-d.quit.Done():
	case <-time.After(declaredPatience):
		d.log.Warn("declared devices take long; the daemon is ready without them")
	}
}

func (d *Daemon) declaredNames() (names []string, err error) {
	if d.cfg.DevicesPath == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(d.cfg.DevicesPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read declared devices: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), declarationSuffix)
		switch {
		case !ok:
		case ValidName(name):
			names = append(names, name)
		default:
			d.log.Error("file of a declared device left out: its name is no device's", "file", e.Name(), "hint", NameHint)
		}
	}
	return names, nil
}

// enterDeclared puts a declared device into the table, as failed where its file is wrong. It returns the device that is to be made: nil where there is one
// of that name, or nothing can be made.
func (d *Daemon) enterDeclared(name string) *device {
	c, err := readDeclaration(d.declarationPath(name))
	var r CreateRequest
	if err == nil {
		r, err = c.request(name)
	}
	v := &device{state: StateCreating, declared: &r, rec: newRecord(r, d.bootID)}
	if err != nil {
		v.state, v.err = StateFailed, fmt.Errorf("declared device %s: %w", name, err)
		v.declared, v.rec.Device = &CreateRequest{}, CreateRequest{Name: name, ID: AutoID}
	}
	if !d.enter(name, v) {
		return nil
	}
	if err != nil {
		d.log.Error("declared device not made", "device", name, "error", oneLine(err), "hint", Explain(err).Hint)
		return nil
	}
	return v
}

// enter puts a declared device into the table, unless there is one of that name beside what an earlier try has left.
func (d *Daemon) enter(name string, v *device) bool {
	d.mu.Lock()
	old := d.devices[name]
	d.mu.Unlock()
	if old != nil && !old.failedDeclared() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.devices[name] != old {
		return false
	}
	d.devices[name] = v
	return true
}

// tryDeclared makes a declared device that has been entered, or lists it as failed.
func (d *Daemon) tryDeclared(v *device) {
	log := d.log.With("device", v.declared.Name)
	if err := d.begin(d.quit); err != nil {
		v.failAgain(err)
		return
	}
	defer d.ops.Done()
	if err := d.buildDeclared(v); err != nil {
		err = fmt.Errorf("declared device %s: %w", v.declared.Name, err)
		d.dropIDs(v.declared.Name)
		if v.failAgain(err) {
			log.Error("declared device not made; tried again every few seconds", "error", oneLine(err), "hint", Explain(err).Hint)
		}
		return
	}
	log.Info("declared device made", "path", diskPath(v.record().Device.ID))
}

func (d *Daemon) buildDeclared(v *device) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.quit), d.cfg.operationTime())
	defer cancel()
	r, err := d.cfg.Device.resolve(*v.declared)
	if err != nil {
		return err
	}
	if err := d.refuseOwn(append(rootPaths(r.roots()), r.Store)...); err != nil {
		return err
	}
	v.mu.Lock()
	v.rec = newRecord(r, d.bootID)
	v.mu.Unlock()
	return d.build(ctx, v, time.Now())
}

// failedDeclared tells whether the device was declared and could not be made.
func (v *device) failedDeclared() bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.declared != nil && v.state == StateFailed && v.rec.Phase != phaseActive
}

// failAgain lists a declared device as failed, as it was asked for, and tells whether that is for another reason than before.
func (v *device) failAgain(err error) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	news := v.err == nil || v.err.Error() != err.Error()
	v.state, v.err, v.disk, v.rec.Device = StateFailed, err, nil, *v.declared
	return news
}

// retryDeclared makes declared devices whose root or leaf was not there when the daemon started. What is wrong with a file itself is corrected there, and read by
// the next start or [Daemon.Reload].
func (d *Daemon) retryDeclared() {
	for pause(d.quit, restoreRetry); d.quit.Err() == nil; pause(d.quit, restoreRetry) {
		list := slices.DeleteFunc(d.all(), func(v *device) bool { return !v.failedDeclared() || v.declared.Name == "" })
		forEach(list, func(v *device) {
			if v.enter(StateCreating, StateFailed) == nil {
				d.tryDeclared(v)
			}
		})
	}
}
