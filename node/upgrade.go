package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coppice/ebpf"
	"coppice/image"
	"coppice/internal/resident"
	"coppice/ublk"
)

// RecordFormat is the version of the records by which this program takes devices over. A program takes them from a daemon
// of the same one.
const RecordFormat = recordVersion

// ProgramVersion is what coppice version -o json says about a program.
type ProgramVersion struct {
	Version string `json:"version"`
	API     string `json:"api"`
	// Records is the [RecordFormat]; 0 for programs that cannot take devices over.
	Records int `json:"records"`
}

// UpgradeRequest asks the daemon to hand its devices over to another program.
type UpgradeRequest struct {
	ID string `json:"id"` // of the attempt, as the caller likes
	FD int    `json:"fd"` // descriptor, in the caller's process, of a sealed file in memory with the program
}

// UpgradeOutcome is how far an upgrade has come.
type UpgradeOutcome string

// The outcomes of upgrades.
const (
	UpgradeBegun    UpgradeOutcome = "begun"
	UpgradeDone     UpgradeOutcome = "done"
	UpgradeWentBack UpgradeOutcome = "went back" // the new program ended, and the former one serves again, or what a service starts
	UpgradeStopped  UpgradeOutcome = "stopped"   // the daemon was stopped afterwards; only its run directory says so
)

// Upgrade tells of the last upgrade of a daemon.
type Upgrade struct {
	ID      string         `json:"id"`
	From    string         `json:"from"`
	To      string         `json:"to"`
	Outcome UpgradeOutcome `json:"outcome"`
	// StallMS is for how long no device was served, in milliseconds; 0 until that is known.
	StallMS float64 `json:"stall_ms"`
	// Steps are what that time went to, in the order in which it was done.
	Steps []UpgradeStep `json:"steps,omitempty"`
}

// UpgradeStep is a part of the time for which no device is served.
type UpgradeStep struct {
	Name string  `json:"name"`
	MS   float64 `json:"ms"`
}

// The steps of a hand-over.
const (
	stepRequests = "requests" // the former program ends what is in service
	stepDriver   = "driver"   // it ends its threads, and the kernel has the devices quiesced; missing where something was in service still
	stepStores   = "stores"   // it closes its leaf stores and its cache
	stepProgram  = "program"  // the new program is executed, reads its configuration, locks its memory and reaches the driver
	stepDevices  = "devices"  // it opens roots and leaf stores, and the kernel gives it the devices
)

const upgradeName = "upgrade.json"

// handover is the file by which a new program knows that it follows another one.
type handover struct {
	Upgrade
	BootID  string        `json:"boot_id"`
	Began   time.Duration `json:"began"` // of the stall, on the clock of [now]
	Program fileID        `json:"program"`
	// Known is the metadata of the images that are open, by digest: roots are opened again without waiting for their servers.
	Known map[image.Digest][]byte `json:"known,omitempty"`
	// Latency are the maps that requests are measured with, where they are.
	Latency *ebpf.Inherited `json:"latency,omitempty"`
}

// step notes that a step has just ended.
func (h *handover) step(name string) {
	const perMS = 1000 // the clock is shown in µs
	took := milliseconds(now() - h.Began)
	for _, s := range h.Steps {
		took -= s.MS
	}
	h.Steps = append(h.Steps, UpgradeStep{name, math.Round(took*perMS) / perMS})
}

// fileID tells a file in memory from all others of this boot.
type fileID struct{ Device, Inode uint64 }

func idOf(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileID{st.Dev, st.Ino}, nil
}

// now is a clock that two programs share.
func now() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // fails for unknown clocks only
	return time.Duration(t.Nano())
}

func (d *Daemon) upgradePath() string { return filepath.Join(d.cfg.RunDir, upgradeName) }

func readHandover(path string) (h handover, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &h)
	}
	if err != nil {
		return handover{}, fmt.Errorf("read what the last upgrade left: %w", err)
	}
	return h, nil
}

// UpgradeIsOver tells whether nobody has to come back for an upgrade whose daemon has ended: that daemon was stopped, as somebody wished, or went on by another upgrade.
func UpgradeIsOver(runDir, id string) bool {
	h, err := readHandover(filepath.Join(runDir, upgradeName))
	return err == nil && (h.ID != id || h.Outcome == UpgradeStopped)
}

// loadUpgrade finds out whether this daemon follows another one, or comes back for it.
func (d *Daemon) loadUpgrade() error {
	h, err := readHandover(d.upgradePath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	own, err := idOf(resident.Self)
	switch {
	case err != nil:
		return err
	case h.BootID != d.bootID:
		return os.Remove(d.upgradePath())
	case h.Outcome == UpgradeStopped: // a guard may have yet to read it
		return nil
	case h.Program == own && h.Outcome == UpgradeBegun:
		d.follows = &h
	case h.Program != own && (h.From == d.cfg.Version || h.Outcome == UpgradeBegun):
		h.Outcome = UpgradeWentBack
		d.log.Error("THE NEW PROGRAM OF AN UPGRADE HAS ENDED: this is another one again", "from", h.From, "to", h.To, "version", d.cfg.Version)
	}
	last := h.Upgrade // of d.follows, more becomes known
	d.upgraded = &last
	return nil
}

// endUpgrade is called when all devices have been taken up.
func (d *Daemon) endUpgrade() {
	if d.follows == nil {
		return
	}
	d.mu.Lock()
	d.follows.step(stepDevices)
	d.follows.Outcome, d.follows.StallMS = UpgradeDone, milliseconds(now()-d.follows.Began)
	done := d.follows.Upgrade
	d.upgraded = &done
	d.mu.Unlock()
	attrs := []any{"from", done.From, "to", done.To, "stall_ms", done.StallMS}
	for _, s := range done.Steps {
		attrs = append(attrs, s.Name+"_ms", s.MS)
	}
	d.log.Info("devices taken over from another program", attrs...)
	d.follows.Known, d.follows.Latency = nil, nil
	d.roots.learn(nil)
	if err := d.saveHandover(d.follows); err != nil {
		d.log.Warn("end of the upgrade not recorded", "error", err)
	}
}

// stopUpgrade notes that the daemon is stopped: who comes next follows no upgrade, and a guard of the last one has nothing to do.
func (d *Daemon) stopUpgrade() {
	if d.follows == nil {
		_ = os.Remove(d.upgradePath())
		return
	}
	d.follows.Outcome = UpgradeStopped
	if err := d.saveHandover(d.follows); err != nil {
		d.log.Warn("a guard of the last upgrade may start the former program", "error", err)
	}
}

func (d *Daemon) saveHandover(h *handover) error {
	data, err := json.Marshal(h)
	if err == nil {
		err = writeAtomically(d.upgradePath(), data)
	}
	if err != nil {
		return fmt.Errorf("record upgrade: %w", err)
	}
	return nil
}

// LastUpgrade tells of the last upgrade in this run directory, if the daemon came by it.
func (d *Daemon) LastUpgrade() *Upgrade {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.upgraded
}

// Successor is, when [Daemon.Run] has returned, the program that this process is to execute, with the arguments that it has, or nil where
// it is to end. The devices wait until then. The caller owns it.
func (d *Daemon) Successor() *os.File {
	if d.successor == nil {
		return nil
	}
	return d.successor.program
}

// successor is what an upgrade has been asked for.
type successor struct {
	program *os.File
	handover
}

// upgrade answers before anything is handed over: that begins when no call is answered any more.
func (s *server) upgrade(w http.ResponseWriter, r *http.Request) {
	p, ok := peerOf(r.Context())
	if !ok || !p.mayChange() {
		s.fail(w, fail(CodeForbidden, "run it as root", "user %d may not upgrade the daemon", p.uid))
		return
	}
	var req UpgradeRequest
	if err := decodeBody(r.Body, &req); err != nil {
		s.fail(w, Explain(err))
		return
	}
	u, err := s.d.Upgrade(r.Context(), int(p.pid), req)
	if err != nil {
		s.fail(w, Explain(err))
		return
	}
	s.answer(w, http.StatusOK, u)
}

// Upgrade makes Run hand the devices over to a program that process pid has open. It fails, and nothing has changed, where that is
// none that can take them over, or devices cannot be left.
func (d *Daemon) Upgrade(ctx context.Context, pid int, r UpgradeRequest) (Upgrade, error) {
	if err := d.mayHandOver(ctx); err != nil {
		return Upgrade{}, err
	}
	defer d.ops.Done()
	program, err := sealedFile(pid, r.FD)
	if err != nil {
		return Upgrade{}, fail(CodeBadRequest, "run coppice upgrade BINARY on this machine", "take program of process %d: %w", pid, err)
	}
	next := &successor{program: program}
	v, err := CheckProgram(ctx, program)
	if err == nil {
		next.Program, err = idOf(resident.Path(program))
	}
	if err != nil {
		return Upgrade{}, errors.Join(err, program.Close())
	}
	next.Upgrade = Upgrade{ID: r.ID, From: d.cfg.Version, To: v.Version, Outcome: UpgradeBegun}
	next.BootID = d.bootID
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopping || d.successor != nil {
		return Upgrade{}, errors.Join(fail(CodeStopping, "try again when it serves again", "the daemon is stopping"), program.Close())
	}
	d.successor = next
	close(d.handOver)
	return next.Upgrade, nil
}

// mayHandOver admits an upgrade as begin does other operations, where all devices can be left.
func (d *Daemon) mayHandOver(ctx context.Context) error {
	if err := d.cfg.MayHandOver(); err != nil {
		return fmt.Errorf("hand devices over: %w", err)
	}
	if err := d.begin(ctx); err != nil {
		return err
	}
	for _, v := range d.all() {
		if err := v.mayBeLeft(); err != nil {
			d.ops.Done()
			return err
		}
	}
	return nil
}

// mayBeLeft tells what keeps the device from being handed over.
func (v *device) mayBeLeft() error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	name := v.rec.Device.Name
	switch {
	case v.state == StateFailed:
		return nil
	case v.state != StateLive:
		return fail(CodeBusy, "wait for that to end; `coppice list` shows it", "hand devices over: device %s is %s", name, v.state)
	case !v.disk.Params().Recoverable:
		return fail(CodeInUse, "unmount and delete it, upgrade, and create it again", "hand devices over: the kernel cannot leave %s to another program", name)
	}
	return nil
}

// sealedFile opens what process pid has open as fd, which nobody can change any more.
func sealedFile(pid, fd int) (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if err != nil {
		return nil, err
	}
	const want = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&want != want {
		return nil, errors.Join(errors.New("it is no sealed file in memory"), f.Close())
	}
	return f, nil
}

// CheckProgram runs a program to find out whether it is of Coppice and takes devices over from this one.
func CheckProgram(ctx context.Context, program *os.File) (ProgramVersion, error) {
	const limit = 30 * time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, resident.Path(program), "--run-dir", "/nonexistent", "version", "-o", "json")
	cmd.Args[0], cmd.Dir, cmd.Env = "coppice", "/", []string{}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	const hint = "give the binary of a release for this machine: coppice upgrade BINARY"
	var v ProgramVersion
	if err != nil {
		return v, fail(CodeBadRequest, hint, "check the program (coppice version -o json): %w: %s", err, oneLine(errors.New(said.String())))
	}
	if err := json.Unmarshal(out, &v); err != nil || v.Version == "" {
		return v, fail(CodeBadRequest, hint, "check the program (coppice version -o json): it answers %.100q", out)
	}
	if v.Records != RecordFormat {
		return v, fail(CodeVersion, "stop the devices, and start the daemon of the other version",
			"version %s takes devices over by records of format %d, this daemon has format %d", v.Version, v.Records, RecordFormat)
	}
	return v, nil
}

// leaveTime is how long requests that a device has may take to end when it is handed over, where the configuration does not say. They are reads and writes that
// the kernel does already: the next program would have to wait for them as well. What is left then is served again by it, as after the death of this one.
const leaveTime = 5 * time.Second

// leaveAll hands all devices over. All that may take long comes before they are left.
func (d *Daemon) leaveAll(srv *server) {
	d.mu.Lock()
	d.stopping = true
	d.mu.Unlock()
	d.stopWork()
	d.ops.Wait()
	d.prepareEnd()
	err := errors.Join(d.cfg.BeforeHandOver(d.successor.ID), srv.close(), d.metrics.close())
	if err != nil {
		d.log.Warn("hand-over not prepared as wished; going on", "error", err)
	}
	d.stores.prepareClose() // what has changed since
	h := &d.successor.handover
	h.Known, h.Latency = d.roots.metadata(), d.latency.keepForExec()
	h.Began = now()
	save := func() {
		if err := d.saveHandover(h); err != nil {
			d.log.Warn("the next program will not know what it follows", "error", err)
		}
	}
	save()
	defer save() // with the steps
	left, whole := d.detachAll()
	h.step(stepRequests)
	var errs []error
	if whole { // else threads serve still, and end with this program
		errs = append(errs, d.driver.Close())
		h.step(stepDriver)
	}
	errs = append(errs, d.closeLeaves(left)...)
	if whole { // else it is being read through
		errs = append(errs, d.cache.close())
	}
	h.step(stepStores)
	if err := errors.Join(errs...); err != nil {
		d.log.Warn("not all was closed well before the hand-over", "error", oneLine(err))
	}
}

// detachAll leaves the devices that are served, all at once, and returns those that nothing of is in service any more; whole tells whether these are all. It tells
// of each of the others what it had to wait for.
func (d *Daemon) detachAll() (left []*device, whole bool) {
	ctx, cancel := context.WithTimeout(context.Background(), d.cfg.LeaveTime)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex // of what is returned
	whole = true
	for _, v := range d.all() {
		if v.enter(StateStopping, StateLive) != nil {
			continue
		}
		wg.Go(func() {
			err := d.detachOne(ctx, v)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				whole = false
				return
			}
			left = append(left, v)
		})
	}
	wg.Wait()
	return left, whole
}

// detachOne leaves a device, and says what holds that up while it goes on.
func (d *Daemon) detachOne(ctx context.Context, v *device) error {
	log := d.log.With("device", v.record().Device.Name, "path", v.disk.Path(), "step", stepRequests)
	quiet := noticeSlow(d.cfg.LeaveTime/leaveNotices, func(waited time.Duration) {
		const patience, most = time.Second, 4
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		list, err := v.disk.Requests(ctx)
		attrs := []any{"ms", waited.Milliseconds(), "in_service", len(list), "requests", ublk.DescribeRequests(list, most)}
		if err != nil {
			attrs = append(attrs, "error", oneLine(err))
		}
		log.Warn("device not left yet: it has requests still", attrs...)
	})
	defer quiet()
	err := v.disk.Detach(ctx)
	if err != nil {
		log.Error("DEVICE NOT LEFT IN TIME: the next program takes it up as after a crash", "error", oneLine(err))
	}
	return err
}

// leaveNotices is how often it is told, within the time that there is, what a device that is being left waits for.
const leaveNotices = 5

// prepareEnd does ahead, while the devices are served on, what the end of roots, cache and stores would take long for.
func (d *Daemon) prepareEnd() {
	forEach(d.all(), func(v *device) {
		if root := v.imageRoot(); root != nil {
			root.endRecord()
			root.set.hydrate.stop()
			root.set.replay.stop()
		}
	})
	if err := d.cache.stopGiving(); err != nil {
		d.log.Warn("cache not closed well before the hand-over: it may know less afterwards", "error", oneLine(err))
	}
	d.stores.prepareClose()
}

// prepareClose brings all open stores, which are not scrubbed any more from then on, close to the state that they are closed in.
func (s *stores) prepareClose() {
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.open))
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, st := range all {
		wg.Go(func() {
			st.mu.Lock()
			defer st.mu.Unlock()
			if st.Store == nil {
				return
			}
			st.scrubber.stop()
			if err := st.PrepareClose(); err != nil {
				s.log.Warn("end of a store not prepared before the hand-over", "error", err)
			}
		})
	}
	wg.Wait()
}
