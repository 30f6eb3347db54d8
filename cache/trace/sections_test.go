package trace_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"coppice/cache"
	"coppice/cache/trace"
	"coppice/image/faultproxy"
)

// network is one by which the origin is reached.
type network struct {
	name string
	faultproxy.Fault
}

// networks are those of a full run, or the first alone.
func (f *figures) networks() []network {
	if f.full {
		return []network{{"LAN", faultproxy.LAN}, {"WAN", faultproxy.WAN}}
	}
	return []network{{"LAN", faultproxy.LAN}}
}

// boot is the first trace.
func (f *figures) boot() *trace.Trace { return f.traces[0] }

// rounds is how often something is timed.
func (f *figures) rounds(n int) int {
	if f.full {
		return n
	}
	return 1
}

// chunkSizes boots through an empty cache from images of different chunk sizes.
func (f *figures) chunkSizes(t *testing.T) {
	sizes := []int{16 << 10, 32 << 10, 64 << 10, 128 << 10}
	if !f.full {
		sizes = []int{64 << 10}
	}
	rows := [][]string{{"chunk", "network", "reads of the root, all together", "requests", "origin bytes"}}
	for _, size := range sizes {
		dir := buildImage(t, f.disk, size)
		for _, net := range f.networks() {
			o := serveImage(t, dir, net.Fault)
			y := replay(t, fmt.Sprintf("%d KiB, %s", size>>10, net.name), newNode(t, o.ref, cache.Options{}).root.Reader(), f.boot(), f.disk, nil)
			rows = append(rows, []string{fmt.Sprintf("%d KiB", size>>10), net.name, millis(y.Sum), fmt.Sprint(o.Requests()), mib(o.Sent())})
		}
	}
	f.table(rows...)
}

// second boots a second device on a node.
func (f *figures) second(t *testing.T) {
	dir := buildImage(t, f.disk, chunk)
	rows := [][]string{{"network", "first device: its reads together", "second device", "first / second, goal ≥ 10", "lowest of a round", "origin bytes of the first", "of the second", "of the second on an image opened anew"}}
	for _, net := range f.networks() {
		var first, second []time.Duration
		var bytes [3]int64
		lowest := math.Inf(1)
		for range f.rounds(10) {
			o := serveImage(t, dir, net.Fault)
			n := newNode(t, o.ref, cache.Options{})
			var y [3]trace.Tally
			y[0] = replay(t, net.name+", device 1", n.root.Reader(), f.boot(), f.disk, nil)
			bytes[0] = o.Sent()
			y[1] = replay(t, net.name+", device 2", n.root.Reader(), f.boot(), f.disk, nil)
			bytes[1] = o.Sent() - bytes[0]
			y[2] = replay(t, net.name+", device 3", n.open(t, o.ref).Reader(), f.boot(), f.disk, nil)
			bytes[2] = o.Sent() - bytes[0] - bytes[1]
			first, second = append(first, y[0].Sum), append(second, y[1].Sum)
			lowest = min(lowest, float64(y[0].Sum)/float64(y[1].Sum))
		}
		if bytes[1]*100 > bytes[0] {
			t.Errorf("%s: the second device takes %d bytes from the origin, the first %d", net.name, bytes[1], bytes[0])
		}
		a, b := median(first), median(second)
		of := func(n int64) string { return fmt.Sprintf("%s, %.2f %%", mib(n), 100*float64(n)/float64(bytes[0])) }
		rows = append(rows, []string{net.name, millis(a), millis(b), fmt.Sprintf("%.0f", float64(a)/float64(b)), fmt.Sprintf("%.0f", lowest), mib(bytes[0]), of(bytes[1]) + ", goal ≤ 1 %", of(bytes[2])})
	}
	f.table(rows...)
}

// scannedDisk is the disk that is read from beginning to end: data everywhere, and none of it in the disk of the boot.
func scannedDisk(size int64) *trace.Disk { return &trace.Disk{Bytes: size, Stored: 10, Seed: 2} }

// scan reads all of an image in pieces of 128 KiB.
func scan(t *testing.T, r *cache.Root, size int64) {
	t.Helper()
	v, p := r.Reader(), make([]byte, 128<<10)
	for off := int64(0); off < size; off += int64(len(p)) {
		if err := v.Read(t.Context(), p[:min(int64(len(p)), size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
}

// bootFrom replays the trace through the cache, and returns how often memory had what it asked for.
func (f *figures) bootFrom(t *testing.T, r *cache.Root) share {
	t.Helper()
	v := r.Reader()
	replay(t, "boot", v, f.boot(), f.disk, nil)
	return hits(v.Stats())
}

// roomy is the size of a cache in which a boot takes about half.
func (f *figures) roomy() int64 {
	return max(cache.MinMemory, int64(len(f.boot().Chunks(chunk)))*chunk*2)
}

// scanPlans say how often is booted, and then scanned, before the boot that counts.
func (f *figures) scanPlans() [][2]int {
	if f.full {
		return [][2]int{{1, 1}, {2, 1}, {2, 2}}
	}
	return [][2]int{{2, 1}}
}

// scans shows what a scan leaves of a boot.
func (f *figures) scans(t *testing.T) {
	memory := f.roomy()
	size := memory * 4
	disk, other := nearly(f.disk, chunk), nearly(scannedDisk(size), chunk)
	rows := [][]string{{"policy"}}
	for _, plan := range f.scanPlans() {
		rows[0] = append(rows[0], fmt.Sprintf("boots: %d, scans: %d", plan[0], plan[1]))
	}
	for _, policy := range cache.Policies() {
		row := []string{fmt.Sprintf("`%s`, %s of memory", policy, mib(memory))}
		for _, plan := range f.scanPlans() {
			c := newCache(t, cache.Options{MemoryBytes: memory, Policy: policy})
			boot, scanned := c.Open(disk), c.Open(other)
			for range plan[0] {
				f.bootFrom(t, boot)
			}
			for range plan[1] {
				scan(t, scanned, size)
			}
			s := f.bootFrom(t, boot)
			if policy == cache.S3FIFO && plan[0] == 2 && s.percent() < 95 {
				t.Errorf("%s, boots and scans %v: %.1f %% hits", policy, plan, s.percent())
			}
			row = append(row, s.String())
			boot.Close()
			scanned.Close()
		}
		rows = append(rows, row)
	}
	for _, name := range []string{"golang-lru, LRU", "golang-lru, 2Q"} {
		row := []string{fmt.Sprintf("%s, %d chunks", name, memory/chunk)}
		for _, plan := range f.scanPlans() {
			row = append(row, scanIndex(indexes(int(memory / chunk))[name], f.boot(), size, plan).String())
		}
		rows = append(rows, row)
	}
	f.text("The boot has %s in chunks that are not zeros, the scan reads %s of another image.", mib(int64(len(f.boot().Chunks(chunk)))*chunk), mib(size))
	f.table(rows...)
}

// scanIndex is what a scan leaves of a boot in an index.
func scanIndex(x index, boot *trace.Trace, size int64, plan [2]int) share {
	for range plan[0] {
		bootOn(x, boot)
	}
	for range plan[1] {
		for i := range size / chunk {
			x.touch(-1 - i)
		}
	}
	return bootOn(x, boot)
}

// tenth boots twice through caches that are smaller than the root.
func (f *figures) tenth(t *testing.T) {
	rows := [][]string{{"memory", "first boot: hits", "second boot: hits", "goal"}}
	data, disk := int64(len(f.boot().Held(chunk)))*chunk, nearly(f.disk, chunk)
	for _, c := range []struct {
		what, goal string
		bytes      int64
	}{
		{"10 % of the root's size", "≥ 95 %", f.boot().Size / 10},
		{"10 % of the root's data", "", data / 10},
		{"20 % of the root's data", "", data / 5},
	} {
		bytes := max(cache.MinMemory, c.bytes)
		for _, policy := range cache.Policies() {
			n := newCache(t, cache.Options{MemoryBytes: bytes, Policy: policy})
			r := n.Open(disk)
			first, second := f.bootFrom(t, r), f.bootFrom(t, r)
			r.Close()
			rows = append(rows, []string{fmt.Sprintf("%s: %s, `%s`", c.what, mib(bytes), policy), first.String(), second.String(), c.goal})
		}
	}
	f.table(rows...)
}

// lossPoints are when something is lost, in percent of the boot's reads.
func (f *figures) lossPoints() []int {
	if f.full {
		return []int{10, 50, 90}
	}
	return []int{50}
}

// loss is a tier that is lost while a device boots.
type loss struct {
	name string
	// make returns the options of a cache whose tier has all chunks, and what loses it.
	make func(t *testing.T, f *figures, warm *node) (o cache.Options, lose func())
}

// losses boots devices whose tiers go away meanwhile.
func (f *figures) losses(t *testing.T) {
	dir := buildImage(t, f.disk, chunk)
	o := serveImage(t, dir, faultproxy.LAN)
	warm := newNode(t, o.ref, cache.Options{})
	f.bootFrom(t, warm.root)
	rows := [][]string{{"lost", "at", "errors, goal 0", "longest read, goal ≤ 2 s", "chunks from the tier", "from the origin"}}
	for _, l := range lossKinds {
		for _, at := range f.lossPoints() {
			options, lose := l.make(t, f, warm)
			n := newNode(t, o.ref, options)
			v, when := n.root.Reader(), len(f.boot().Reads)*at/100
			y := replay(t, fmt.Sprintf("%s lost at %d %%", l.name, at), v, f.boot(), f.disk, func(i int) {
				if i == when {
					lose()
				}
			})
			s := v.Stats()
			if s.Disk.Chunks+s.Peers.Chunks+s.Appliance.Chunks == 0 {
				t.Errorf("%s: the tier gave nothing: %+v", l.name, s)
			}
			rows = append(rows, []string{l.name, fmt.Sprintf("%d %%", at), fmt.Sprint(y.Errors + y.Wrong), millis(y.Longest),
				fmt.Sprint(s.Disk.Chunks + s.Peers.Chunks + s.Appliance.Chunks), fmt.Sprint(s.Origin.Chunks)})
		}
	}
	f.table(rows...)
}
