package prefetch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"math/bits"

	"coppice/image"
)

// Trace is a list of chunks of one content, in the order in which they were first asked for.
type Trace struct {
	Root      image.Digest // content root
	SizeBytes int64        // of the content, at least 1
	ChunkSize int          // in bytes, a power of two between the bounds below
	Chunks    []int64      // numbers of chunks that exist
}

// Bounds of a trace.
const (
	// MaxChunks is how many chunks a trace can have.
	MaxChunks = 1 << 20

	minChunkSize = 4 << 10
	maxChunkSize = 1 << 20
)

// ErrBadTrace is in the errors about bytes that are no trace.
var ErrBadTrace = errors.New("not a trace of root reads")

// A trace in a file, version 1. Numbers are little-endian.
//
//	offset  size
//	0       8     "coptrace"
//	8       2     version, 1
//	10      2     0
//	12      4     chunk size in bytes
//	16      32    content root
//	48      8     size of the content in bytes
//	56      4     number of chunks in the list
//	60      n     runs of neighbouring chunks until the list is complete, each of two varints (encoding/binary): first chunk minus the end of
//	              the run before (0 at first), signed; number of chunks, unsigned, at least 1
//	60+n    4     CRC-32C of all before
//
// A file is written under another name, synced, and renamed. One that is torn or damaged is found by its checksum, and is as good as none.
const (
	traceMagic   = "coptrace"
	traceVersion = 1
	traceHeader  = 60
	traceSum     = 4
	// MaxTraceBytes is how long a trace can be in a file.
	MaxTraceBytes = traceHeader + MaxChunks*(binary.MaxVarintLen64+1) + traceSum
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chunks returns how many chunks the content has.
func (t *Trace) chunks() int64 { return (t.SizeBytes + int64(t.ChunkSize) - 1) / int64(t.ChunkSize) }

func (t *Trace) validate() error {
	switch {
	case t.ChunkSize < minChunkSize || t.ChunkSize > maxChunkSize || bits.OnesCount(uint(t.ChunkSize)) != 1:
		return fmt.Errorf("%w: chunks of %d bytes", ErrBadTrace, t.ChunkSize)
	case t.SizeBytes < 1 || t.SizeBytes > 1<<62:
		return fmt.Errorf("%w: a content of %d bytes", ErrBadTrace, t.SizeBytes)
	case len(t.Chunks) > MaxChunks:
		return fmt.Errorf("%w: %d chunks, at most %d are taken", ErrBadTrace, len(t.Chunks), MaxChunks)
	}
	return nil
}

// Encode returns the trace as it is kept in a file.
func (t *Trace) Encode() []byte {
	p := make([]byte, traceHeader, traceHeader+4*len(t.Chunks)+traceSum)
	copy(p, traceMagic)
	binary.LittleEndian.PutUint16(p[8:], traceVersion)
	binary.LittleEndian.PutUint32(p[12:], uint32(t.ChunkSize))
	copy(p[16:], t.Root[:])
	binary.LittleEndian.PutUint64(p[48:], uint64(t.SizeBytes))
	binary.LittleEndian.PutUint32(p[56:], uint32(len(t.Chunks)))
	end := int64(0)
	for first, n := range t.runs() {
		p = binary.AppendVarint(p, first-end)
		p = binary.AppendUvarint(p, uint64(n))
		end = first + n
	}
	return binary.LittleEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

// runs goes through the list by runs of neighbours.
func (t *Trace) runs() iter.Seq2[int64, int64] {
	return func(yield func(first, n int64) bool) {
		for i := 0; i < len(t.Chunks); {
			k := i + 1
			for k < len(t.Chunks) && t.Chunks[k] == t.Chunks[i]+int64(k-i) {
				k++
			}
			if !yield(t.Chunks[i], int64(k-i)) {
				return
			}
			i = k
		}
	}
}

// Decode reads what Encode wrote. Its errors are [ErrBadTrace].
func Decode(p []byte) (*Trace, error) {
	if len(p) < traceHeader+traceSum || string(p[:8]) != traceMagic {
		return nil, fmt.Errorf("%w: it does not begin as one", ErrBadTrace)
	}
	if v := binary.LittleEndian.Uint16(p[8:]); v != traceVersion {
		return nil, fmt.Errorf("%w of a known version: this is version %d, known is %d", ErrBadTrace, v, traceVersion)
	}
	body, sum := p[:len(p)-traceSum], binary.LittleEndian.Uint32(p[len(p)-traceSum:])
	if crc32.Checksum(body, castagnoli) != sum || p[10]|p[11] != 0 {
		return nil, fmt.Errorf("%w: it is damaged", ErrBadTrace)
	}
	t := &Trace{ChunkSize: int(binary.LittleEndian.Uint32(p[12:])), SizeBytes: int64(binary.LittleEndian.Uint64(p[48:]))}
	copy(t.Root[:], p[16:])
	count := binary.LittleEndian.Uint32(p[56:])
	if count > MaxChunks {
		return nil, fmt.Errorf("%w: %d chunks, at most %d are taken", ErrBadTrace, count, MaxChunks)
	}
	if err := t.validate(); err != nil {
		return nil, err
	}
	return t, t.decodeRuns(body[traceHeader:], int64(count))
}

func (t *Trace) decodeRuns(p []byte, count int64) error {
	bad := fmt.Errorf("%w: its list makes no sense", ErrBadTrace)
	t.Chunks = make([]int64, 0, count)
	end := int64(0)
	for left := count; left > 0; {
		delta, k := binary.Varint(p)
		if k <= 0 {
			return bad
		}
		n, m := binary.Uvarint(p[k:])
		if m <= 0 {
			return bad
		}
		p = p[k+m:]
		if n < 1 || n > uint64(left) || delta < -end || delta > t.chunks()-end-int64(n) {
			return bad
		}
		for first := end + delta; n > 0; n-- {
			t.Chunks = append(t.Chunks, first)
			first++
			left--
			end = first
		}
	}
	if len(p) != 0 {
		return bad
	}
	return nil
}

// Range is a part of a content in bytes.
type Range struct{ Off, Len int64 }

// Ranges goes through what the list names, in its order; neighbours that follow each other are one range of up to most bytes, at least a chunk.
func (t *Trace) Ranges(most int64) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for first, n := range t.runs() {
			off := first * int64(t.ChunkSize)
			end := min(off+n*int64(t.ChunkSize), t.SizeBytes)
			for r := range (Range{off, end - off}).Split(max(most, int64(t.ChunkSize))) {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// Split goes through a range in ranges of up to most bytes.
func (r Range) Split(most int64) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for off, end := r.Off, r.Off+r.Len; off < end; off += most {
			if !yield(Range{off, min(most, end-off)}) {
				return
			}
		}
	}
}
