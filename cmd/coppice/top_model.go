package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"coppice/cache"
	"coppice/ebpf"
	"coppice/node"
	"coppice/union"
)

// sectorBytes is the unit of /sys/block/DISK/stat, whatever the disk's own is.
const sectorBytes = 512

// diskStat is what the kernel counted of a disk (Documentation/block/stat.rst), since there is that disk.
type diskStat struct {
	seq                       uint64 // tells it from others that had the same number
	reads, writes             uint64
	readSectors, writeSectors uint64
	inFlight                  uint64
}

// readDiskStat reads what the kernel counted of /dev/ublkbID, in a directory like /sys.
func readDiskStat(sys string, id int) (s diskStat, err error) {
	dir := filepath.Join(sys, "block", "ublkb"+strconv.Itoa(id))
	seq, err := os.ReadFile(filepath.Join(dir, "diskseq"))
	if err != nil {
		return s, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return s, err
	}
	fields := append(strings.Fields(string(text)), strings.TrimSpace(string(seq)))
	const least = 11 + 1
	if len(fields) < least {
		return s, fmt.Errorf("%s/stat has %d numbers", dir, len(fields)-1)
	}
	for i, into := range map[int]*uint64{0: &s.reads, 2: &s.readSectors, 4: &s.writes, 6: &s.writeSectors, 8: &s.inFlight, len(fields) - 1: &s.seq} {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return s, fmt.Errorf("%s/stat, number %d: %w", dir, i, err)
		}
		*into = n
	}
	return s, nil
}

// topLook is what was seen at one time.
type topLook struct {
	at       time.Time
	overview node.Overview // where the daemon does not answer, its last one
	answered time.Time     // when that came
	disks    map[string]diskStat
	err      error // why the daemon does not answer
}

// topEye looks at the daemon and the kernel.
type topEye struct {
	client *node.Client
	sys    string
	last   topLook
}

// answerTime is how long a daemon that is there may take.
const answerTime = 5 * time.Second

// look looks once. Where the daemon does not answer, the kernel goes on to tell of the disks that it served last.
func (e *topEye) look(ctx context.Context) topLook {
	asking, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	l := topLook{disks: make(map[string]diskStat)}
	l.overview, l.err = e.client.Overview(asking)
	l.at = time.Now()
	l.answered = l.at
	if l.err != nil {
		l.overview, l.answered = e.last.overview, e.last.answered
	}
	if errors.Is(l.err, context.DeadlineExceeded) && ctx.Err() == nil {
		l.err = fmt.Errorf("the daemon has not answered for %s", answerTime)
	}
	for _, d := range l.overview.Devices {
		if d.ID < 0 {
			continue
		}
		s, err := readDiskStat(e.sys, d.ID)
		if err == nil {
			l.disks[d.Name] = s
		} else if !errors.Is(err, fs.ErrNotExist) && l.err == nil {
			l.err = fmt.Errorf("look at device %s: %w", d.Name, err)
		}
	}
	e.last = l
	return l
}

// topReport is what happened between two looks.
type topReport struct {
	Time     time.Time            `json:"time"`
	Seconds  float64              `json:"seconds"` // between the looks; 0 where there was one only
	Error    string               `json:"error,omitempty"`
	Hint     string               `json:"hint,omitempty"`
	Measured bool                 `json:"measured"` // eBPF programs are loaded
	Devices  []topDevice          `json:"devices"`
	Cache    topCache             `json:"cache"`
	Roots    []node.RootOverview  `json:"roots"`
	Stores   []node.StoreOverview `json:"stores"`
}

// topDevice is a device. What is not known is nil: nothing to compare with, nothing read, no kernel that counts.
type topDevice struct {
	Name      string       `json:"name"`
	State     string       `json:"state"`
	Rates     *topRates    `json:"rates"`
	InFlight  *uint64      `json:"in_flight"`
	HitRatio  *float64     `json:"hit_ratio"` // of the bytes that it read of its root: those that this machine had in memory or in the cache on disk
	Latencies []topLatency `json:"latencies,omitempty"`
}

// topRates are per second.
type topRates struct {
	Reads      float64 `json:"reads"`
	Writes     float64 `json:"writes"`
	ReadBytes  float64 `json:"read_bytes"`
	WriteBytes float64 `json:"write_bytes"`
}

// topLatency is how long requests took that ended meanwhile.
type topLatency struct {
	Op        string  `json:"operation"`
	Source    string  `json:"source"`
	PerSecond float64 `json:"per_second"`
	// P50 and P99 are bounds in seconds that so many percent stayed below; nil where those took longer than the last bound that there is.
	P50 *float64 `json:"p50_seconds"`
	P99 *float64 `json:"p99_seconds"`

	all ebpf.Latency
}

// topCache is the cache of the machine.
type topCache struct {
	MemoryUsedBytes int64              `json:"memory_used_bytes"`
	MemoryBytes     int64              `json:"memory_bytes"` // its threshold
	Disk            *topCacheDisk      `json:"disk"`
	Peers           map[string]string  `json:"peers,omitempty"` // state, by URL
	HitRatio        *float64           `json:"hit_ratio"`       // as of a device
	ReadBytes       map[string]float64 `json:"read_bytes"`      // per second, by where they came from
}

type topCacheDisk struct {
	UsedBytes int64  `json:"used_bytes"`
	SizeBytes int64  `json:"size_bytes"`
	State     string `json:"state"`
}

// compareLooks tells what happened between two looks; before is the zero value where there was no earlier one.
func compareLooks(before, now topLook) topReport {
	o := now.overview
	r := topReport{Time: now.at, Measured: o.Measured, Devices: []topDevice{}, Roots: o.Roots, Stores: o.Stores}
	if now.err != nil {
		e := node.Explain(now.err)
		r.Error, r.Hint = e.Message, e.Hint
	}
	span := spans{}
	if !before.at.IsZero() {
		r.Seconds = now.at.Sub(before.at).Seconds()
		span = spans{r.Seconds, now.answered.Sub(before.answered).Seconds()}
	}
	past := before.overview
	if !past.Started.Equal(o.Started) { // another daemon: its counters began at zero
		past = node.Overview{Devices: withoutCounts(past.Devices)}
	}
	devices, caches, cachesBefore := byName(past.Devices), readersByName(o.Cache), readersByName(past.Cache)
	for _, d := range o.Devices {
		earlier, known := devices[d.Name]
		t := topDevice{Name: d.Name, State: string(d.State)}
		if now.err != nil && now.answered != now.at {
			t.State = stateNoDaemon
		}
		disk, counted := now.disks[d.Name]
		diskBefore := before.disks[d.Name]
		if counted {
			t.InFlight = &disk.inFlight
			if known && disk.seq != diskBefore.seq { // it was made anew, under the same name
				earlier, known = node.DeviceOverview{}, false
				cachesBefore[d.Name] = cache.ReaderStats{}
			}
		}
		if known {
			t.Rates = ratesOf(d.Stats, earlier.Stats, disk, diskBefore, span)
		}
		if span.answered > 0 {
			t.HitRatio = hitRatio(d.Stats, earlier.Stats, caches, cachesBefore, d.Name)
			if known && before.overview.Measured { // else the kernel may have counted for long
				t.Latencies = latenciesSince(d.Latencies, earlier.Latencies, span.answered)
			}
		}
		r.Devices = append(r.Devices, t)
	}
	r.Cache = cacheOf(o.Cache, past.Cache, span.answered)
	return r
}

// stateNoDaemon is the state of devices whose daemon does not answer.
const stateNoDaemon = "no daemon"

// spans are how many seconds two looks are apart, and how many the daemon's answers.
type spans struct{ looks, answered float64 }

// withoutCounts keeps what is counted in the kernel.
func withoutCounts(list []node.DeviceOverview) []node.DeviceOverview {
	list = slices.Clone(list)
	for i := range list {
		if list[i].Stats != nil {
			list[i].Stats = &union.DeviceStats{}
		}
	}
	return list
}

func byName(list []node.DeviceOverview) map[string]node.DeviceOverview {
	all := make(map[string]node.DeviceOverview, len(list))
	for _, d := range list {
		all[d.Name] = d
	}
	return all
}

func readersByName(r node.CacheReport) map[string]cache.ReaderStats {
	all := make(map[string]cache.ReaderStats, len(r.Devices))
	for _, d := range r.Devices {
		all[d.Name] = d.ReaderStats
	}
	return all
}

// grown is what a counter has counted since. One that is lower than before has begun anew.
func grown(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

// ratesOf goes by the kernel's counters, and where those cannot be seen (/sys of another machine, a container) by the daemon's.
func ratesOf(now, before *union.DeviceStats, disk, diskBefore diskStat, span spans) *topRates {
	per := func(n, m uint64, seconds float64) float64 { return float64(grown(n, m)) / seconds }
	switch {
	case disk.seq != 0 && span.looks > 0:
		return &topRates{
			per(disk.reads, diskBefore.reads, span.looks), per(disk.writes, diskBefore.writes, span.looks),
			per(disk.readSectors, diskBefore.readSectors, span.looks) * sectorBytes, per(disk.writeSectors, diskBefore.writeSectors, span.looks) * sectorBytes,
		}
	case disk.seq == 0 && now != nil && before != nil && span.answered > 0:
		read := func(s *union.DeviceStats) uint64 { return s.LeafReadBytes + s.RootReadBytes + s.ZeroReadBytes }
		return &topRates{
			per(now.Reads, before.Reads, span.answered), per(now.Writes, before.Writes, span.answered),
			per(read(now), read(before), span.answered), per(now.WrittenBytes, before.WrittenBytes, span.answered),
		}
	}
	return nil
}

// topTiers are where the bytes of images come from, the nearest first. The first two are on this machine.
var topTiers = []struct {
	name string
	near bool
	of   func(cache.ReaderStats) cache.Part
}{
	{"memory", true, func(s cache.ReaderStats) cache.Part { return s.Memory }},
	{"disk", true, func(s cache.ReaderStats) cache.Part { return s.Disk }},
	{"peers", false, func(s cache.ReaderStats) cache.Part { return s.Peers }},
	{"appliance", false, func(s cache.ReaderStats) cache.Part { return s.Appliance }},
	{"origin", false, func(s cache.ReaderStats) cache.Part { return s.Origin }},
}

// nearPart is the part of what was read of images meanwhile that this machine had.
func nearPart(now, before cache.ReaderStats) *float64 {
	var near, all uint64
	for _, t := range topTiers {
		n := grown(t.of(now).Bytes, t.of(before).Bytes)
		all += n
		if t.near {
			near += n
		}
	}
	return ratioOf(near, all)
}

func ratioOf(part, all uint64) *float64 {
	if all == 0 {
		return nil
	}
	r := float64(part) / float64(all)
	return &r
}

// hitRatio is that of a device: of its image, or else of its raw root.
func hitRatio(now, before *union.DeviceStats, caches, cachesBefore map[string]cache.ReaderStats, name string) *float64 {
	if c, ok := caches[name]; ok {
		return nearPart(c, cachesBefore[name])
	}
	if now == nil {
		return nil
	}
	if before == nil {
		before = &union.DeviceStats{}
	}
	return ratioOf(grown(now.RootMemoryBytes, before.RootMemoryBytes), grown(now.RootReadBytes, before.RootReadBytes))
}

func latenciesSince(now, before []ebpf.Latency, seconds float64) (list []topLatency) {
	for _, l := range now {
		var was ebpf.Latency
		if i := slices.IndexFunc(before, func(b ebpf.Latency) bool { return b.Op == l.Op && b.Source == l.Source }); i >= 0 {
			was = before[i]
		}
		if d := l.Since(&was); d.Count > 0 {
			list = append(list, topLatency{
				Op: l.Op, Source: l.Source, PerSecond: float64(d.Count) / seconds, P50: boundSeconds(&d, 50), P99: boundSeconds(&d, 99), all: d,
			})
		}
	}
	return list
}

func boundSeconds(l *ebpf.Latency, percent float64) *float64 {
	d := l.Percentile(percent)
	if d > longest {
		return nil
	}
	s := d.Seconds()
	return &s
}

// cacheOf compares what the cache did.
func cacheOf(now, before node.CacheReport, seconds float64) topCache {
	c := topCache{MemoryUsedBytes: now.Memory.UsedBytes, MemoryBytes: now.Memory.ThresholdBytes, ReadBytes: map[string]float64{}}
	if d := now.DiskTier; d != nil {
		c.Disk = &topCacheDisk{d.Bytes, d.SizeBytes, string(d.State)}
	}
	if now.PeerList != nil {
		c.Peers = map[string]string{}
		for _, p := range now.PeerList.Peers {
			c.Peers[p.URL] = string(p.State)
		}
	}
	if seconds <= 0 {
		return c
	}
	for _, t := range topTiers {
		c.ReadBytes[t.name] = float64(grown(t.of(now.Readers).Bytes, t.of(before.Readers).Bytes)) / seconds
	}
	c.HitRatio = nearPart(now.Readers, before.Readers)
	return c
}
