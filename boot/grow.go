package boot

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"coppice/internal/directio"
)

// Commands of ioctl(2) that make a mounted file system larger: EXT4_IOC_RESIZE_FS of include/uapi/linux/ext4.h, and of fs/xfs/libxfs/xfs_fs.h
// XFS_IOC_FSGEOMETRY_V1 and XFS_IOC_FSGROWFSDATA (Linux 6.12). They are the same on amd64 and arm64.
const (
	ext4Resize     = 0x40086610
	xfsGeometry    = 0x80705864
	xfsGrow        = 0x4010586e
	xfsSuperMagic  = 0x58465342
	ext4SuperMagic = 0xef53
)

// xfsGeom is struct xfs_fsop_geom_v1, of which the first fields matter here.
type xfsGeom struct {
	BlockSize, _, _, _, _, _, _, IMaxPct uint32
	DataBlocks                           uint64
	_                                    [72]byte
}

// xfsGrowData is struct xfs_growfs_data.
type xfsGrowData struct {
	NewBlocks uint64
	IMaxPct   uint32
	_         uint32
}

var errNotGrown = errors.New("grows only by its own tools")

// growFS makes the file system mounted at dir, which can be written, fill its device, and returns its sizes in bytes before and after.
func growFS(dir, device string) (before, after int64, err error) {
	size, err := deviceSize(device)
	if err != nil {
		return 0, 0, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, 0, fmt.Errorf("find size of the file system: %w", err)
	}
	before = int64(st.Blocks) * st.Bsize
	switch st.Type {
	case ext4SuperMagic:
		blocks := uint64(size / st.Bsize)
		err = control(f, ext4Resize, unsafe.Pointer(&blocks))
	case xfsSuperMagic:
		err = growXFS(f, size)
	default:
		return before, before, errNotGrown
	}
	if err != nil {
		return before, before, err
	}
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return before, before, fmt.Errorf("find size of the file system: %w", err)
	}
	return before, int64(st.Blocks) * st.Bsize, nil
}

func growXFS(f *os.File, size int64) error {
	var geom xfsGeom
	if err := control(f, xfsGeometry, unsafe.Pointer(&geom)); err != nil {
		return err
	}
	if geom.BlockSize == 0 || uint64(size)/uint64(geom.BlockSize) <= geom.DataBlocks {
		return nil
	}
	grow := xfsGrowData{NewBlocks: uint64(size) / uint64(geom.BlockSize), IMaxPct: geom.IMaxPct}
	return control(f, xfsGrow, unsafe.Pointer(&grow))
}

func control(f *os.File, command uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), command, uintptr(arg))
	if errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

func deviceSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return directio.Size(f)
}
