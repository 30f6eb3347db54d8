package idxshare

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"coppice/idxshare/ext4"
)

// mounted is a file system that is read through a mount of it: read-only, in a mount namespace of one thread, which ends with it, so that nobody else sees it and nothing is left of it.
type mounted struct {
	v     Volume
	do    chan func(root *os.File) // to the thread
	ended chan struct{}
	sums  map[uint64][sha256.Size]byte
}

// mountOptions keep a mount from writing to a device that was not unmounted.
var mountOptions = map[string]string{"xfs": "norecovery,nouuid", "btrfs": "rescue=nologreplay", "f2fs": "norecovery"}

// openMounted mounts a part of a device, and completes what is known of the volume.
func openMounted(ctx context.Context, in BuildInput, p part, v *Volume) (*mounted, error) {
	switch {
	case in.Path == "":
		return nil, fmt.Errorf("%s is read through a mount, and the device is no local file", v.Type)
	case os.Geteuid() != 0:
		return nil, fmt.Errorf("%s is read through a mount, which needs root", v.Type)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m := &mounted{do: make(chan func(*os.File)), ended: make(chan struct{}), sums: map[uint64][sha256.Size]byte{}}
	ready := make(chan error)
	go m.thread(in.Path, p, v.Type, ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("%s is read through a mount: %w", v.Type, err)
	}
	err := m.call(func(root *os.File) error {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(root.Fd()), &st); err != nil {
			return fmt.Errorf("statfs: %w", err)
		}
		v.BlockSize = int(st.Bsize)
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	if v.Type == "xfs" {
		v.UUID, v.Label, err = xfsName(in.Device, p.start)
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	m.v = *v
	return m, nil
}

// xfsName reads UUID and label from the superblock.
func xfsName(r io.ReaderAt, start int64) (uuid, label string, err error) {
	b := make([]byte, 120)
	if err := ext4.ReadFull(r, b, start); err != nil {
		return "", "", err
	}
	u := b[32:48]
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:]), strings.TrimRight(string(b[108:120]), "\x00"), nil
}

// thread owns the namespace: it mounts, does what is asked for, and ends, and with it the mount and the loop device.
func (m *mounted) thread(path string, p part, kind string, ready chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread is of no use to others
	defer close(m.ended)
	dir, err := os.MkdirTemp("", "coppice-index-")
	if err != nil {
		ready <- err
		return
	}
	defer os.Remove(dir) //nolint:errcheck // there is nobody to tell
	root, err := mountPart(path, p, kind, dir)
	if err != nil {
		ready <- err
		return
	}
	ready <- nil
	for fn := range m.do {
		fn(root)
	}
	root.Close()
	unix.Unmount(dir, unix.MNT_DETACH) //nolint:errcheck // it ends with the thread
}

// mountPart mounts in a namespace that only this thread has, and returns the root directory.
func mountPart(path string, p part, kind, dir string) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return nil, fmt.Errorf("new mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	loop, err := attachLoop(path, p)
	if err != nil {
		return nil, err
	}
	defer loop.Close() // the mount holds the device from here on
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME
	if err := unix.Mount(loop.Name(), dir, kind, flags, mountOptions[kind]); err != nil {
		return nil, fmt.Errorf("mount %s: %w", loop.Name(), err)
	}
	return os.Open(dir)
}

// attachLoop makes a read-only loop device of a part, which goes when nobody has it open.
func attachLoop(path string, p part) (*os.File, error) {
	backing, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	// Another process may take the free device first.
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(backing.Fd())}
		config.Info.Offset, config.Info.Sizelimit = uint64(p.start), uint64(p.length)
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), &config); err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) || try == 10 {
			return nil, fmt.Errorf("set up %s over %s: %w", loop.Name(), path, err)
		}
	}
}

// call runs fn on the thread.
func (m *mounted) call(fn func(root *os.File) error) error {
	result := make(chan error, 1)
	m.do <- func(root *os.File) { result <- fn(root) }
	return <-result
}

func (m *mounted) close() error {
	close(m.do)
	<-m.ended
	return nil
}

// visit is called for each name in the tree. parent is the directory, open, and dir its inode; first tells that the inode is met for the first time.
type visit func(parent *os.File, dir uint64, name string, st *unix.Statx_t, first bool) error

const statxWanted = unix.STATX_BASIC_STATS | unix.STATX_BTIME

// walk goes over the tree, without other file systems, directories after the names in the one above.
func (m *mounted) walk(ctx context.Context, root *os.File, fn visit) error {
	var st unix.Statx_t
	if err := unix.Statx(int(root.Fd()), "", unix.AT_EMPTY_PATH, statxWanted, &st); err != nil {
		return fmt.Errorf("stat of the root directory: %w", err)
	}
	if err := fn(root, 0, "", &st, true); err != nil {
		return err
	}
	w := mountWalk{fn: fn, seen: map[uint64]bool{st.Ino: true}, device: [2]uint32{st.Dev_major, st.Dev_minor}}
	again, err := openAt(root, ".", unix.O_DIRECTORY) // reading a directory moves a place in it
	if err != nil {
		return err
	}
	defer again.Close()
	return w.directory(ctx, again, st.Ino)
}

type mountWalk struct {
	fn     visit
	seen   map[uint64]bool // inodes with more than one link, and directories
	device [2]uint32
}

func (w *mountWalk) directory(ctx context.Context, dir *os.File, inode uint64) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Statx_t
		if err := unix.Statx(int(dir.Fd()), name, unix.AT_SYMLINK_NOFOLLOW, statxWanted, &st); err != nil {
			return fmt.Errorf("stat of %q: %w", name, err)
		}
		if w.device != [2]uint32{st.Dev_major, st.Dev_minor} {
			continue
		}
		directory := uint32(st.Mode)&ModeType == ModeDirectory
		first := !w.seen[st.Ino]
		if first && (directory || st.Nlink > 1) {
			w.seen[st.Ino] = true
		}
		if err := w.fn(dir, inode, name, &st, first); err != nil {
			return err
		}
		if !directory || !first {
			continue
		}
		child, err := openAt(dir, name, unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		err = w.directory(ctx, child, st.Ino)
		child.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (m *mounted) digests(ctx context.Context) (none int64, err error) {
	buffer := make([]byte, digestBuffer)
	err = m.call(func(root *os.File) error {
		return m.walk(ctx, root, func(dir *os.File, _ uint64, name string, st *unix.Statx_t, first bool) error {
			if !first || uint32(st.Mode)&ModeType != ModeRegular {
				return nil
			}
			if int64(st.Size)/absurdLength > m.v.Length {
				none++
				return nil
			}
			file, err := openAt(dir, name, 0)
			if err != nil {
				return err
			}
			defer file.Close()
			sum := sha256.New()
			if _, err := io.CopyBuffer(sum, &cancelled{ctx, file}, buffer); err != nil {
				return fmt.Errorf("digest of %q: %w", name, err)
			}
			m.sums[st.Ino] = [sha256.Size]byte(sum.Sum(nil))
			return nil
		})
	})
	return none, err
}

// cancelled reads until its context ends.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

func (m *mounted) write(ctx context.Context, b *builder) error {
	return m.call(func(root *os.File) error {
		return m.walk(ctx, root, func(dir *os.File, parent uint64, name string, st *unix.Statx_t, first bool) error {
			if name != "" {
				if err := b.name(Name{Volume: m.v.ID, Parent: parent, Name: []byte(name), Inode: st.Ino}); err != nil {
					return err
				}
			}
			if !first {
				return nil
			}
			f := m.file(st)
			switch f.Mode & ModeType {
			case ModeSymlink:
				target := make([]byte, maxTarget)
				n, err := unix.Readlinkat(int(dir.Fd()), name, target)
				if err != nil {
					return fmt.Errorf("read symbolic link %q: %w", name, err)
				}
				f.Target = target[:n]
			case ModeRegular:
				if sum, ok := m.sums[st.Ino]; ok {
					f.Digest = sum[:]
				}
				if err := m.extents(b, dir, name, st.Ino); err != nil {
					return err
				}
			}
			return b.file(f)
		})
	})
}

func (m *mounted) file(st *unix.Statx_t) *File {
	nanoseconds := func(t unix.StatxTimestamp) int64 { return t.Sec*1_000_000_000 + int64(t.Nsec) }
	return &File{
		Volume: m.v.ID, Inode: st.Ino, Mode: uint32(st.Mode), UID: st.Uid, GID: st.Gid, Size: int64(st.Size), Links: st.Nlink, Blocks: int64(st.Blocks),
		Rdev:  unix.Mkdev(st.Rdev_major, st.Rdev_minor),
		Atime: nanoseconds(st.Atime), Mtime: nanoseconds(st.Mtime), Ctime: nanoseconds(st.Ctime), Crtime: nanoseconds(st.Btime),
	}
}

// What FS_IOC_FIEMAP takes and gives: include/uapi/linux/fiemap.h of Linux 6.12. A header of 32 bytes, then extents of 56.
const (
	fiemapIoctl     = 0xC020660B
	fiemapHeader    = 32
	fiemapExtent    = 56
	fiemapAtOnce    = 256
	fiemapLast      = 0x1
	fiemapUnknown   = 0x2   // not allocated yet
	fiemapInline    = 0x200 // among metadata
	fiemapUnwritten = 0x800
)

// extents asks the kernel for a file's. Of other file systems than xfs they are not places on the device.
func (m *mounted) extents(b *builder, dir *os.File, name string, inode uint64) error {
	if m.v.Type != "xfs" {
		return nil
	}
	file, err := openAt(dir, name, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	bs := int64(m.v.BlockSize)
	buffer := make([]byte, fiemapHeader+fiemapAtOnce*fiemapExtent)
	for next := uint64(0); ; {
		clear(buffer)
		binary.NativeEndian.PutUint64(buffer, next)
		binary.NativeEndian.PutUint64(buffer[8:], ^uint64(0)-next)
		binary.NativeEndian.PutUint32(buffer[24:], fiemapAtOnce)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), fiemapIoctl, uintptr(unsafe.Pointer(&buffer[0]))); errno != 0 {
			return fmt.Errorf("extents of %q: %w", name, errno)
		}
		count := int(binary.NativeEndian.Uint32(buffer[20:]))
		if count == 0 {
			return nil
		}
		for n := range count {
			x := buffer[fiemapHeader+n*fiemapExtent:]
			logical, physical, length := binary.NativeEndian.Uint64(x), binary.NativeEndian.Uint64(x[8:]), binary.NativeEndian.Uint64(x[16:])
			flags := binary.NativeEndian.Uint32(x[40:])
			next = logical + length
			if flags&(fiemapUnknown|fiemapInline) == 0 {
				err := b.w.AddExtent(Extent{
					Volume: m.v.ID, Inode: inode, Logical: int64(logical) / bs, Physical: int64(physical) / bs, Length: int64(length) / bs, Unwritten: flags&fiemapUnwritten != 0,
				})
				if err != nil {
					return err
				}
			}
			if flags&fiemapLast != 0 {
				return nil
			}
		}
	}
}
