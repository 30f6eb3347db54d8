package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// formats are disk image formats that are not raw, by how they begin.
var formats = []struct{ name, magic string }{
	{"qcow2", "QFI\xfb"}, {"vmdk", "KDMV"}, {"vhdx", "vhdxfile"}, {"qed", "QED\x00"}, {"vdi", "<<< Oracle VM VirtualBox Disk Image >>>"},
	{"vdi", "<<< QEMU VM Virtual Disk Image >>>"}, {"luks", "LUKS\xba\xbe"},
}

func formatOf(head []byte) string {
	for _, f := range formats {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return f.name
		}
	}
	return "raw"
}

// OpenSource opens what an image is built from: a raw file or block device, or a qcow2 file, which qemu-img converts to a
// sparse raw file in the directory scratch first; nothing is left of that when the source is closed, or the process dies. Other formats are
// refused, unless raw says to take any bytes as they are. qcow2 files that stand on others are refused: which file they name is for whoever
// made them to say.
func OpenSource(ctx context.Context, path, scratch string, raw bool) (*File, error) {
	f, err := OpenFile(path)
	if err != nil || raw {
		return f, err
	}
	head := make([]byte, 104)
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		f.Close()
		return nil, fmt.Errorf("open source %s: %w", path, err)
	}
	switch format := formatOf(head); format {
	case "raw", "luks": // an encrypted disk is a disk
		return f, nil
	case "qcow2":
		defer f.Close()
		if err := standsAlone(head); err != nil {
			return nil, fmt.Errorf("open source %s: %w", path, err)
		}
		return convert(ctx, path, scratch)
	default:
		f.Close()
		return nil, fmt.Errorf("open source %s: is a %s file: convert it first, with qemu-img convert -O raw: %w", path, format, ErrBadOption)
	}
}

// standsAlone looks at the header of a qcow2 file (docs/interop/qcow2.txt of QEMU).
func standsAlone(head []byte) error {
	const (
		versionAt      = 4
		backingAt      = 8
		incompatibleAt = 72
		externalData   = 1 << 2
	)
	be := binary.BigEndian
	switch {
	case be.Uint64(head[backingAt:]) != 0:
		return fmt.Errorf("is a qcow2 file on top of another one: make one of both first, with qemu-img convert -O qcow2: %w", ErrBadOption)
	case be.Uint32(head[versionAt:]) >= 3 && be.Uint64(head[incompatibleAt:])&externalData != 0:
		return fmt.Errorf("is a qcow2 file whose data is in another one: make one of both first, with qemu-img convert -O qcow2: %w", ErrBadOption)
	}
	return nil
}

func convert(ctx context.Context, path, scratch string) (*File, error) {
	fail := func(err error) (*File, error) { return nil, fmt.Errorf("convert %s: %w", path, err) }
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		return fail(fmt.Errorf("a qcow2 file is read by qemu-img, which is not there: install qemu-utils: %w", err))
	}
	source, err := filepath.Abs(path)
	if err != nil {
		return fail(err)
	}
	tmp, err := os.CreateTemp(scratch, "coppice-raw-*")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(tmp.Name()) //nolint:errcheck // the file lives on for those who have it open
	defer tmp.Close()
	out, err := exec.CommandContext(ctx, tool, "convert", "-f", "qcow2", "-O", "raw", source, tmp.Name()).CombinedOutput()
	if err != nil {
		return fail(fmt.Errorf("qemu-img: %w: %.300s", err, bytes.TrimSpace(out)))
	}
	return OpenFile(tmp.Name())
}
