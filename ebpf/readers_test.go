package ebpf

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	cilium "github.com/cilium/ebpf"
)

// Where the kernel claims to be able to, every program that counts who reads passes the verifier, and no map can grow without bound.
func TestReadersVerifier(t *testing.T) {
	if !supported(t) {
		return // TestVerifier has asserted that it is said
	}
	pins := pinsDir(t)
	l := loadAt(t, LoadConfig{Pins: pins, Devices: 1, Tags: 64, Readers: true})
	defer l.Close()
	points := readerPoints
	if l.NoPageCache == nil {
		points = slices.Concat(points, cachePoints)
	} else {
		t.Logf("not here: what programs have through the page cache: %v", l.NoPageCache)
	}
	readers, err := loadReaders()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := loadPagecache()
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range readers.Maps {
		if m.MaxEntries == 0 || m.Type != cilium.Array && m.Type != cilium.LRUHash {
			t.Errorf("map %s is a %s of %d", name, m.Type, m.MaxEntries)
		}
	}
	attached := map[string]bool{}
	for _, at := range slices.Concat(readerPoints, cachePoints) {
		attached[at.program] = true
	}
	if len(readers.Programs)+len(cache.Programs) != len(attached) {
		t.Errorf("%d and %d programs, %d of them attached", len(readers.Programs), len(cache.Programs), len(attached))
	}
	for _, spec := range []*cilium.CollectionSpec{readers, cache} {
		for name, p := range spec.Programs {
			if !attached[name] {
				t.Errorf("%s, for %s, is attached nowhere", name, p.AttachTo)
			}
		}
	}
	list, err := Status(pins)
	if err != nil || len(list) != len(pointOf)+len(points) {
		t.Errorf("%+v, %v", list, err)
	}
	for _, s := range list {
		if s.Point == "" {
			t.Errorf("%s is nowhere", s.Name)
		}
	}

	// To load again without them leaves them, and to unload removes them.
	again := loadAt(t, LoadConfig{Pins: pins, Devices: 1, Tags: 64})
	if again.New || again.Close() != nil {
		t.Errorf("%+v", again)
	}
	r, err := OpenReaders(pins)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Unload(pins); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenReaders(pins); !errors.Is(err, ErrNoReaders) {
		t.Errorf("unloaded: %v", err)
	}
}

// Each process is counted with what it has read and written, and with what of that was far away; and so is its cgroup.
func TestReaders(t *testing.T) {
	if !supported(t) {
		return // TestVerifier has asserted that it is said
	}
	disk, pins := newLoopDisk(t), pinsDir(t)
	loaded := loadAt(t, LoadConfig{Pins: pins, Devices: 2, Tags: 1024, Readers: true})
	tables := openTables(t, loaded.Maps)
	entered, err := tables.Enter(disk.id, disk.queues, disk.depth)
	if err != nil {
		t.Fatal(err)
	}
	say := func(mark uint64) { entered.sayOfAll(disk.queues, mark) }
	path := "/dev/" + disk.name
	dd := func(args ...string) int {
		t.Helper()
		cmd := exec.Command("dd", append([]string{"status=none"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("dd %q: %v\n%s", args, err, out)
		}
		return cmd.Process.Pid
	}
	direct := dd("if="+path, "of=/dev/null", "bs=64k", "count=16", "iflag=direct")
	writer := dd("if=/dev/zero", "of="+path, "bs=64k", "count=3", "oflag=direct")
	cached := dd("if="+path, "of=/dev/null", "bs=64k", "count=32")
	const leaf, peer, root = 1 << 1, 1 << 5, 1 << 7
	for _, mark := range []uint64{leaf, peer, peer | leaf, root | peer, 0} {
		say(mark)
		if _, err := disk.f.ReadAt(disk.buf[:4096], 0); err != nil {
			t.Fatal(err)
		}
	}
	r, err := OpenReaders(pins)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all, err := r.Of([]DiskID{disk.id})
	if err != nil {
		t.Fatal(err)
	}
	got := all[disk.id]
	byPID := map[int]Process{}
	for _, p := range got.Processes {
		byPID[int(p.PID)] = p
	}
	const mib = 1 << 20
	if p := byPID[direct]; p.Name != "dd" || p.Reads != 16 || p.ReadBytes != mib || p.Writes != 0 || p.FilledBytes != 0 || p.Started == 0 {
		t.Errorf("direct reads: %+v", p)
	}
	if p := byPID[writer]; p.Name != "dd" || p.Writes != 3 || p.WriteBytes != 3<<16 || p.Reads != 0 {
		t.Errorf("writes: %+v", p)
	}
	if p := byPID[cached]; p.ReadBytes < 2*mib || p.FilledBytes != p.ReadBytes {
		t.Errorf("reads through the page cache: %+v", p)
	}
	if p := byPID[os.Getpid()]; p.Reads != 5 || p.ReadBytes != 5*4096 ||
		!maps.Equal(p.Misses, map[string]uint64{"peer": 2, "appliance": 0, "root": 1}) || p.MissBytes["peer"] != 2*4096 {
		t.Errorf("this process: %+v", p)
	}
	var groups Did
	for _, g := range got.Cgroups {
		groups.ReadBytes += g.ReadBytes
		groups.WriteBytes += g.WriteBytes
	}
	if groups.ReadBytes != got.Total.ReadBytes || groups.WriteBytes != got.Total.WriteBytes || got.Total.WriteBytes != 3<<16 {
		t.Errorf("cgroups %+v, all %+v", groups, got.Total)
	}
	if got.ForgottenProcesses.Reads+got.ForgottenCgroups.Reads != 0 {
		t.Errorf("forgotten: %+v", got)
	}
	c, err := r.Cached("/sys", disk.name)
	if counted := loaded.NoPageCache == nil; err != nil || (c != nil) != counted || counted && c.ReadBytes != 2*mib {
		t.Errorf("page cache: %+v, %v", c, err)
	}

	// Whom there is no room for is forgotten, and missed.
	key := readersProcess{Diskseq: disk.id.Seq, Pid: uint32(direct), Started: byPID[direct].Started, Minor: uint32(disk.id.Minor)}
	writable, err := cilium.LoadPinnedMap(firstMatch(t, filepath.Join(pins, readersDir+"*", mapPin+readersMapProcesses)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer writable.Close()
	if err := writable.Delete(key); err != nil {
		t.Fatal(err)
	}
	all, err = r.Of([]DiskID{disk.id})
	if err != nil {
		t.Fatal(err)
	}
	if f := all[disk.id].ForgottenProcesses; f.Reads != 16 || f.ReadBytes != mib || f.Writes != 0 {
		t.Errorf("forgotten: %+v", f)
	}
}

func firstMatch(t *testing.T, pattern string) string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("%s: %v", pattern, err)
	}
	return list[0]
}

func TestDidLess(t *testing.T) {
	d := Did{Reads: 3, ReadBytes: 30, Writes: 2, WriteBytes: 20, FilledBytes: 5, Misses: map[string]uint64{"peer": 2, "root": 1}, MissBytes: map[string]uint64{"peer": 20, "root": 10}}
	got := d.Less(Did{Reads: 1, ReadBytes: 40, Misses: map[string]uint64{"peer": 2}})
	if got.Reads != 2 || got.ReadBytes != 0 || got.WriteBytes != 20 || !maps.Equal(got.Misses, map[string]uint64{"peer": 0, "root": 1}) || d.Misses["peer"] != 2 {
		t.Errorf("%+v", got)
	}
}

func TestKernelDev(t *testing.T) {
	for text, want := range map[string]uint32{"259:3": 259<<20 | 3, "7:0": 7 << 20} {
		if got, err := kernelDev(text); err != nil || got != want {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "7", "a:b", "7:-1", "5000:1"} {
		if _, err := kernelDev(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
