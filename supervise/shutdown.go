package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"coppice/internal/resident"
)

// ShutdownDir is where systemd looks for what it changes to when it has ended everything else (systemd-shutdown(8)).
const ShutdownDir = "/run/initramfs"

const (
	shutdownProgram = "shutdown"
	oldRoot         = "/oldroot"
	runDirFile      = "run-dir" // has the run directory of the root's daemon
	// shellFile is what dracut-initramfs-restore looks for before it unpacks an initramfs over the program: it does not where this exists.
	shellFile = "bin/sh"
)

// InstallShutdown makes dir, which is [ShutdownDir] but in tests, a small root file system in memory that [Shutdown] runs in: a copy of
// this program, called shutdown, which releases the devices of runDir. Of an initramfs, that of dracut included, nothing else is needed then: dracut would
// have to find the whole of it again in the root's /boot, which a machine that boots from a network need not have.
func InstallShutdown(dir, runDir string) error {
	if err := installShutdown(dir, runDir); err != nil {
		return fmt.Errorf("install shutdown in %s: %w", dir, err)
	}
	return nil
}

func installShutdown(dir, runDir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := mountMemory(dir); err != nil { // what /run is mounted with forbids programs
		return err
	}
	for _, path := range append(slices.Clone(kernelDirs), oldRoot, "/tmp", "/bin") {
		if err := os.MkdirAll(dir+path, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, shellFile), nil, 0o444); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, runDirFile), []byte(runDir), 0o644); err != nil {
		return err
	}
	left := int64(maxFiles) * 2
	return copyFile(resident.Self, filepath.Join(dir, shutdownProgram), 0o755, &left)
}

// How long the parts of a shutdown may take; together they are what a shutdown lasts at most.
const (
	unmountTime = 20 * time.Second
	releaseTime = 60 * time.Second
	inUseTime   = 30 * time.Second // of releaseTime: processes that were killed take their mount namespaces, in which the root is still mounted, with them only when they have ended
	syncTime    = 20 * time.Second
)

// verbs are what systemd wants done in the end (reboot(2)).
var verbs = map[string]int{
	"poweroff": unix.LINUX_REBOOT_CMD_POWER_OFF,
	"exit":     unix.LINUX_REBOOT_CMD_POWER_OFF,
	"reboot":   unix.LINUX_REBOOT_CMD_RESTART,
	"halt":     unix.LINUX_REBOOT_CMD_HALT,
	"kexec":    unix.LINUX_REBOOT_CMD_KEXEC,
}

// Shutdown is the last program of a machine whose root was on a device of Coppice, in [ShutdownDir] as its root, with the former root in
// /oldroot: it unmounts that, has the root's daemon stop the device and close its leaf, and does what the first of args that is
// a verb of systemd-shutdown(8) says. It says on out what it does, never waits for longer than some two minutes, does whatever goes wrong on
// the way the same in the end, and never returns.
func Shutdown(args []string, out io.Writer) {
	verb, command := "poweroff", verbs["poweroff"]
	if i := slices.IndexFunc(args, func(a string) bool { _, ok := verbs[a]; return ok }); i >= 0 {
		verb, command = args[i], verbs[args[i]]
	}
	say := func(text string) { fmt.Fprintf(out, "coppice: %s\n", text) }
	say("shutting down: " + verb)
	limit := time.AfterFunc(unmountTime+releaseTime, func() {
		say("THIS TAKES TOO LONG: what has not been written is in the leaf's log, and is recovered at the next start")
		end(command, verb, say)
	})
	err := leaveRoot(oldRoot, say)
	if err != nil {
		say("THE FORMER ROOT IS STILL IN USE: " + err.Error())
	}
	if err := releaseRoot(say); err != nil {
		say("THE ROOT'S DEVICE IS NOT STOPPED, its leaf is recovered at the next start: " + err.Error())
	}
	limit.Stop()
	end(command, verb, say)
}

// releaseRoot does so with the run directory that was written down.
func releaseRoot(say func(string)) error {
	runDir, err := os.ReadFile("/" + runDirFile)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	return Release(ctx, string(runDir), say)
}

// end does not return; where the kernel refuses the verb the machine is restarted.
func end(command int, verb string, say func(string)) {
	synced := make(chan struct{})
	go func() {
		unix.Sync()
		close(synced)
	}()
	select {
	case <-synced:
	case <-time.After(syncTime):
		say("disks do not take what is to be written; going on")
	}
	say(verb + " now")
	err := unix.Reboot(command)
	say(fmt.Sprintf("%s: %v; restarting instead", verb, err))
	err = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	say(fmt.Sprintf("restart: %v: SWITCH THE MACHINE OFF", err))
	select {}
}

// leaveRoot ends what still runs and unmounts root and all below it. It tries again until a time limit, as processes take a moment to end.
func leaveRoot(root string, say func(string)) error {
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		killOthers(say)
		err := unmountAll(root)
		if err == nil {
			say("the former root is unmounted")
			return nil
		}
		if time.Since(began) > unmountTime {
			return errors.Join(err, unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		}
	}
}

// killOthers ends every process but this one, the kernel's, and those that file systems depend on.
func killOthers(say func(string)) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		say("processes are not ended: " + err.Error())
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && len(line) > 0 && line[0] != '@' {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// unmountAll unmounts root and what is mounted below it, the last mounted first. What is on no disk is taken away at once, and may be in use: systemd leaves the
// former /dev, /proc, /run and /sys below the former root, and whoever was started there has the console from them (switch_root in systemd's src/shared/switch-root.c).
func unmountAll(root string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(mounts) {
		flags := 0
		if !strings.HasPrefix(m.Source, "/dev/") {
			flags = unix.MNT_DETACH
		}
		if err := unix.Unmount(m.Mountpoint, flags); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: gone with another one
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}
