package ebpf

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// memoryTables are tables whose memory no kernel shares.
func memoryTables(slots, tags, shards int) *Tables {
	return &Tables{
		shards: shards, slots: slots, disks: make(map[int]*Disk), devices: make([]latencyDevice, minors),
		marks: make([]uint64, tags), all: make([]latencyHistogram, slots*shards*classes),
	}
}

// check fails where two entries have the same slot or tags, or one has what there is not.
func (t *Tables) check() error {
	var all []*latencyDevice
	for i := range t.devices {
		e := &t.devices[i]
		if e.Diskseq == 0 {
			continue
		}
		if _, to := e.tags(); int(e.Slot) >= t.slots || to > int64(len(t.marks)) {
			return errors.New("an entry is beyond the maps")
		}
		for _, o := range all {
			if o.Slot == e.Slot || o.overlaps(e) {
				return errors.New("two entries are in each other's way")
			}
		}
		all = append(all, e)
	}
	return nil
}

// Whatever disks come and go, over any number of processes, no two share a histogram or a tag, and there is room until there is none.
func TestEntriesNeverShare(t *testing.T) {
	const slots, tags = 6, 300
	rng := rand.New(rand.NewPCG(1, 2))
	tables := memoryTables(slots, tags, 2)
	full := 0
	for range 1000 {
		switch n := rng.IntN(10); {
		case n < 6:
			id := DiskID{Minor: rng.IntN(40), Seq: uint64(1 + rng.IntN(40))}
			d, err := tables.Enter(id, 1+rng.IntN(3), 1+rng.IntN(40))
			switch {
			case errors.Is(err, ErrFull):
				full++
			case errors.Is(err, ErrSameMinor):
			case err != nil:
				t.Fatal(err)
			default:
				if len(d.Marks(0)) != int(d.entry.Depth) || d.Marks(int(d.entry.Queues)) != nil || d.Marks(-1) != nil {
					t.Fatalf("marks of %+v", d.entry)
				}
			}
		case n < 9:
			for _, d := range tables.disks {
				d.Leave()
				d.Leave()
				break
			}
		default: // the next process
			tables.disks = make(map[int]*Disk)
			if rng.IntN(2) == 0 {
				tables.dropOthers()
			}
		}
		if err := tables.check(); err != nil {
			t.Fatal(err)
		}
	}
	if full == 0 {
		t.Error("never full: the test is too kind")
	}
	for i := range 100 {
		if _, err := tables.Enter(DiskID{Minor: 100 + i, Seq: uint64(100 + i)}, 1, tags+1); !errors.Is(err, ErrFull) {
			t.Fatalf("more tags than there are: %v", err)
		}
	}
}

// A table that holds anything at all neither panics, nor is believed.
func TestBrokenTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		tables := memoryTables(4, 128, 1)
		for i := range tables.devices {
			e := &tables.devices[i]
			*e = latencyDevice{
				Diskseq: rng.Uint64N(3), Slot: rng.Uint32() >> rng.IntN(32), Base: rng.Uint32() >> rng.IntN(32),
				Queues: rng.Uint32() >> rng.IntN(32), Depth: rng.Uint32() >> rng.IntN(32),
			}
		}
		for range 8 {
			d, err := tables.Enter(DiskID{Minor: rng.IntN(minors), Seq: 1 + rng.Uint64N(2)}, 1+rng.IntN(2), 1+rng.IntN(16))
			if err != nil {
				if !errors.Is(err, ErrSameMinor) && !errors.Is(err, ErrFull) {
					t.Fatal(err)
				}
				continue
			}
			if len(d.Marks(0)) != int(d.entry.Depth) || len(d.Latencies()) != 0 {
				t.Fatalf("%+v", d.entry)
			}
		}
		tables.dropOthers()
		if err := tables.check(); err != nil {
			t.Fatal(err)
		}
	}
}

// The next process goes on with the numbers of a disk that is the same, and begins anew with any other.
func TestAdopt(t *testing.T) {
	tables := memoryTables(2, 64, 1)
	enter := func(seq uint64, depth int) *Disk {
		t.Helper()
		tables.disks = make(map[int]*Disk)
		d, err := tables.Enter(DiskID{Minor: 5, Seq: seq}, 1, depth)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	first := enter(7, 16)
	tables.all[int(first.entry.Slot)*classes+2].Buckets[9] = 3
	tables.marks[first.entry.Base] = 1
	for _, c := range []struct {
		name  string
		seq   uint64
		depth int
		count uint64
	}{{"the same", 7, 16, 3}, {"another depth", 7, 8, 0}, {"another disk", 8, 8, 0}} {
		list := enter(c.seq, c.depth).Latencies()
		if got := counted(list, "read", "leaf").Count; got != c.count {
			t.Errorf("%s: %d, want %d", c.name, got, c.count)
		}
	}
}

func TestClosedTables(t *testing.T) {
	tables := memoryTables(2, 64, 1)
	d, err := tables.Enter(DiskID{Minor: 5, Seq: 1}, 1, 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := tables.Close(); err != nil {
		t.Fatal(err)
	}
	if d.Marks(0) != nil || d.Latencies() != nil {
		t.Error("closed, and still there")
	}
	if _, err := tables.Enter(DiskID{Minor: 6, Seq: 2}, 1, 8); err == nil {
		t.Error("entered a closed table")
	}
	d.Leave()
}

func TestDiskIDOf(t *testing.T) {
	sys := t.TempDir()
	iostats := "1"
	put := func(dev, seq string) {
		dir := filepath.Join(sys, "block", "ublkb3")
		if err := errors.Join(os.MkdirAll(dir+"/queue", 0o755), os.WriteFile(filepath.Join(dir, "queue/iostats"), []byte(iostats+"\n"), 0o600), os.WriteFile(filepath.Join(dir, "dev"), []byte(dev), 0o600),
			os.WriteFile(filepath.Join(dir, "diskseq"), []byte(seq), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := DiskIDOf(sys, "ublkb3"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no disk: %v", err)
	}
	put("259:12\n", "77\n")
	if id, err := DiskIDOf(sys, "ublkb3"); err != nil || id != (DiskID{12, 77}) {
		t.Errorf("%+v, %v", id, err)
	}
	iostats = "0"
	put("259:12", "77")
	if _, err := DiskIDOf(sys, "ublkb3"); err == nil || !strings.Contains(err.Error(), "queue/iostats") {
		t.Errorf("without times: %v", err)
	}
	iostats = "1"
	for _, bad := range [][2]string{{"259", "1"}, {"259:x", "1"}, {"259:1", ""}, {"259:1", "0"}, {"259:-1", "5"}} {
		put(bad[0], bad[1])
		if id, err := DiskIDOf(sys, "ublkb3"); err == nil {
			t.Errorf("%q is %+v", bad, id)
		}
	}
}
