package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// PIDFile is the name of the file in the run directory that has the number of the supervisor's process.
const PIDFile = "supervisor"

// omitDir has the numbers of processes that Debian's sysvinit does not end when it shuts down (/etc/init.d/sendsigs).
const omitDir = "/run/sendsigs.omit.d"

// ErrNoSupervisor is wrapped by [Stop] where there is none.
var ErrNoSupervisor = errors.New("no supervisor is running")

// record writes down who the supervisor is.
func (s *supervisor) record() error {
	if err := os.MkdirAll(s.RunDir, 0o750); err != nil {
		return fmt.Errorf("record supervisor: %w", err)
	}
	pid := []byte(strconv.Itoa(os.Getpid()) + "\n")
	if err := os.WriteFile(filepath.Join(s.RunDir, PIDFile), pid, 0o640); err != nil {
		return fmt.Errorf("record supervisor: %w", err)
	}
	return nil
}

// spare tells sysvinit to leave both processes alone when it shuts down, where they are the system's.
func (s *supervisor) spare(daemon int) {
	if !within(s.RunDir, "/run") {
		return
	}
	err := os.MkdirAll(omitDir, 0o755)
	if err == nil {
		text := fmt.Sprintf("%d\n%d\n", os.Getpid(), daemon)
		err = os.WriteFile(filepath.Join(omitDir, "coppice-"+filepath.Base(s.RunDir)), []byte(text), 0o644)
	}
	if err != nil {
		s.log.Warn("sysvinit not told to spare the daemon when it shuts down", "error", err)
	}
}

// Stop ends the supervisor of a run directory and its daemon, which stops its devices or leaves them as at any end, and
// waits for that.
func Stop(ctx context.Context, runDir string) error {
	if err := stop(ctx, runDir); err != nil {
		return fmt.Errorf("stop supervisor of %s: %w", runDir, err)
	}
	return nil
}

func stop(ctx context.Context, runDir string) error {
	pid, err := supervisorOf(runDir)
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("find process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if again, err := supervisorOf(runDir); err != nil || again != pid {
		return fmt.Errorf("it has just ended: %w", err)
	}
	if err := unix.PidfdSendSignal(fd, StopSignal, nil, 0); err != nil {
		return fmt.Errorf("signal process %d: %w", pid, err)
	}
	for ctx.Err() == nil {
		const pause = 100 * time.Millisecond
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(pause.Milliseconds()))
		if n == 1 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
	}
	return fmt.Errorf("wait for process %d: %w", pid, ctx.Err())
}

// supervisorOf returns the number of the supervisor's process.
func supervisorOf(runDir string) (int, error) {
	text, err := os.ReadFile(filepath.Join(runDir, PIDFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, ErrNoSupervisor
	}
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil {
		return 0, fmt.Errorf("read number of the process: %w", err)
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.HasPrefix(line, []byte(name+"\x00supervise\x00")) {
		return 0, ErrNoSupervisor
	}
	return pid, nil
}
