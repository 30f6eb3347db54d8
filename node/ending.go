package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// endingName is the file of a run directory that says that the machine goes down: there will be no next daemon. The unit's ExecStop makes it
// (systemd/root/usr/lib/coppice/before-stop).
const endingName = "ending"

// lastWait is how long devices in use are served on while the machine goes down, where the configuration does not say: systemd unmounts in the meantime, and
// what is still in use then is in use by processes that systemd ends only after its services.
const lastWait = time.Minute

// syncWait bounds the last attempt to write back what a file system has not written yet.
const syncWait = 20 * time.Second

// abortWait bounds how long the kernel may take to remove a device that is in use.
const abortWait = 20 * time.Second

var errEnding = errors.New("the machine goes down")

func (d *Daemon) endingPath() string { return filepath.Join(d.cfg.RunDir, endingName) }

// ending tells whether the machine goes down. A device that is left quiesced then would keep it from doing so.
func (d *Daemon) ending() bool {
	_, err := os.Stat(d.endingPath())
	return err == nil
}

// forgetEnding takes back what an earlier daemon was told.
func (d *Daemon) forgetEnding() error {
	if err := os.Remove(d.endingPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// dropInUse takes a device from those who have it in use, while the machine goes down. What its file systems have not written yet is written first, if that can be done.
func (d *Daemon) dropInUse(v *device, log *slog.Logger) {
	path := v.disk.Path()
	synced := make(chan struct{})
	go func() {
		defer close(synced)
		syncMounts(readUsage().mountsOf(path))
	}()
	select {
	case <-synced:
	case <-time.After(syncWait):
		log.Error("file systems on the device cannot be written back")
	}
	log.Error("DEVICE IS TAKEN FROM ITS USERS, as the machine goes down: from now on their I/O fails", "users", users(path))
	ctx, cancel := context.WithTimeout(context.Background(), abortWait)
	defer cancel()
	if err := v.disk.Abort(ctx); err != nil {
		log.Error("device not removed", "error", oneLine(err))
	}
}

// syncMounts writes back the file systems that are mounted at points.
func syncMounts(points []string) {
	for _, point := range points {
		fd, err := unix.Open(point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // unmounted meanwhile
		}
		if err := unix.Syncfs(fd); err != nil {
			slog.Warn("file system not written back", "mount", point, "error", err)
		}
		_ = unix.Close(fd)
	}
}
