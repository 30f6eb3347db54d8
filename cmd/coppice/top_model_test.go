package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice/cache"
	"coppice/cache/disk"
	"coppice/cache/peer"
	"coppice/ebpf"
	"coppice/image"
	"coppice/node"
	"coppice/union"
)

var (
	topStart = time.Date(2026, 11, 22, 14, 5, 10, 0, time.UTC)
	daemonUp = topStart.Add(-time.Hour)
)

// latencyOf is a histogram of one bucket.
func latencyOf(op, source string, bucket int, count uint64) ebpf.Latency {
	return ebpf.Latency{Op: op, Source: source, Count: count, Seconds: float64(count) * ebpf.Bound(bucket), Buckets: []ebpf.Bucket{{Index: bucket, Count: count}}}
}

// lookAfter is what is seen so many seconds after topStart of one device, on an image, that is served and measured.
func lookAfter(seconds float64, stat diskStat, stats union.DeviceStats, read cache.ReaderStats, latencies ...ebpf.Latency) topLook {
	at := topStart.Add(time.Duration(seconds * float64(time.Second)))
	l := topLook{at: at, answered: at, disks: map[string]diskStat{"web1": stat}}
	l.overview = node.Overview{
		Started: daemonUp, Measured: true,
		Devices: []node.DeviceOverview{{Name: "web1", State: node.StateLive, ID: 0, Stats: &stats, Latencies: latencies}},
	}
	l.overview.Cache.Readers = read
	l.overview.Cache.Devices = []node.DeviceCache{{Name: "web1", ReaderStats: read}}
	return l
}

func parts(memory, disk, origin uint64) cache.ReaderStats {
	return cache.ReaderStats{Memory: cache.Part{Bytes: memory}, Disk: cache.Part{Bytes: disk}, Origin: cache.Part{Bytes: origin}}
}

func near(t *testing.T, what string, got *float64, want float64) {
	t.Helper()
	if got == nil || math.Abs(*got-want) > 1e-9*math.Max(1, want) {
		t.Errorf("%s is %v, want %g", what, got, want)
	}
}

// Rates are differences over the time that has been measured, not over the interval that was asked for.
func TestTopDifferences(t *testing.T) {
	before := lookAfter(0, diskStat{seq: 7, reads: 100, writes: 10, readSectors: 1000, writeSectors: 80}, union.DeviceStats{}, parts(1000, 100, 500), latencyOf("read", "root", 20, 5))
	now := lookAfter(2.5, diskStat{seq: 7, reads: 350, writes: 20, readSectors: 3500, writeSectors: 160, inFlight: 3}, union.DeviceStats{}, parts(9000, 1100, 1500),
		latencyOf("read", "root", 30, 7), latencyOf("write", "leaf", 4, 1))
	now.overview.Devices[0].Latencies[0].Buckets = []ebpf.Bucket{{Index: 20, Count: 5}, {Index: 30, Count: 2}}
	r := compareLooks(before, now)
	d := r.Devices[0]
	if r.Seconds != 2.5 || d.Rates == nil || *d.Rates != (topRates{100, 4, 1000 * 512, 32 * 512}) || *d.InFlight != 3 {
		t.Errorf("%+v, %+v", r, d)
	}
	near(t, "hit ratio", d.HitRatio, 0.9)
	near(t, "hit ratio of the cache", r.Cache.HitRatio, 0.9)
	if r.Cache.ReadBytes["memory"] != 3200 || r.Cache.ReadBytes["origin"] != 400 || r.Cache.ReadBytes["peers"] != 0 {
		t.Errorf("%+v", r.Cache)
	}
	if len(d.Latencies) != 2 || d.Latencies[0].Source != "root" || d.Latencies[0].PerSecond != 0.8 || d.Latencies[1].Op != "write" {
		t.Fatalf("%+v", d.Latencies)
	}
	near(t, "half of what came meanwhile", d.Latencies[0].P50, time.Duration(ebpf.Bound(30)*1e9).Seconds())

	// The first look has nothing to be compared with.
	first := compareLooks(topLook{}, now)
	if d := first.Devices[0]; first.Seconds != 0 || d.Rates != nil || d.HitRatio != nil || d.Latencies != nil || first.Cache.HitRatio != nil || *d.InFlight != 3 {
		t.Errorf("%+v, %+v", first, d)
	}
	text, err := json.Marshal(first)
	if err != nil || !strings.Contains(string(text), `"rates":null,"in_flight":3,"hit_ratio":null`) {
		t.Errorf("%s, %v", text, err)
	}
}

// A daemon that was started anew counts from zero, and the kernel goes on.
func TestTopOtherDaemon(t *testing.T) {
	before := lookAfter(0, diskStat{seq: 7, reads: 100}, union.DeviceStats{}, parts(5000, 0, 5000), latencyOf("read", "root", 20, 5))
	now := lookAfter(1, diskStat{seq: 7, reads: 150}, union.DeviceStats{}, parts(300, 0, 100), latencyOf("read", "root", 20, 9))
	now.overview.Started = topStart
	r := compareLooks(before, now)
	d := r.Devices[0]
	near(t, "hit ratio", d.HitRatio, 0.75)
	near(t, "hit ratio of the cache", r.Cache.HitRatio, 0.75)
	if d.Rates == nil || d.Rates.Reads != 50 || len(d.Latencies) != 1 || d.Latencies[0].PerSecond != 4 {
		t.Errorf("%+v, %+v", d, d.Rates)
	}

	// One whose kernel began to measure meanwhile: nobody knows when what it has counted was.
	before.overview.Measured, before.overview.Devices[0].Latencies = false, nil
	if d := compareLooks(before, now).Devices[0]; d.Latencies != nil {
		t.Errorf("%+v", d.Latencies)
	}
}

// While no daemon answers, the kernel's counters go on, and what the daemon counted is compared over the time between its answers.
func TestTopDaemonGone(t *testing.T) {
	before := lookAfter(0, diskStat{seq: 7, reads: 100}, union.DeviceStats{}, parts(0, 0, 0))
	gone := before
	gone.at, gone.err = topStart.Add(time.Second), &node.Error{Code: node.CodeNoDaemon, Message: "no daemon is running", Hint: "start it"}
	gone.disks = map[string]diskStat{"web1": {seq: 7, reads: 100, inFlight: 12}}
	r := compareLooks(before, gone)
	d := r.Devices[0]
	if r.Error != "no daemon is running" || r.Hint != "start it" || d.State != stateNoDaemon || *d.InFlight != 12 || d.Rates == nil || d.Rates.Reads != 0 || d.HitRatio != nil {
		t.Errorf("%+v, %+v", r, d)
	}
	back := lookAfter(4, diskStat{seq: 7, reads: 400}, union.DeviceStats{}, parts(8000, 0, 0))
	r = compareLooks(gone, back)
	if d := r.Devices[0]; r.Error != "" || d.State != "live" || d.Rates.Reads != 100 || r.Cache.ReadBytes["memory"] != 2000 {
		t.Errorf("%+v, %+v", r, d)
	}
}

// Devices come and go; one that was made anew under the same name is another one.
func TestTopDevicesComeAndGo(t *testing.T) {
	before := lookAfter(0, diskStat{seq: 7, reads: 100}, union.DeviceStats{}, parts(100, 0, 0), latencyOf("read", "root", 20, 5))
	now := lookAfter(1, diskStat{seq: 8, reads: 150}, union.DeviceStats{}, parts(0, 0, 200), latencyOf("read", "root", 20, 9))
	now.overview.Devices = append(now.overview.Devices, node.DeviceOverview{Name: "web2", State: node.StateCreating, ID: -1})
	r := compareLooks(before, now)
	if d := r.Devices[0]; d.Rates != nil || d.Latencies != nil || d.HitRatio == nil || *d.HitRatio != 0 {
		t.Errorf("made anew: %+v", d)
	}
	if d := r.Devices[1]; d.Name != "web2" || d.Rates != nil || d.InFlight != nil || d.State != "creating" {
		t.Errorf("new: %+v", d)
	}
	now.overview.Devices = nil
	if r := compareLooks(before, now); len(r.Devices) != 0 {
		t.Errorf("gone: %+v", r.Devices)
	}
}

// Where /sys cannot be seen, the daemon's counters serve, and nobody knows what is in flight.
func TestTopWithoutSys(t *testing.T) {
	before := lookAfter(0, diskStat{}, union.DeviceStats{Reads: 10, Writes: 1, LeafReadBytes: 10, WrittenBytes: 5}, parts(0, 0, 0))
	now := lookAfter(2, diskStat{}, union.DeviceStats{Reads: 30, Writes: 2, LeafReadBytes: 20, RootReadBytes: 20, ZeroReadBytes: 30, WrittenBytes: 9, RootMemoryBytes: 5}, parts(0, 0, 0))
	before.disks, now.disks = nil, nil
	now.overview.Cache.Devices = nil // it stands on a raw disk
	r := compareLooks(before, now)
	d := r.Devices[0]
	if d.Rates == nil || *d.Rates != (topRates{10, 0.5, 30, 2}) || d.InFlight != nil {
		t.Errorf("%+v, %+v", d, d.Rates)
	}
	near(t, "hit ratio", d.HitRatio, 0.25)
}

func TestReadDiskStat(t *testing.T) {
	sys := t.TempDir()
	dir := filepath.Join(sys, "block", "ublkb3")
	write := func(stat, seq string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o600), os.WriteFile(filepath.Join(dir, "diskseq"), []byte(seq), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := readDiskStat(sys, 3); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	write("    1     2    3    4    5    6     7    8   9   10   11   12 13 14 15 16 17\n", "42\n")
	if s, err := readDiskStat(sys, 3); err != nil || s != (diskStat{seq: 42, reads: 1, readSectors: 3, writes: 5, writeSectors: 7, inFlight: 9}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, stat := range []string{"", "1 2 3", "1 2 3 4 5 6 7 8 x 10 11"} {
		write(stat, "42\n")
		if _, err := readDiskStat(sys, 3); err == nil {
			t.Errorf("%q is taken", stat)
		}
	}
}

// busyReport has all that a screen can show.
func busyReport() topReport {
	took := func(list ...ebpf.Latency) (all []topLatency) {
		for _, l := range list {
			all = append(all, topLatency{Op: l.Op, Source: l.Source, all: l})
		}
		return all
	}
	stat := func(n uint64) *uint64 { return &n }
	ratio := func(r float64) *float64 { return &r }
	return topReport{
		Time: topStart, Seconds: 1.04, Measured: true,
		Devices: []topDevice{
			{"db1", "live", &topRates{12345.6, 4321, 51.2e6, 17.7e6}, stat(31), ratio(0.9995), took(latencyOf("read", "leaf", 16, 100), latencyOf("read", "memory", 12, 500), latencyOf("write", "leaf", 22, 90), latencyOf("flush", "leaf", 24, 9))},
			{"web1", "live", &topRates{812, 3.4, 3.3e6, 12e3}, stat(2), ratio(0.871), took(latencyOf("read", "zero", 10, 100), latencyOf("read", "memory", 12, 500), latencyOf("read", "peer", 22, 90), latencyOf("read", "root", 34, 9))},
			{"web2", "freezing", nil, stat(0), nil, nil},
			{"web3-with-a-name-that-is-too-long", "live", &topRates{}, stat(0), nil, took(latencyOf("read", "root", 49, 1))},
		},
		Cache: topCache{
			MemoryUsedBytes: 1288490188, MemoryBytes: 2 << 30, Disk: &topCacheDisk{10 << 30, 20 << 30, string(disk.StateOn)}, HitRatio: ratio(0.971),
			Peers:     map[string]string{"https://a": string(peer.StateReady), "https://b": string(peer.StateDown), "https://c": string(peer.StateReady)},
			ReadBytes: map[string]float64{"memory": 40e6, "disk": 3e6, "peers": 1e6, "origin": 280e3, "appliance": 0},
		},
		Roots: []node.RootOverview{{
			Content: "sha256:0123", Devices: []string{"web1"}, Hydration: &node.Hydration{State: node.HydrationCopying, DoneBytes: 40, TotalBytes: 100},
			Replicas: []image.ReplicaStatus{
				{Ref: "registry.example/debian:12.1", State: image.StateReady},
				{Ref: "http://mirror.example/images:debian:12.1", State: image.StateDown, Since: topStart.Add(-3 * time.Minute), Error: "connection refused\x1b[2J"},
			},
		}},
		Stores: []node.StoreOverview{
			{Path: "/dev/vdb", Space: union.SpaceInfo{State: union.SpaceOK, UsedPercent: 41.2, AvailableBytes: 31 << 30}},
			{Path: "/dev/vdc", Space: union.SpaceInfo{State: union.SpaceWaiting, UsedPercent: 100, Waiting: 3}},
		},
	}
}
