package resident

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Self is the path of the program of this process, whatever has become of its file.
const Self = "/proc/self/exe"

// maxProgram is more than any program of ours has, in bytes.
const maxProgram = 1 << 30

// Program returns a copy in memory, which nobody can change, of the program at path. The caller closes it; it can be
// executed for as long as it is open somewhere. See memfd_create(2).
func Program(path string) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("copy program to memory: %w", err)
	}
	defer func() { _ = src.Close() }()
	dst, err := newMemfd(filepath.Base(path))
	if err != nil {
		return nil, fmt.Errorf("copy program to memory: %w", err)
	}
	if err := fillProgram(dst, src); err != nil {
		return nil, errors.Join(fmt.Errorf("copy program to memory: %w", err), dst.Close())
	}
	return dst, nil
}

// newMemfd makes an empty file in memory that can be executed, also where the system wants that asked for
// (Documentation/userspace-api/mfd_noexec.rst, Linux 6.3).
func newMemfd(name string) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("make file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func fillProgram(dst, src *os.File) error {
	n, err := io.Copy(dst, io.LimitReader(src, maxProgram+1))
	switch {
	case err != nil:
		return err
	case n > maxProgram:
		return fmt.Errorf("%s has more than %d bytes", src.Name(), maxProgram)
	}
	if err := dst.Chmod(0o555); err != nil {
		return err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(dst.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	return nil
}

// Path returns a path by which this process and its children can execute f while this process has it open.
func Path(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }
