package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/google/uuid"

	"coppice/cache"
)

var testUUID = uuid.MustParse("6f9619ff-8b86-d011-b42d-00c04fc964ff")

// tester is what *testing.T and *rapid.T have in common.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// smallGeometry has seven segments of 32 KiB, and few buckets, so that chains are long.
func smallGeometry() geometry { return layoutOf(96, 8) }

// memory is a device without any faults.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
func (m memory) Sync() error                              { return nil }
func (m memory) Close() error                             { return nil }

// quiet are options for a cache that does everything when it is told to.
func quiet() Options {
	g := smallGeometry()
	return Options{geometry: &g, uuid: testUUID, inline: true, patient: true, ReadTimeout: time.Hour, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

// openTest opens a cache that the test never closes, but for what it is about.
func openTest(t tester, dev device, o Options) *Disk {
	t.Helper()
	d, err := tryOpen(dev, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func tryOpen(dev device, o Options) (*Disk, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	return openOn("test", dev, int64(o.geometry.Blocks)<<blockShift, o)
}

var madeChunks sync.Map

type madeChunk struct {
	c       cache.Chunk
	content []byte
}

// testChunk makes chunk n, of a length from 1 byte to 32 KiB that follows from n, mostly that of a whole class.
func testChunk(n int) (cache.Chunk, []byte) {
	made, ok := madeChunks.Load(n)
	if !ok {
		rng := rand.New(rand.NewPCG(uint64(n), 1))
		length := min(32<<10, blockSize<<rng.IntN(5))
		if rng.IntN(4) == 0 {
			length = 1 + rng.IntN(length)
		}
		c, content := chunkOf(n, length)
		made, _ = madeChunks.LoadOrStore(n, madeChunk{c, content})
	}
	m := made.(madeChunk)
	return m.c, m.content
}

// chunkOf makes chunk n, of a length.
func chunkOf(n, length int) (cache.Chunk, []byte) {
	p := make([]byte, roundUp(length))
	rng := rand.New(rand.NewPCG(uint64(n), uint64(length)))
	var v uint64
	for i := 0; i < len(p); i += 8 {
		if i%512 == 0 {
			v = rng.Uint64()
		}
		le.PutUint64(p[i:], v)
	}
	p = p[:length]
	return cache.Chunk{Key: sha256.Sum256(p), Len: length}, p
}

// get reports whether a chunk is there, and fails where it has other bytes, or there is an error.
func get(t tester, d *Disk, c cache.Chunk, want []byte) bool {
	t.Helper()
	p := make([]byte, len(want))
	err := d.Get(context.Background(), c, p)
	if errors.Is(err, cache.ErrMiss) {
		return false
	}
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	if !bytes.Equal(p, want) {
		t.Fatalf("wrong bytes in a chunk of %d", len(want))
	}
	return true
}

// checkTable compares all that the table says about itself.
func checkTable(t tester, tb *table) {
	t.Helper()
	slots, used, free, content := 0, 0, 0, int64(0)
	for seg := range tb.segs {
		s := &tb.segs[seg]
		if s.class == 0 {
			free++
		} else if len(s.entries) != tb.g.slotsOf(s.class) {
			t.Fatalf("segment %d of class %d has %d slots", seg, s.class, len(s.entries))
		}
		slots += len(s.entries)
		for slot := range s.entries {
			e := &s.entries[slot]
			if e.meta&metaUsed == 0 {
				if *e != (entry{}) {
					t.Fatalf("slot %d.%d is not in use and has %+v", seg, slot, *e)
				}
				continue
			}
			used++
			content += int64(e.meta&metaLen) + 1
			if !inChain(tb, tb.bucketOf(e), tb.id(seg, slot)) {
				t.Fatalf("slot %d.%d is not in its chain", seg, slot)
			}
		}
	}
	if slots != tb.slots || used != tb.used || free != tb.free || content != tb.bytes {
		t.Fatalf("%d slots, %d used, %d free segments, %d bytes; counted %d, %d, %d, %d", tb.slots, tb.used, tb.free, tb.bytes, slots, used, free, content)
	}
	if tb.slots > tb.maxSlots {
		t.Fatalf("%d slots, of at most %d", tb.slots, tb.maxSlots)
	}
	chained := 0
	for _, id := range tb.heads {
		for ; id&lastBit == 0; id = tb.entry(id).next {
			chained++
		}
	}
	if chained != used {
		t.Fatalf("%d entries in chains, %d in use", chained, used)
	}
}

func inChain(tb *table, bucket, want uint32) bool {
	for id := tb.heads[bucket]; id&lastBit == 0; id = tb.entry(id).next {
		if id == want {
			return true
		}
	}
	return false
}
