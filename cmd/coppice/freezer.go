package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice/node"
)

// freezer freezes the file systems mounted from a device for a moment. A process of its own, the watchdog, holds the
// same file systems open and thaws them when this process dies or takes too long.
type freezer struct {
	list  []target
	arm   *os.File // to the watchdog
	child *exec.Cmd
	ready chan error // what became of starting the watchdog
}

// target is a file system to freeze.
type target struct {
	point  string
	file   *os.File
	frozen bool
	synced bool // cannot be frozen
}

// newFreezer opens the file systems on the device, starts the watchdog, which freeze waits for, and writes back what the page cache has of the device.
func newFreezer(device string) (*freezer, error) {
	mounted, nodes, err := node.FileSystemsOn(device)
	if err != nil {
		return nil, noFreezer(err)
	}
	f := &freezer{}
	for _, m := range mounted {
		t, err := openTarget(m)
		if err != nil {
			return nil, errors.Join(noFreezer(err), f.close())
		}
		f.list = append(f.list, t)
	}
	if len(f.list) > 0 {
		f.ready = make(chan error, 1)
		go func() { f.ready <- f.startWatchdog() }()
		err = lockMemory()
	}
	if err = errors.Join(err, f.writeBack(nodes)); err != nil {
		return nil, errors.Join(noFreezer(err), f.close())
	}
	return f, nil
}

// watched waits until the watchdog is ready, if there is anything to watch.
func (f *freezer) watched() error {
	if f.ready == nil {
		return nil
	}
	err := <-f.ready
	f.ready = nil
	return err
}

// lockMemory keeps what this process uses of its memory from being written to what it freezes, or dropped. What it has not used yet may come from there: a frozen file system is read as any other.
func lockMemory() error {
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	return nil
}

func noFreezer(err error) error {
	e := node.Explain(err)
	e.Hint = "run it as root, where the file systems are mounted; or give --crash-consistent to go without freezing them"
	return e
}

// openTarget opens a file system by the first of its mount points that leads there: others may be hidden below later mounts.
func openTarget(m node.FileSystem) (target, error) {
	var errs []error
	for _, point := range m.Points {
		file, err := os.OpenFile(point, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(int(file.Fd()), &st)
		number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
		if err == nil && (number == m.Number || strings.HasPrefix(m.Number, "0:")) {
			return target{point: point, file: file}, nil
		}
		errs = append(errs, fmt.Errorf("%s is hidden below another mount", point), err, file.Close())
	}
	return target{}, fmt.Errorf("open file system: %w", errors.Join(errs...))
}

// writeBack leaves little to be written when everybody waits.
func (f *freezer) writeBack(nodes []string) error {
	for _, t := range f.list {
		if err := unix.Syncfs(int(t.file.Fd())); err != nil {
			return fmt.Errorf("write back %s: %w", t.point, err)
		}
	}
	for _, path := range nodes {
		file, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) && path != nodes[0] {
			continue // a partition that has no node cannot have been written through one
		}
		if err != nil {
			return fmt.Errorf("write back: %w", err)
		}
		if err := errors.Join(file.Sync(), file.Close()); err != nil {
			return fmt.Errorf("write back %s: %w", path, err)
		}
	}
	return nil
}

// startWatchdog returns when the watchdog is ready.
func (f *freezer) startWatchdog() error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start watchdog: %w", err)
	}
	f.arm = w
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{os.Args[0], watchdogCommand, strconv.Itoa(len(f.list))}, Stdin: r,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true}, // a signal from the terminal is not for it
	}
	for _, t := range f.list {
		cmd.ExtraFiles = append(cmd.ExtraFiles, t.file)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("start watchdog: %w", err)
	}
	f.child = cmd
	ready := make([]byte, 1)
	if _, err := out.Read(ready); err != nil {
		return fmt.Errorf("start watchdog: it ended: %w", err)
	}
	return nil
}

func (f *freezer) tell(what byte, i int) error {
	if _, err := f.arm.Write([]byte{what, byte(i)}); err != nil {
		return fmt.Errorf("tell watchdog: %w", err)
	}
	return nil
}

// freeze freezes all or none. What cannot be frozen (vfat) is only written back.
func (f *freezer) freeze() error {
	if err := f.watched(); err != nil {
		return noFreezer(err)
	}
	for i := range f.list {
		t := &f.list[i]
		if err := f.tell(msgArm, i); err != nil {
			return errors.Join(err, f.thaw())
		}
		err := ioctl(t.file, fiFreeze)
		switch {
		case err == nil:
			t.frozen = true
			continue
		case errors.Is(err, unix.EOPNOTSUPP):
			t.synced = true
			err = unix.Syncfs(int(t.file.Fd()))
		case errors.Is(err, unix.EBUSY):
			err = fmt.Errorf("somebody else has frozen it: %w", err)
		}
		if err = errors.Join(err, f.tell(msgDisarm, i)); err != nil {
			return errors.Join(noFreezer(fmt.Errorf("freeze %s: %w", t.point, err)), f.thaw())
		}
	}
	return nil
}

// errThawed tells that a file system did not stay frozen.
var errThawed = errors.New("it was thawed too early: by the watchdog after " + watchdogLimit.String() + ", or by somebody else")

// thaw lets everybody go on.
func (f *freezer) thaw() error {
	var errs []error
	for i := range f.list {
		t := &f.list[i]
		if !t.frozen {
			continue
		}
		t.frozen = false
		err := ioctl(t.file, fiThaw)
		if errors.Is(err, unix.EINVAL) {
			err = errThawed
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("thaw %s: %w", t.point, err))
			continue // the watchdog tries on
		}
		errs = append(errs, f.tell(msgDisarm, i))
	}
	return errors.Join(errs...)
}

// points returns the mount points of what was frozen, or only written back.
func (f *freezer) points(synced bool) []string {
	list := []string{}
	for _, t := range f.list {
		if t.synced == synced {
			list = append(list, t.point)
		}
	}
	return list
}

// close ends the watchdog, which thaws what is still frozen.
func (f *freezer) close() error {
	errs := []error{f.watched()}
	if f.arm != nil {
		errs = append(errs, f.arm.Close())
	}
	if f.child != nil {
		errs = append(errs, f.child.Wait())
	}
	for _, t := range f.list {
		errs = append(errs, t.file.Close())
	}
	return errors.Join(errs...)
}

// The requests of include/uapi/linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
var (
	fiFreeze = iowrInt('X', 119)
	fiThaw   = iowrInt('X', 120)
)

// iowrInt is _IOWR(group, number, int) of include/uapi/asm-generic/ioctl.h, which amd64 and arm64 use.
func iowrInt(group, number uint) uint {
	const (
		readWrite = 3
		sizeOfInt = 4
	)
	return readWrite<<30 | sizeOfInt<<16 | group<<8 | number
}

func ioctl(file *os.File, request uint) error {
	for {
		err := unix.IoctlSetInt(int(file.Fd()), request, 0)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// watchdogLimit is the longest time that a file system stays frozen.
const watchdogLimit = 10 * time.Second
