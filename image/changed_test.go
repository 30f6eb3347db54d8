package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
	"testing"
)

// patched is content with changes, and what they are.
type patched struct {
	content []byte
	extents []Extent
}

// patch makes a content of size bytes out of base by random changes, behind its end zeros.
func patch(rng *rand.Rand, base []byte, size int) patched {
	p := patched{content: make([]byte, size)}
	copy(p.content, base)
	for off := 0; ; {
		if off += rng.IntN(12) * 4096; rng.IntN(8) == 0 {
			off += rng.IntN(size)
		}
		n := min((1+rng.IntN(10))*4096, size-off)
		if n <= 0 {
			return p
		}
		x := Extent{int64(off), int64(n), rng.IntN(3) == 0}
		clear(p.content[off : off+n])
		if !x.Zero {
			for i := range n / 8 {
				le.PutUint64(p.content[off+8*i:], rng.Uint64())
			}
		}
		p.extents = append(p.extents, x)
		off += n
	}
}

func (p patched) changed() iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		for _, x := range p.extents {
			if !yield(x, nil) {
				return
			}
		}
	}
}

// A build that is told what changed makes the image that one makes that reads everything, whatever the sizes.
func TestBuildOfChanges(t *testing.T) {
	base := testContent(21, 1<<20+3*4096+512)
	for seed := range uint64(24) {
		rng := rand.New(rand.NewPCG(seed, 5))
		chunk := 4096 << rng.IntN(4)
		size := len(base)
		switch rng.IntN(3) {
		case 0:
			size += rng.IntN(1 << 18)
		case 1:
			size -= rng.IntN(1 << 18)
		}
		t.Run(fmt.Sprintf("seed %d, chunks of %d, %d bytes", seed, chunk, size), func(t *testing.T) {
			l := testLayout(t)
			o := small()
			o.ChunkSize = chunk
			buildTest(t, l, "a:1", base, o)
			p := patch(rng, base, size)
			o.Base, o.Changed = openTest(t, l, "a:1"), p.changed
			r := buildTest(t, l, "a:2", p.content, o)
			checkBuilt(t, l, "a:2", p.content)
			whole := o
			whole.Changed = nil
			if w := buildTest(t, l, "a:3", p.content, whole); w.ContentRoot != r.ContentRoot || w.Zero != r.Zero || w.Stored != r.Stored || w.StoredBytes != r.StoredBytes {
				t.Errorf("%+v, but with everything read %+v", r, w)
			}
		})
	}
}

// What changed is read, and little else, of the source and of the base.
func TestBuildOfChangesReadsLittle(t *testing.T) {
	const size, chunk = 64 << 20, 16 << 10
	content := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	for i := 0; i < size; i += chunk { // each chunk is another
		le.PutUint64(content[i:], uint64(i)+1)
	}
	l := testLayout(t)
	o := BuildOptions{ChunkSize: chunk}
	buildTest(t, l, "a:1", content, o)
	p := patched{content: content, extents: []Extent{{5 << 20, 512 << 10, false}, {40<<20 + 8192, 4096, false}, {50 << 20, 8 << 20, true}}}
	for _, x := range p.extents {
		clear(content[x.Off : x.Off+x.Len])
	}
	copy(content[5<<20:], "changed")
	o.Base, o.Changed = openTest(t, l, "a:1"), p.changed
	r := buildTest(t, l, "a:2", content, o)
	if want := int64(512<<10 + chunk); r.ReadBytes != want {
		t.Errorf("%d bytes of the source were read, of %d that changed", r.ReadBytes, want)
	}
	if s := o.Base.ReadStats(); s.Bytes > o.Base.Table().Size+4096 {
		t.Errorf("%d bytes of the base were read, of a table of %d", s.Bytes, o.Base.Table().Size)
	}
	checkBuilt(t, l, "a:2", content)
	if r.BasePacks != 1 || r.NewPacks != 1 || r.Zero < 512 {
		t.Errorf("%+v", r)
	}
}

// A build of changes goes on where one that was interrupted ended.
func TestBuildOfChangesGoesOn(t *testing.T) {
	base := testContent(22, 1<<20)
	l := testLayout(t)
	buildTest(t, l, "a:1", base, small())
	rng := rand.New(rand.NewPCG(3, 3))
	p := patch(rng, base, len(base))
	o := small()
	o.Base = openTest(t, l, "a:1")
	o.Changed = func() iter.Seq2[Extent, error] {
		return func(yield func(Extent, error) bool) {
			for i, x := range p.extents {
				if i == len(p.extents)*3/4 {
					yield(Extent{}, errors.New("the store is gone"))
					return
				}
				if !yield(x, nil) {
					return
				}
			}
		}
	}
	in := bytes.NewReader(p.content)
	_, err := Build(context.Background(), l, "a:2", in, in.Size(), o)
	if err == nil || !strings.Contains(err.Error(), "find out what changed: the store is gone") {
		t.Fatal(err)
	}
	o.Changed = p.changed
	if r := buildTest(t, l, "a:2", p.content, o); r.Resumed < int64(len(base))/4 {
		t.Errorf("only %d bytes were taken over", r.Resumed)
	}
	checkBuilt(t, l, "a:2", p.content)
}

func TestBuildRefusesChangesOutOfOrder(t *testing.T) {
	base := testContent(23, 1<<20)
	l := testLayout(t)
	buildTest(t, l, "a:1", base, small())
	o := small()
	for name, extents := range map[string][]Extent{
		"backwards": {{8192, 4096, false}, {0, 4096, false}},
		"overlap":   {{0, 8192, false}, {4096, 8192, false}},
		"empty":     {{4096, 0, false}},
		"beyond":    {{1 << 20, 4096, false}},
		"overflow":  {{4096, 1<<63 - 1, false}},
		"negative":  {{-4096, 8192, false}},
	} {
		o.Base, o.Changed = openTest(t, l, "a:1"), patched{extents: extents}.changed
		if _, err := Build(context.Background(), l, "a:2", bytes.NewReader(base), 1<<20, o); !errors.Is(err, ErrBadOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
	o.Base = nil
	if _, err := Build(context.Background(), l, "a:2", bytes.NewReader(base), 1<<20, o); !errors.Is(err, ErrBadOption) {
		t.Errorf("without a base: %v", err)
	}
}
