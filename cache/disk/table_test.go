package disk

import (
	"testing"

	"coppice/cache"
)

// bigTable is a cache with the usual layout in memory.
func bigTable(t *testing.T, size int64, change func(o *Options)) *Disk {
	t.Helper()
	g := layout(size)
	o := quiet()
	o.geometry = &g
	if change != nil {
		change(&o)
	}
	return openTest(t, make(memory, size), o)
}

// Chunks of all lengths that images have fit, and each class gets its room.
func TestLengths(t *testing.T) {
	d := bigTable(t, 64<<20, nil)
	for round := range 3 {
		for _, length := range []int{1, 4095, 4096, 4097, 8192, 16 << 10, 50_000, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1<<20 - 1, 1 << 20} {
			c, content := chunkOf(round, length)
			d.Put(c, content)
			if !get(t, d, c, content) {
				t.Errorf("a chunk of %d bytes is not kept", length)
			}
			if get(t, d, c, content[:length-1]) {
				t.Error("found with another length")
			}
		}
	}
	checkTable(t, d.table)
	used := d.Stats().Used
	c, content := chunkOf(0, 1<<20+1)
	d.Put(c, content)
	d.Put(cache.Chunk{}, content[:4096])
	d.Put(c, nil)
	if d.Stats().Used != used {
		t.Error("kept what cannot be one")
	}
}

// Where images of one chunk size take the place of those of another, the space follows.
func TestClassesGiveWay(t *testing.T) {
	d := bigTable(t, 32<<20, nil)
	for _, length := range []int{64 << 10, 1 << 20, 16 << 10, 64 << 10} {
		n := 2 * (32 << 20) / length
		for i := range n {
			d.Put(chunkOf(i, length))
		}
		checkTable(t, d.table)
		found := 0
		for i := n / 2; i < n; i++ {
			if c, content := chunkOf(i, length); get(t, d, c, content) {
				found++
			}
		}
		if found < n*8/20 {
			t.Errorf("%d of %d chunks of %d bytes, twice of which were put", found, n/2, length)
		}
	}
}

// What is read now and then outlasts a scan of four times the cache's size.
func TestScan(t *testing.T) {
	const size, length = 32 << 20, 64 << 10
	d := bigTable(t, size, nil)
	const hot = size / length / 8
	for i := range hot {
		d.Put(chunkOf(i, length))
	}
	readHot := func() (found int) {
		for i := range hot {
			if c, content := chunkOf(i, length); get(t, d, c, content) {
				found++
			}
		}
		return found
	}
	readHot()
	for i := range 4 * size / length {
		d.Put(chunkOf(1000+i, length))
		if i%(size/length) == 0 {
			readHot()
		}
	}
	if n := readHot(); n < hot*95/100 {
		t.Errorf("%d of %d", n, hot)
	}
}

// Small chunks do not make the index larger than it may be, and the policy still holds.
func TestMemoryIsBounded(t *testing.T) {
	const memory = 64 << 10
	d := bigTable(t, 32<<20, func(o *Options) { o.MemoryBytes = memory })
	hot, content := chunkOf(0, 4096)
	d.Put(hot, content)
	for i := range 10_000 {
		d.Put(chunkOf(1+i, 4096))
		if i%500 == 0 {
			if !get(t, d, hot, content) {
				t.Fatalf("a chunk that is read often is gone after %d others", i)
			}
			checkTable(t, d.table)
		}
		if s := d.Stats(); s.MemoryBytes > memory {
			t.Fatalf("%d bytes after %d chunks", s.MemoryBytes, i)
		}
	}
	if s := d.Stats(); s.Used < memory/entryMemory*3/4 {
		t.Errorf("only %d slots in use", s.Used)
	}
}

// A cache of 100 GiB with chunks of the usual size takes no more memory than it says.
func TestMemoryOfALargeCache(t *testing.T) {
	g := layout(100 << 30)
	o := Options{}
	slots := int64(g.Segments) * int64(g.slotsOf(16))
	if got := slots*entryMemory + int64(g.Buckets)*bucketMemory; got > 32<<20 {
		t.Errorf("%d slots take %d bytes", slots, got)
	}
	if most := o.maxSlots(&g); int64(most) < 2*slots {
		t.Errorf("at most %d slots, chunks of 64 KiB take %d", most, slots)
	}
}
