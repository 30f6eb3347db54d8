//go:build vm

package powercut

import (
	"fmt"
	"math/rand/v2"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// workOnBlocks writes, zeroes, discards and flushes the n-th client's range of a device.
func (r *recorder) workOnBlocks(n int, device string) error {
	const longest = 16 << 10
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(r.seed, uint64(n)))
	buf := pages(r.t, longest)
	const whole = RawBlocks * BlockBytes
	for i := range rawOps {
		e := Event{Client: RawClients[n], Kind: Write, ID: <-r.ids, Size: SectorBytes * (1 + rng.Int64N(longest/SectorBytes))}
		op := rng.IntN(10)
		if rng.IntN(2) == 0 || op == 4 {
			e.Size = (e.Size + BlockBytes - 1) &^ (BlockBytes - 1)
		}
		e.Off = rng.Int64N((whole-e.Size)/SectorBytes+1) * SectorBytes
		if e.Size%BlockBytes == 0 {
			e.Off &^= BlockBytes - 1
		}
		e.Off += int64(n) * whole
		switch {
		case op < 3:
			if err = f.Sync(); err == nil {
				r.mark(Event{Client: e.Client, Kind: Flushed})
			}
		case op < 5:
			e.Kind = Zero
			r.mark(e)
			err = zero(f, []uintptr{unix.BLKZEROOUT, unix.BLKDISCARD}[op-3], e)
		default:
			r.mark(e)
			Fill(buf[:e.Size], e.ID, e.Off)
			_, err = f.WriteAt(buf[:e.Size], e.Off)
		}
		if err != nil {
			return fmt.Errorf("%s: step %d, %+v: %w", e.Client, i, e, err)
		}
	}
	return nil
}

// zero zeroes or discards a range. A union device promises zeros after either.
func zero(f *os.File, request uintptr, e Event) error {
	span := [2]uint64{uint64(e.Off), uint64(e.Size)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&span))); errno != 0 {
		return errno
	}
	return nil
}
