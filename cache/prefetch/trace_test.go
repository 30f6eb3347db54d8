package prefetch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"math"
	"os"
	"slices"
	"testing"
)

// A golden file of a released version is never written again.
var writeGolden = flag.Bool("write-golden", false, "write testdata anew: only before version 1 is released")

const goldenPath = "testdata/trace-v1"

func goldenTrace() *Trace {
	t := &Trace{SizeBytes: 200<<16 + 5, ChunkSize: 64 << 10, Chunks: []int64{0, 1, 2, 150, 3, 4, 200, 199, 7}}
	for i := range t.Root {
		t.Root[i] = byte(i)
	}
	return t
}

// Traces of version 1 are read, whatever later versions write.
func TestGoldenTrace(t *testing.T) {
	want := goldenTrace()
	if *writeGolden {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(goldenPath, want.Encode(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(goldenPath)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if !same(got, want) || !bytes.Equal(want.Encode(), data) {
		t.Errorf("read %+v, or written otherwise", got)
	}
	for i := range data {
		bent := slices.Clone(data)
		bent[i] ^= 0x40
		if _, err := Decode(bent); !errors.Is(err, ErrBadTrace) {
			t.Errorf("byte %d is another: %v", i, err)
		}
		if _, err := Decode(data[:i]); !errors.Is(err, ErrBadTrace) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}

func same(a, b *Trace) bool {
	return a.Root == b.Root && a.SizeBytes == b.SizeBytes && a.ChunkSize == b.ChunkSize && slices.Equal(a.Chunks, b.Chunks)
}

// sealed gives bytes the checksum of a trace, so that what comes after it is tried.
func sealed(p []byte) []byte {
	return binary.LittleEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

// What is whole and makes no sense is refused, before memory is taken for it.
func TestTracesThatMakeNoSense(t *testing.T) {
	list := func(numbers ...int64) []byte {
		p := goldenTrace().Encode()[:traceHeader]
		binary.LittleEndian.PutUint32(p[56:], uint32(numbers[0]))
		for i, n := range numbers[1:] {
			if i%2 == 0 {
				p = binary.AppendVarint(p, n)
			} else {
				p = binary.AppendUvarint(p, uint64(n))
			}
		}
		return sealed(p)
	}
	field := func(at int, n uint32) []byte {
		p := list(1, 0, 1)
		binary.LittleEndian.PutUint32(p[at:], n)
		return sealed(p[:len(p)-traceSum])
	}
	if tr, err := Decode(list(3, 5, 2, -4, 1)); err != nil || !slices.Equal(tr.Chunks, []int64{5, 6, 3}) {
		t.Fatalf("%+v, %v", tr, err)
	}
	for what, p := range map[string][]byte{
		"chunk before the first":   list(1, -1, 1),
		"chunk after the last":     list(1, 201, 1),
		"run over the end":         list(2, 200, 2),
		"run of nothing":           list(1, 0, 0),
		"run longer than the list": list(1, 0, 2),
		"list cut short":           list(2, 0, 1),
		"more than the list":       list(1, 0, 1, 0, 1),
		"half a run":               list(1, 0),
		"far beyond":               list(1, math.MaxInt64, 1),
		"endless run":              list(1, 0, -1),
		"many chunks":              list(MaxChunks + 1),
		"chunks of 3 bytes":        field(12, 3),
		"chunks of 2 GiB":          field(12, 1<<31),
		"reserved field":           field(8, 1<<16|traceVersion),
		"later version":            field(8, traceVersion+1),
		"negative size":            field(52, 1<<31),
	} {
		if tr, err := Decode(p); !errors.Is(err, ErrBadTrace) {
			t.Errorf("%s: %+v, %v", what, tr, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(goldenTrace().Encode())
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= traceSum {
			p = sealed(p[:len(p)-traceSum]) // or nothing but the checksum would be tried
		}
		tr, err := Decode(p)
		if err != nil {
			return
		}
		again, err := Decode(tr.Encode())
		if err != nil || !same(again, tr) {
			t.Fatalf("read again: %v", err)
		}
		for r := range tr.Ranges(MaxRange) {
			if r.Off < 0 || r.Len < 1 || r.Len > max(MaxRange, int64(tr.ChunkSize)) || r.Off+r.Len > tr.SizeBytes {
				t.Fatalf("range %+v of %d bytes", r, tr.SizeBytes)
			}
		}
	})
}

func TestRanges(t *testing.T) {
	const k = 64 << 10
	got := slices.Collect(goldenTrace().Ranges(2 * k))
	want := []Range{{0, 2 * k}, {2 * k, k}, {150 * k, k}, {3 * k, 2 * k}, {200 * k, 5}, {199 * k, k}, {7 * k, k}}
	if !slices.Equal(got, want) {
		t.Errorf("ranges %v", got)
	}
	if got := slices.Collect(Range{0, 5}.Split(2)); !slices.Equal(got, []Range{{0, 2}, {2, 2}, {4, 1}}) {
		t.Errorf("split: %v", got)
	}
}
