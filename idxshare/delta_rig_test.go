package idxshare

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"iter"
	"os"
	"slices"

	"coppice/idxshare/indextest"
)

// tester is what testing.TB and rapid.T have in common.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

func mustDo(t tester, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v", err)
	}
}

// openImage opens an image, which the caller closes, and returns its size in bytes.
func openImage(t tester, path string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(path)
	mustDo(t, err)
	st, err := f.Stat()
	mustDo(t, err)
	return f, st.Size()
}

// indexWhole makes the index of an image.
func indexWhole(t tester, image, index, source string, digests bool) {
	t.Helper()
	f, size := openImage(t, image)
	defer f.Close()
	_, err := Build(context.Background(), index, BuildInput{Device: f, Size: size, Source: source}, BuildOptions{Digests: digests})
	mustDo(t, err)
}

// differences are the ranges in which two images differ.
func differences(before, after string) iter.Seq2[ByteRange, error] {
	return func(yield func(ByteRange, error) bool) {
		stopped := false
		err := indextest.Differences(before, after, func(off, length int64) {
			stopped = stopped || !yield(ByteRange{off, length}, nil)
		})
		if err != nil && !stopped {
			yield(ByteRange{}, err)
		}
	}
}

// makeDelta makes and opens the delta of an image that differs from another.
func makeDelta(t tester, path string, base, previous *Index, before, after string) *Index {
	t.Helper()
	x, _ := makeDeltaReported(t, path, base, previous, before, after)
	return x
}

func makeDeltaReported(t tester, path string, base, previous *Index, before, after string) (*Index, DeltaReport) {
	t.Helper()
	f, size := openImage(t, after)
	defer f.Close()
	report, err := BuildDelta(context.Background(), path, DeltaInput{
		Base: base, Previous: previous, Content: unaligned{f, t}, Size: size, Changed: differences(before, after),
	}, DeltaOptions{Source: "leaf", Digests: base.Header().Digests})
	mustDo(t, err)
	x, err := Open(path)
	mustDo(t, err)
	return x, report
}

// unaligned demands that reads begin where those of a layer's content may.
type unaligned struct {
	f *os.File
	t tester
}

func (u unaligned) ReadAt(p []byte, off int64) (int, error) {
	if off%readUnit != 0 {
		u.t.Errorf("read at byte %d", off)
	}
	return u.f.ReadAt(p, off)
}

// ReadRanges implements [RangesReader].
func (u unaligned) ReadRanges(p []byte, ranges []ByteRange) error {
	end := int64(0)
	for _, r := range ranges {
		if r.Off < end || r.Len <= 0 || len(p) < int(r.Len) {
			u.t.Errorf("%d bytes at %d are asked for, behind what ends at %d, of %d", r.Len, r.Off, end, len(p))
		}
		end = r.Off + r.Len
		if n, err := u.ReadAt(p[:r.Len], r.Off); n < int(r.Len) {
			return err
		}
		p = p[r.Len:]
	}
	if len(p) > 0 {
		u.t.Errorf("%d bytes more are there than asked for", len(p))
	}
	return nil
}

// known is all that is known of a device.
type known struct {
	files   []File
	names   []Name
	extents []Extent
}

func allOf(t tester, v *View) *known {
	t.Helper()
	k, ctx := &known{}, context.Background()
	mustDo(t, v.Files(ctx, func(f *File) error {
		k.files = append(k.files, *f)
		return nil
	}))
	mustDo(t, v.Names(ctx, func(n Name) error {
		k.names = append(k.names, n)
		return nil
	}))
	mustDo(t, v.Extents(ctx, func(e Extent) error {
		k.extents = append(k.extents, e)
		return nil
	}))
	slices.SortFunc(k.files, func(a, b File) int { return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Inode, b.Inode)) })
	slices.SortFunc(k.names, func(a, b Name) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Parent, b.Parent), bytes.Compare(a.Name, b.Name))
	})
	slices.SortFunc(k.extents, compareExtents)
	return k
}

// compareWithIndex demands that base and delta together are an index of everything. Digests are compared where both have them, and may be missing only if the delta was told to make none.
func compareWithIndex(t tester, v *View, whole string) {
	t.Helper()
	x, err := Open(whole)
	mustDo(t, err)
	defer x.Close()
	alone, err := NewView(context.Background(), x, nil)
	mustDo(t, err)
	got, want := allOf(t, v), allOf(t, alone)
	for i := range max(len(got.files), len(want.files)) {
		switch {
		case i >= len(got.files):
			t.Fatalf("file %+v is missing", want.files[i])
		case i >= len(want.files):
			t.Fatalf("file %+v is too many", got.files[i])
		}
		g, w := got.files[i], want.files[i]
		if w.Digest == nil {
			g.Digest = nil
		}
		if !equalFiles(&g, &w) {
			t.Fatalf("the delta has\n%+v, the whole index\n%+v", g, w)
		}
	}
	for i := range max(len(got.names), len(want.names)) {
		if i >= len(got.names) || i >= len(want.names) || fmt.Sprint(got.names[i]) != fmt.Sprint(want.names[i]) {
			t.Fatalf("%d names, the whole index has %d; the first %d are the same", len(got.names), len(want.names), i)
		}
	}
	for i := range max(len(got.extents), len(want.extents)) {
		if i >= len(got.extents) || i >= len(want.extents) || got.extents[i] != want.extents[i] {
			t.Fatalf("%d extents, the whole index has %d; the first %d are the same: next %+v and %+v", len(got.extents), len(want.extents), i,
				at(got.extents, i), at(want.extents, i))
		}
	}
}

func at(list []Extent, i int) Extent {
	if i < len(list) {
		return list[i]
	}
	return Extent{}
}
