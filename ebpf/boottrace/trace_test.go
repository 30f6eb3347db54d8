package boottrace

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"coppice/ebpf"
	"coppice/image"
	"coppice/union"
)

const chunk = 64 << 10

// boot is a small trace with all that a trace can have.
func boot() *Trace {
	t := &Trace{
		Root: image.Digest{1, 2, 3}, ContentBytes: 20*chunk + 512, ChunkSize: chunk, DeviceBytes: 32 * chunk, Kernel: "6.12.90-cloud-amd64",
		Began: time.Unix(1_790_000_000, 5), Uptime: 2500 * time.Millisecond, Lost: 7,
		Processes: []string{"", "(udev-worker)", "systemd"}, Cgroups: []string{"", "/", "/system.slice/ssh.service"},
	}
	for _, e := range []Event{
		{Off: 0, Len: 4096, From: union.FromRoot, PID: 1, Process: 2, Cgroup: 1},
		{Off: 5 * chunk, Len: 2 * chunk, From: union.FromRoot | union.FromLeaf, PID: 77, Process: 1, Cgroup: 1},
		{Off: chunk, Len: 4096, Op: Write, PID: 1, Process: 2, Cgroup: 1},
		{Off: chunk, Len: 8192}, // half of it written before
		{Off: 2 * chunk, Len: chunk, From: union.FromLeaf, PID: 1, Process: 2, Cgroup: 2},
		{Off: 3 * chunk, Len: chunk, From: union.FromBranch | union.FromZeros, PID: 1, Process: 2, Cgroup: 2},
		{Off: 4 * chunk, Len: 3 * chunk, Op: Write},
		{Off: 4 * chunk, Len: 2 * chunk, PID: 1, Process: 2, Cgroup: 2}, // all of it written before
		{Off: 19*chunk + 4096, Len: 2 * chunk, From: union.FromMemory},  // beyond the end of the root, too
		{Off: 9 * chunk, Len: 512, Failed: true},
		{Off: 30 * chunk, Len: chunk},
	} {
		e.At = time.Duration(len(t.Events)) * time.Millisecond
		e.Took = time.Duration(100-len(t.Events)) * time.Microsecond
		t.Events = append(t.Events, e)
	}
	return t
}

func encoded(t testing.TB, v *Trace) []byte {
	t.Helper()
	p, err := v.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The file that version 1 was released with is read, and written, to the byte.
func TestGoldenFile(t *testing.T) {
	golden, err := os.ReadFile(filepath.Join("testdata", "trace-v1"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(golden)
	if err != nil {
		t.Fatal(err)
	}
	if want := boot(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v,\nwant %+v", got, want)
	}
	if !slices.Equal(encoded(t, boot()), golden) {
		t.Error("the same trace is written otherwise")
	}
}

// No byte can be changed, left away or added without its being noticed.
func TestDamageIsFound(t *testing.T) {
	p := encoded(t, boot())
	for i := range p {
		damaged := slices.Clone(p)
		damaged[i] ^= 1 << (i % 8)
		if _, err := Decode(damaged); !errors.Is(err, ErrBadTrace) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if _, err := Decode(p[:i]); !errors.Is(err, ErrBadTrace) {
			t.Fatalf("cut off at %d: %v", i, err)
		}
	}
	if _, err := Decode(append(p, 0)); !errors.Is(err, ErrBadTrace) {
		t.Errorf("with a byte more: %v", err)
	}
}

// resum makes the checksum right again.
func resum(p []byte) []byte {
	body := p[:len(p)-sumSize]
	return binary.LittleEndian.AppendUint32(slices.Clone(body), crc32.Checksum(body, castagnoli))
}

// Numbers that make no sense are refused although the checksum is right, before they take memory or time.
func TestNonsenseIsRefused(t *testing.T) {
	good := encoded(t, boot())
	if _, err := Decode(resum(good)); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([]byte){
		"version":     func(p []byte) { p[8] = 2 },
		"release":     func(p []byte) { p[10] = 65 },
		"chunk size":  func(p []byte) { p[12] = 1 },
		"no root":     func(p []byte) { binary.LittleEndian.PutUint64(p[48:], 0) },
		"huge device": func(p []byte) { binary.LittleEndian.PutUint64(p[56:], 1<<62) },
		"small":       func(p []byte) { binary.LittleEndian.PutUint64(p[56:], chunk) },
		"when":        func(p []byte) { p[71] = 0x80 },
		"uptime":      func(p []byte) { p[79] = 0x80 },
		"events":      func(p []byte) { binary.LittleEndian.PutUint32(p[88:], 1<<31) },
		"an event":    func(p []byte) { p[88]++ },
		"processes":   func(p []byte) { binary.LittleEndian.PutUint32(p[92:], 1<<31) },
		"a process":   func(p []byte) { p[92]-- },
		"cgroups":     func(p []byte) { binary.LittleEndian.PutUint32(p[96:], maxNames+1) },
		"reserved":    func(p []byte) { p[100] = 1 },
	} {
		p := slices.Clone(good)
		change(p)
		if v, err := Decode(resum(p)); !errors.Is(err, ErrBadTrace) {
			t.Errorf("%s: %v, %+v", name, err, v)
		}
	}
	for name, change := range map[string]func(*Trace){
		"odd offset":     func(v *Trace) { v.Events[0].Off = 1 },
		"no length":      func(v *Trace) { v.Events[0].Len = 0 },
		"beyond":         func(v *Trace) { v.Events[0].Off = v.DeviceBytes },
		"endless":        func(v *Trace) { v.Events[0].Len = maxRead + 512; v.DeviceBytes = 1 << 40 },
		"backwards":      func(v *Trace) { v.Events[3].At = 0 },
		"early":          func(v *Trace) { v.Events[0].At = -1 },
		"no operation":   func(v *Trace) { v.Events[0].Op = ops },
		"no process":     func(v *Trace) { v.Events[0].Process = 3 },
		"no cgroup":      func(v *Trace) { v.Events[0].Cgroup = -1 },
		"negative pid":   func(v *Trace) { v.Events[0].PID = -1 },
		"long name":      func(v *Trace) { v.Processes[1] = "0123456789abcdef" },
		"long path":      func(v *Trace) { v.Cgroups[1] = string(make([]byte, maxPath+1)) },
		"many processes": func(v *Trace) { v.Processes = make([]string, maxNames+1) },
	} {
		v := boot()
		change(v)
		if _, err := v.Encode(); !errors.Is(err, ErrBadTrace) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Any trace comes back as it was.
func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		v := boot()
		v.DeviceBytes, v.Events = 1<<40, nil
		at := time.Duration(0)
		for range rng.IntN(2000) {
			at += time.Duration(rng.Int64N(1 << rng.IntN(40)))
			e := Event{
				At: at, Took: time.Duration(rng.Int64N(1 << 40)), Off: rng.Int64N(1<<30) * sector, Len: (1 + rng.Int64N(2048)) * sector, Op: Op(rng.IntN(int(ops))),
				Failed: rng.IntN(9) == 0, From: union.Origins(rng.IntN(256)), PID: rng.Int32(), Process: rng.IntN(3), Cgroup: rng.IntN(3),
			}
			v.Events = append(v.Events, e)
		}
		got, err := Decode(encoded(t, v))
		if err != nil || len(got.Events) != len(v.Events) || len(v.Events) > 0 && !reflect.DeepEqual(got, v) {
			t.Fatalf("%d events: %v", len(v.Events), err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, boot()))
	f.Add(encoded(f, &Trace{ContentBytes: 1, DeviceBytes: 1, ChunkSize: minChunkSize, Began: time.Unix(0, 0)}))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > headerSize+sumSize {
			p = resum(p) // what is behind the checksum is what is looked at
		}
		v, err := Decode(p)
		if err != nil {
			if !errors.Is(err, ErrBadTrace) {
				t.Error(err)
			}
			return
		}
		list := v.Prefetch()
		v.Summary()
		for _, c := range list.Chunks {
			if c < 0 || c*int64(v.ChunkSize) >= v.ContentBytes {
				t.Errorf("chunk %d of %d bytes", c, v.ContentBytes)
			}
		}
		again, err := Decode(encoded(t, v))
		if err != nil || !reflect.DeepEqual(again, v) {
			t.Errorf("not the same again: %v", err)
		}
	})
}

// The list has what the root was read for, in order, and nothing else.
func TestPrefetchList(t *testing.T) {
	v := boot()
	list := v.Prefetch()
	if want := []int64{0, 5, 6, 1, 19, 20}; !slices.Equal(list.Chunks, want) || list.Root != v.Root || list.SizeBytes != v.ContentBytes || list.ChunkSize != chunk {
		t.Errorf("%+v, want the chunks %v", list, want)
	}
	v.Root = image.Digest{}
	if list := v.Prefetch(); len(list.Chunks) != 0 {
		t.Errorf("of a raw disk: %v", list.Chunks)
	}
}

func TestSummary(t *testing.T) {
	s := boot().Summary()
	if s.Reads.Count != 9 || s.Writes.Count != 2 || s.Reads.Failed != 1 || s.Lost != 7 || s.Prefetch != 6 || s.Lasted != 10*time.Millisecond+90*time.Microsecond {
		t.Errorf("%+v", s)
	}
	if s.Reads.Bytes != 4096+2*chunk+8192+2*chunk+2*chunk+2*chunk+512+chunk || s.Writes.Bytes != 4096+3*chunk {
		t.Errorf("%d bytes read, %d written", s.Reads.Bytes, s.Writes.Bytes)
	}
	if s.Chunks != 10 { // 0, 1, 2, 3, 4, 5, 6, 9, 19, 20; 30 is beyond the root
		t.Errorf("%d chunks", s.Chunks)
	}
	find := func(list []NamedPart, name string) NamedPart {
		i := slices.IndexFunc(list, func(p NamedPart) bool { return p.Name == name })
		if i < 0 {
			t.Fatalf("no %q in %+v", name, list)
		}
		return list[i]
	}
	if p := find(s.Process, "systemd"); p.Count != 4 || p.First != 0 || p.Last != 7*time.Millisecond {
		t.Errorf("systemd: %+v", p)
	}
	if p := find(s.Cgroup, "/system.slice/ssh.service"); p.Count != 3 {
		t.Errorf("%+v", p)
	}
	for name, want := range map[string]uint64{"unknown": 4, "leaf": 1, "branch": 1, "memory": 1, "root": 2} {
		if p := find(s.Sources, name); p.Count != want {
			t.Errorf("from %s: %+v, want %d", name, p, want)
		}
	}
	if got := boot().Events[1].Sources(); !slices.Equal(got, []string{"leaf", "root"}) {
		t.Errorf("%q", got)
	}
	reads := 0
	for e := range boot().Reads() {
		if e.Op != Read {
			t.Errorf("%+v", e)
		}
		reads++
	}
	if reads != 9 {
		t.Errorf("%d reads", reads)
	}
}

// What the kernel has recorded of one disk becomes a trace; what others had is left out, and what is not known is said to be.
func TestCollector(t *testing.T) {
	disk := ebpf.DiskID{Minor: 3, Seq: 9}
	c := NewCollector(disk)
	at := func(ms int64) time.Duration { return 5*time.Second + time.Duration(ms)*time.Millisecond }
	for _, r := range []ebpf.Traced{
		{Disk: disk, Began: at(8), Took: 1, Off: 4096, Len: 4096, PID: 5, Comm: "cat", Cgroup: 42},
		{Disk: ebpf.DiskID{Minor: 3, Seq: 8}, Began: at(1), Len: 4096},
		{Disk: disk, Began: at(2), Took: 1, Off: 0, Len: 4096, PID: 4, Comm: "mount", Cgroup: 1},
		{Disk: disk, Began: at(3), Took: 1, Off: 8192, Len: 4096, Write: true, Comm: "mount", Cgroup: 1},
		{Disk: disk, Began: at(9), Took: 1, Off: 8192, Len: 4096, Comm: "cat", Cgroup: 43},
		{Disk: disk, Began: at(10), Took: 1, Off: 1 << 30, Len: 4096},                                         // beyond the end
		{Disk: disk, Began: at(11), Took: 1, Off: 12288, Len: 4096, Mark: uint8(union.FromRoot), Comm: "cat"}, // in the leaf by now
	} {
		if err := c.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Unix(1_790_000_000, 0)
	v := c.Trace(Facts{
		Trace: Trace{ContentBytes: 1 << 20, DeviceBytes: 1 << 20, ChunkSize: chunk, Kernel: "6.1", Lost: 2}, Now: now, Clock: at(1000),
		Cgroups: map[uint64]string{1: "/", 42: "/a.slice"},
		Leaf:    func(yield func(from, to int64) bool) { _ = yield(0, 4096) && yield(8192, 16384) },
	})
	if _, err := v.Encode(); err != nil {
		t.Fatal(err)
	}
	if c.Len() != 6 || v.Lost != 3 || v.Uptime != at(2) || !v.Began.Equal(now.Add(-998*time.Millisecond)) {
		t.Errorf("%d taken, %+v", c.Len(), v)
	}
	type row struct {
		off           int64
		op            Op
		from          union.Origins
		process, path string
	}
	var got []row
	for _, e := range v.Events {
		got = append(got, row{e.Off, e.Op, e.From, v.Processes[e.Process], v.Cgroups[e.Cgroup]})
	}
	want := []row{
		{0, Read, union.FromLeaf, "mount", "/"}, {8192, Write, 0, "mount", "/"}, {4096, Read, 0, "cat", "/a.slice"}, {8192, Read, 0, "cat", ""}, {12288, Read, union.FromRoot, "cat", ""},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v,\nwant %+v", got, want)
	}
	if empty := NewCollector(disk).Trace(Facts{Trace: Trace{ContentBytes: 1, DeviceBytes: 1, ChunkSize: chunk}, Now: now}); len(empty.Events) != 0 || len(encoded(t, empty)) == 0 {
		t.Errorf("of nothing: %+v", empty)
	}
}

func TestCgroupPaths(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "system.slice", "ssh.service"), 0o755); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, path := range CgroupPaths(dir) {
		got = append(got, path)
	}
	slices.Sort(got)
	if want := []string{"/", "/system.slice", "/system.slice/ssh.service"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if none := CgroupPaths(filepath.Join(dir, "none")); len(none) != 0 {
		t.Errorf("%v", none)
	}
}

// A set of bytes is what a map of each of them is.
func TestExtents(t *testing.T) {
	const size = 200
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		var x extents
		var naive [size + 1]bool
		for range rng.IntN(30) {
			from := rng.Int64N(size)
			to := from + 1 + rng.Int64N(min(20, size-from))
			x.add(from, to)
			for i := from; i < to; i++ {
				naive[i] = true
			}
			for i := 1; i < len(x.list); i++ {
				if x.list[i].from <= x.list[i-1].to {
					t.Fatalf("%v", x.list)
				}
			}
		}
		for range 50 {
			from := rng.Int64N(size)
			to := from + rng.Int64N(size+1-from)
			var all, none = true, true
			missing := make(map[int64]bool)
			for i := from; i < to; i++ {
				all, none = all && naive[i], none && !naive[i]
				if !naive[i] {
					missing[i] = true
				}
			}
			n := 0
			for a, b := range x.gaps(from, to) {
				for i := a; i < b; i++ {
					if !missing[i] {
						t.Fatalf("%d is no gap of %v", i, x.list)
					}
					n++
				}
			}
			if n != len(missing) || x.covers(from, to) != all || to > from && x.touches(from, to) == none {
				t.Fatalf("%d to %d of %v: %d gaps, want %d", from, to, x.list, n, len(missing))
			}
		}
	}
}
