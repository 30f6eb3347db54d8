package union

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"

	"coppice/ublk/ublktest"
)

// errHalted is what the calls of an image return from the moment on at which the process or the power is gone.
var errHalted = errors.New("halted")

// image is a disk whose blocks are those of a base or of recorded writes until they are written to: making one copies nothing. It
// remembers the writes that no sync covered, so that the power can be cut once more.
type image struct {
	base    []byte
	blocks  [][]byte // nil: the base's
	touched []int
	pending []imageWrite
	left    int // writes and syncs that still work; negative: all

	spare [][]byte // memory for blocks, of which used are in use
	used  int
}

type imageWrite struct {
	block     int
	was, data []byte
}

// reset makes it an image of base.
func (d *image) reset(base []byte) {
	if len(d.blocks) != len(base)>>blockShift {
		d.blocks = make([][]byte, len(base)>>blockShift)
		d.touched = d.touched[:0]
	}
	for _, b := range d.touched {
		d.blocks[b] = nil
	}
	d.base = base
	d.touched, d.pending = d.touched[:0], d.pending[:0]
	d.used, d.left = 0, -1
}

// save returns what restore needs to have the image as it is now again, before the next reset.
func (d *image) save() map[int][]byte {
	blocks := make(map[int][]byte, len(d.touched))
	for _, b := range d.touched {
		blocks[b] = d.blocks[b]
	}
	return blocks
}

func (d *image) restore(blocks map[int][]byte) {
	for _, b := range d.touched {
		d.blocks[b] = blocks[b]
	}
	d.pending, d.left = d.pending[:0], -1
}

// fresh returns a block of memory that lives until the next reset.
func (d *image) fresh() []byte {
	if d.used == len(d.spare) {
		d.spare = append(d.spare, alignedBuffer(blockSize))
	}
	d.used++
	return d.spare[d.used-1]
}

func (d *image) block(b int) []byte {
	if p := d.blocks[b]; p != nil {
		return p
	}
	return d.base[b<<blockShift:][:blockSize]
}

// set gives a block other content, which must not change any more.
func (d *image) set(b int, p []byte) {
	if d.blocks[b] == nil && p != nil {
		d.touched = append(d.touched, b)
	}
	d.blocks[b] = p
}

// put lays a write over the image: all of it, or those sectors of it that mask is true for.
func (d *image) put(p []byte, off int64, mask func(sector int) bool) {
	for at := 0; at < len(p); at += blockSize {
		b := int(off+int64(at)) >> blockShift
		data := p[at : at+blockSize]
		if mask != nil {
			mixed := d.fresh()
			copy(mixed, d.block(b))
			for s := 0; s < blockSize; s += sector {
				if mask((at + s) / sector) {
					copy(mixed[s:s+sector], data[s:])
				}
			}
			data = mixed
		}
		d.set(b, data)
	}
}

func (d *image) spend() error {
	if d.left == 0 {
		return errHalted
	}
	d.left--
	return nil
}

func (d *image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off&(blockSize-1) != 0 || len(p)&(blockSize-1) != 0 {
		return 0, fmt.Errorf("read %d bytes at %d: not whole blocks", len(p), off)
	}
	for at := 0; at < len(p); at += blockSize {
		if off+int64(at) >= d.Size() {
			return at, io.EOF
		}
		copy(p[at:], d.block(int(off+int64(at))>>blockShift))
	}
	return len(p), nil
}

func (d *image) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off&(blockSize-1) != 0 || len(p)&(blockSize-1) != 0 || off+int64(len(p)) > d.Size() {
		return 0, fmt.Errorf("write %d bytes at %d: not whole blocks of the store", len(p), off)
	}
	if err := d.spend(); err != nil {
		return 0, err
	}
	d.write(p, off)
	return len(p), nil
}

// write makes a write that the next sync makes durable.
func (d *image) write(p []byte, off int64) {
	for at := 0; at < len(p); at += blockSize {
		b := int(off+int64(at)) >> blockShift
		data := d.fresh()
		copy(data, p[at:])
		d.pending = append(d.pending, imageWrite{b, d.blocks[b], data})
		d.set(b, data)
	}
}

func (d *image) Sync() error {
	if err := d.spend(); err != nil {
		return err
	}
	d.pending = d.pending[:0]
	return nil
}

// cut makes of the image what a power cut leaves: of the blocks that no sync covered a random subset, some of them torn.
func (d *image) cut(rng *rand.Rand) {
	pending := slices.Clone(d.pending)
	for i := len(pending) - 1; i >= 0; i-- {
		d.blocks[pending[i].block] = pending[i].was
	}
	share := []float64{0, 0.3, 0.7, 1}[rng.IntN(4)]
	torn := []float64{0, 0.4}[rng.IntN(2)]
	garbage := []float64{0, 0.3}[rng.IntN(2)]
	for _, w := range pending {
		switch {
		case rng.Float64() < garbage && !bytes.Equal(w.data, d.block(w.block)):
			p := d.fresh()
			fill(p, rng.Uint64())
			d.set(w.block, p)
		case rng.Float64() < torn:
			d.put(w.data, int64(w.block)<<blockShift, func(int) bool { return rng.IntN(2) == 0 })
		case rng.Float64() < share:
			d.set(w.block, w.data)
		}
	}
	d.pending, d.left = d.pending[:0], -1
}

// copyTo writes the whole image to p.
func (d *image) copyTo(p []byte) {
	copy(p, d.base)
	for _, b := range d.touched {
		copy(p[b<<blockShift:], d.block(b))
	}
}

func (d *image) Size() int64  { return int64(len(d.base)) }
func (*image) File() *os.File { return nil }
func (*image) Close() error   { return nil }

// stable is what the disk of a run has made durable, with what tells contents apart.
type stable struct {
	content []byte
	hashes  []uint64
	sum     uint64   // of the whole content
	before  [][]byte // what a block held before it changed last, where it did
}

var hashSeed = maphash.MakeSeed()

func hashBlock(p []byte) uint64 { return maphash.Bytes(hashSeed, p) }

// mix makes a block's hash one of its place too.
func mix(block int, hash uint64) uint64 {
	h := (hash ^ uint64(block)*0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd
	return h ^ h>>32
}

func newStable(d *ublktest.Disk) *stable {
	d.TakeDurable()
	content := d.Durable()
	s := &stable{content: slices.Clone(content), before: make([][]byte, len(content)>>blockShift)}
	for b := range s.before {
		h := hashBlock(content[b<<blockShift:][:blockSize])
		s.hashes = append(s.hashes, h)
		s.sum += mix(b, h)
	}
	return s
}

// follow takes over what became durable and reports whether anything did.
func (s *stable) follow(d *ublktest.Disk) (changed bool) {
	content := d.Durable()
	for _, b := range d.TakeDurable() {
		p := content[b<<blockShift:][:blockSize]
		mine := s.content[b<<blockShift:][:blockSize]
		if bytes.Equal(p, mine) {
			continue
		}
		h := hashBlock(p)
		changed = true
		s.before[b] = slices.Clone(mine)
		copy(mine, p)
		s.sum += mix(b, h) - mix(b, s.hashes[b])
		s.hashes[b] = h
	}
	return changed
}

// key identifies an image of s by its content.
func (s *stable) key(d *image) uint64 {
	sum := s.sum
	for _, b := range d.touched {
		if d.blocks[b] != nil {
			sum += mix(b, hashBlock(d.blocks[b])) - mix(b, s.hashes[b])
		}
	}
	return sum
}

// recorder is the disk of a run as its store sees it, outside of requests. While a goroutine works beside the requests, each of
// its writes and syncs waits to be let through.
type recorder struct {
	*ublktest.Disk
	gate  *gate
	fault func(flush bool) bool // whether this write or flush is to fail
}

func (d *recorder) WriteAt(p []byte, off int64) (int, error) {
	if err := d.gate.pass(); err != nil {
		return 0, err
	}
	if d.fault(false) {
		return 0, syscall.EIO
	}
	return d.Disk.WriteAt(p, off)
}

// Sync covers what had ended before it waited, and no more.
func (d *recorder) Sync() error {
	end := d.BeginSync()
	if err := d.gate.pass(); err != nil {
		return err
	}
	if d.fault(true) {
		d.Doom()
		return syscall.EIO
	}
	end()
	return nil
}

// Close leaves the disk for the next life of the store.
func (*recorder) Close() error { return nil }
