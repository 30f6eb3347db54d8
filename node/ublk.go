package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"time"

	"coppice/ebpf"
	"coppice/ublk"
)

// UblkDriver is the [Driver] of the kernel's ublk devices. Its methods may be called from any
// goroutine.
type UblkDriver struct {
	log      *slog.Logger
	control  *ublk.Control
	reactors *ublk.Reactors
}

var _ Driver = (*UblkDriver)(nil)

// OpenUblk reaches the kernel's driver, loading its module where it is not loaded. It fails with
// [ublk.ErrNoDriver] or [ublk.ErrPermission].
func OpenUblk(log *slog.Logger) (*UblkDriver, error) {
	control, err := ublk.Open("")
	if errors.Is(err, ublk.ErrNoDriver) {
		loadModule(log)
		control, err = ublk.Open("")
	}
	if err != nil {
		return nil, err
	}
	reactors, err := ublk.NewReactors(ublk.ReactorConfig{})
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	log.Info("ublk driver found", "features", control.Features().String())
	return &UblkDriver{log: log, control: control, reactors: reactors}, nil
}

// loadModule asks modprobe for the driver. Whether it came is seen by opening it.
func loadModule(log *slog.Logger) {
	const patience = 20 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "modprobe", "ublk_drv").CombinedOutput()
	if err != nil {
		log.Warn("ublk_drv not loaded", "error", err, "modprobe", string(out))
		return
	}
	log.Info("module ublk_drv loaded")
}

// Close ends the threads that serve devices, after which the kernel sees what was detached as
// quiesced, and lets the driver go.
func (u *UblkDriver) Close() error {
	return errors.Join(u.reactors.Close(), u.control.Close())
}

// Create makes a device. Where the kernel cannot recover it as asked for, it is made without.
func (u *UblkDriver) Create(ctx context.Context, p ublk.Params, h ublk.Handler) (Disk, error) {
	if why := u.notRecoverable(p); why != "" {
		u.log.Warn("device will not outlive the daemon: stop the daemon only when it is not in use",
			"path", diskPath(p.ID), "reason", why)
		p.Recoverable = false
	}
	d, err := u.control.Create(ctx, p, h, u.reactors)
	if err != nil {
		return nil, err
	}
	return ublkDisk{d}, nil
}

// notRecoverable says why a device cannot be left to a successor, or "".
func (u *UblkDriver) notRecoverable(p ublk.Params) string {
	have := u.control.Features()
	switch {
	case !have.Has(ublk.FeatureRecovery | ublk.FeatureReissue):
		return "this kernel's driver has no recovery"
	case p.Queues > 1 && !have.Has(ublk.FeaturePerIODaemon):
		return fmt.Sprintf("it has %d queues, and kernels before 6.16 recover one only", p.Queues)
	}
	return ""
}

// Recover takes up a quiesced device.
func (u *UblkDriver) Recover(ctx context.Context, id int, h ublk.Handler) (Disk, error) {
	d, err := u.control.Recover(ctx, id, h, u.reactors)
	if err != nil {
		return nil, err
	}
	return ublkDisk{d}, nil
}

// ublkDisk is a device of the kernel's driver.
type ublkDisk struct{ *ublk.Device }

// Identity looks the disk up in /sys.
func (d ublkDisk) Identity() (ebpf.DiskID, error) {
	return ebpf.DiskIDOf("/sys", filepath.Base(d.Path()))
}

// Kernel lists the devices of the machine.
func (u *UblkDriver) Kernel(ctx context.Context) ([]KernelDevice, error) {
	infos, err := u.control.List(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]KernelDevice, len(infos))
	for i, info := range infos {
		list[i] = KernelDevice{ID: info.ID, Token: info.ServerData, PID: info.PID, Dead: info.State == ublk.StateDead}
	}
	return list, nil
}

// Remove removes a device that nobody serves.
func (u *UblkDriver) Remove(ctx context.Context, id int) error { return u.control.Remove(ctx, id) }
