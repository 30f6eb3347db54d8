package union

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Base is the read-only root below the layers of a device. It is immutable while it is
// open: what changes is another root, with another [Pin].
//
// Reads that may have to wait, for a network or a decompression, are asynchronous, so that
// they do not hold up the thread that serves other requests. Where they may wait for long, the Base has a method
// Interrupt as well, which returns at once and makes all asynchronous reads end soon, with an error, those that are yet to come among them.
type Base interface {
	// Size returns the length in bytes, at least 1. It need not be a multiple of 4 KiB.
	Size() int64

	// Pin identifies the content. A layer remembers it and refuses another.
	Pin() Pin

	// File returns the file whose bytes are the root's bytes, for reading through the ring of
	// each queue, or nil where the root is not one readable file.
	File() *os.File

	// TryRead fills p from byte off on and returns true, and where the bytes were, if it can without waiting for anything: from memory. Else it returns false, and
	// what is in p does not count. It allocates nothing, starts no goroutine and takes no lock that is held for long, because the thread
	// that serves all other requests calls it. The range lies within Size. It is used where File is nil, before ReadAsync.
	TryRead(p []byte, off int64) (Origins, bool)

	// ReadAsync fills p from byte off on and then calls done once with where the bytes came from, and nil or the error, from any
	// goroutine, possibly before it returns. The range lies within Size. p belongs to the Base until
	// then. It is used where File is nil.
	ReadAsync(p []byte, off int64, done func(Origins, error))

	// Close releases the root. No read may be in flight.
	Close() error
}

// PinKind tells how a root is identified.
type PinKind uint8

// Kinds of pins. Numbers are stored in leaf stores.
const (
	PinNone  PinKind = 0 // no root: what no layer holds reads as zeros
	PinRaw   PinKind = 1 // sampled content of a raw file or block device
	PinImage PinKind = 2 // content root of an image, which proves every byte
)

// String returns the kind in words.
func (k PinKind) String() string {
	switch k {
	case PinNone:
		return "no root"
	case PinRaw:
		return "a raw root"
	case PinImage:
		return "an image"
	}
	return fmt.Sprintf("a root of kind %d", uint8(k))
}

// Pin identifies a root: what a layer stands on. For a raw root it is a sample and no proof;
// see [OpenRaw].
type Pin struct {
	Kind      PinKind `json:"kind"`
	SizeBytes int64   `json:"size_bytes"`
	ModTime   int64   `json:"mod_time"` // Unix nanoseconds; 0 for block devices
	Digest    Digest  `json:"digest,omitzero"`
}

// Digest is a SHA-256. Its text is hexadecimal.
type Digest [sha256.Size]byte

// MarshalText returns the digest in hexadecimal.
func (d Digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText reads what MarshalText wrote.
func (d *Digest) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(d) {
		return fmt.Errorf("digest %q is not %d bytes in hexadecimal", text, len(d))
	}
	copy(d[:], b)
	return nil
}

// rootPin is the pin of a root, or of none.
func rootPin(b Base) Pin {
	if b == nil {
		return Pin{}
	}
	return b.Pin()
}

func rootLen(b Base) int64 {
	if b == nil {
		return 0
	}
	return b.Size()
}

// nextData returns where the next bytes of a root that may not be zero begin, at off or after it; beyond its end there are
// none.
func nextData(b Base, off int64) int64 {
	if b == nil || off >= b.Size() {
		return math.MaxInt64
	}
	if s, ok := b.(interface{ NextData(off int64) int64 }); ok {
		return s.NextData(off)
	}
	return off
}

// Difference says in words what keeps another pin from being this one, or "" where they are equal.
func (p Pin) Difference(other Pin) string {
	switch {
	case p == other:
		return ""
	case p.Kind == PinNone:
		return "a root, and the layer needs none"
	case other.Kind == PinNone:
		return "no root"
	case p.Kind != other.Kind:
		return fmt.Sprintf("%s, not %s", other.Kind, p.Kind)
	case p.SizeBytes != other.SizeBytes:
		return fmt.Sprintf("%d bytes, not %d", other.SizeBytes, p.SizeBytes)
	case p.Digest != other.Digest:
		return fmt.Sprintf("content %x, not %x", other.Digest[:6], p.Digest[:6])
	default:
		return fmt.Sprintf("same samples, but modified %s, not %s",
			time.Unix(0, other.ModTime).UTC().Format(time.RFC3339Nano), time.Unix(0, p.ModTime).UTC().Format(time.RFC3339Nano))
	}
}

// Raw is a root in a raw file or on a block device, opened read-only and read through the
// page cache, which all devices on the root share.
type Raw struct {
	f    *os.File
	path string
	pin  Pin
}

const (
	pinEdge    = 1 << 20
	pinSamples = 64
	pinSeed    = 0x436f7070696365 // any constant: all nodes must draw the same samples
)

// OpenRaw opens a raw file or block device as a root. Its pin is the size, the modification
// time (files only), and the SHA-256 of the first and last MiB and of 64 blocks at
// seeded places: reading it takes the same time for any size. Changes elsewhere that keep the
// modification time are not noticed.
func OpenRaw(path string) (*Raw, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	block := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if st.IsDir() {
		return nil, fmt.Errorf("open root %s: is a directory, need a raw image file or a block device", path)
	}
	if !block && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("open root %s: neither a regular file nor a block device", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	r := &Raw{f: f, path: path}
	r.pin, err = pinFile(f, st.ModTime(), block)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open root %s: %w", path, err), f.Close())
	}
	return r, nil
}

func pinFile(f *os.File, modified time.Time, block bool) (Pin, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return Pin{}, fmt.Errorf("find size: %w", err)
	}
	if size == 0 {
		return Pin{}, errors.New("is empty, need a raw image")
	}
	pin := Pin{Kind: PinRaw, SizeBytes: size}
	if !block {
		pin.ModTime = modified.UnixNano()
	}
	h := sha256.New()
	add := func(off, n int64) error {
		_, err := io.Copy(h, io.NewSectionReader(f, off, n))
		return err
	}
	edge := min(pinEdge, size)
	if err := errors.Join(add(0, edge), add(size-edge, edge)); err != nil {
		return Pin{}, fmt.Errorf("read: %w", err)
	}
	rng := rand.New(rand.NewPCG(pinSeed, uint64(size)))
	for range pinSamples {
		off := rng.Int64N((size+blockSize-1)>>blockShift) << blockShift
		if err := add(off, min(blockSize, size-off)); err != nil {
			return Pin{}, fmt.Errorf("read at byte %d: %w", off, err)
		}
	}
	h.Sum(pin.Digest[:0])
	return pin, nil
}

// Again opens the root for another user, who closes it by itself. Its pin is not taken anew.
func (r *Raw) Again() (*Raw, error) {
	conn, err := r.f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open root %s again: %w", r.path, err)
	}
	var fd int
	var dupErr error
	err = conn.Control(func(own uintptr) { fd, dupErr = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(err, dupErr); err != nil {
		return nil, fmt.Errorf("open root %s again: %w", r.path, err)
	}
	return &Raw{f: os.NewFile(uintptr(fd), r.path), path: r.path, pin: r.pin}, nil
}

// Size returns the length in bytes.
func (r *Raw) Size() int64 { return r.pin.SizeBytes }

// Pin returns the identity taken when the root was opened.
func (r *Raw) Pin() Pin { return r.pin }

// File returns the open file.
func (r *Raw) File() *os.File { return r.f }

// NextData returns where data begins that is no hole of the file, at off or after it.
func (r *Raw) NextData(off int64) int64 {
	next, err := r.f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return math.MaxInt64
	case err != nil: // no file system that knows
		return off
	}
	return next
}

// TryRead returns false: nobody knows whether the page cache has it. Devices read [Raw.File] instead.
func (r *Raw) TryRead([]byte, int64) (Origins, bool) { return 0, false }

// ReadAsync reads in a goroutine of its own. Devices read [Raw.File] instead.
func (r *Raw) ReadAsync(p []byte, off int64, done func(Origins, error)) {
	go func() {
		_, err := r.f.ReadAt(p, off)
		done(FromRoot, err)
	}()
}

// Close closes the file.
func (r *Raw) Close() error { return r.f.Close() }
