package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cachepeer "coppice/cache/peer"
	"coppice/cache/prefetch"
	"coppice/image"
	"coppice/node"
	"coppice/union"
)

func ptr[T any](v T) *T { return &v }

// newCacheRig is an imageRig with a cache in which nothing happens that nobody asks for.
func newCacheRig(t *testing.T) *imageRig {
	r := newImageRig(t)
	r.cfg.Cache.Record, r.cfg.Cache.PrefetchPercent, r.cfg.Cache.Readahead = "0", ptr(0), ptr(node.Bytes(0))
	return r
}

func (r *imageRig) cacheStats() node.CacheReport {
	r.t.Helper()
	rep, err := r.client().CacheStats(context.Background())
	check(r.t, err)
	return rep
}

// readAll reads all of the device, in requests of n bytes.
func (r *imageRig) readAll(id, n int) {
	r.t.Helper()
	p := make([]byte, n)
	for off := 0; off < imageSize; off += n {
		_, err := r.kernel.Disk(id).ReadAt(p, int64(off))
		check(r.t, err)
		if !bytes.Equal(p, r.content[off:off+n]) {
			r.t.Fatalf("device %d has other content at %d", id, off)
		}
	}
}

// The second device on a root, and one on another replica of it, ask nobody for what the first one has read.
func TestDevicesShareTheCache(t *testing.T) {
	r := newCacheRig(t)
	r.start()
	r.create(r.on("web1", r.refA))
	r.readAll(0, 128<<10)
	first := r.cacheStats()
	if first.Origin.Bytes != imageSize || first.Memory.ContentBytes < imageSize || first.Memory.ContentBytes > imageSize+1*mib || first.Images != 1 {
		t.Errorf("after the first device %+v", first.Stats)
	}
	r.create(r.on("web2", r.refB))
	served := r.a.served.Load() + r.b.served.Load()
	r.readAll(1, 32<<10)
	r.a.up.Store(false)
	r.b.up.Store(false)
	r.readAll(1, 4096)
	after := r.cacheStats()
	if after.Origin.Bytes != imageSize || r.a.served.Load()+r.b.served.Load() != served {
		t.Errorf("the second device asked the origin: %+v", after.Origin)
	}
	if len(after.Devices) != 2 || after.Devices[1].Name != "web2" || after.Devices[1].Memory.Bytes != 2*imageSize || after.Devices[1].Reads != 0 ||
		after.Devices[0].Origin.Bytes != imageSize || after.Devices[0].Fetch.Count == 0 {
		t.Errorf("devices %+v", after.Devices)
	}
	v := state(t, r.rig, "web2")
	if v.Stats.RootMemoryBytes != 2*imageSize || v.Cache == nil || v.Cache.Memory.Bytes != 2*imageSize {
		t.Errorf("inspect shows %+v, %+v", v.Stats, v.Cache)
	}
}

// What a daemon has in memory goes with it; what a later one reads is right.
func TestCacheOverARestart(t *testing.T) {
	r := newCacheRig(t)
	d := r.start()
	r.create(r.on("web1", r.refA))
	r.readAll(0, 128<<10)
	check(t, d.Stop())
	r.start()
	r.readAll(0, 128<<10)
	if s := r.cacheStats(); s.Origin.Bytes != imageSize || s.Images != 1 || len(s.Devices) != 1 {
		t.Errorf("%+v", s.Stats)
	}
}

func TestDropAndSetCache(t *testing.T) {
	r := newCacheRig(t)
	r.cfg.Cache.Memory = ptr(node.Bytes(32 * mib))
	r.start()
	r.create(r.on("web1", r.refA))
	r.readAll(0, 128<<10)
	ctx := context.Background()
	rep, err := r.client().DropCache(ctx, node.CacheDropRequest{})
	if err != nil || rep.Memory.ContentBytes != 0 {
		t.Errorf("dropped: %+v, %v", rep.Memory, err)
	}
	r.readAll(0, 128<<10)
	if s := r.cacheStats(); s.Origin.Bytes != 2*imageSize || s.Memory.ThresholdBytes != 32*mib {
		t.Errorf("after that %+v", s.Stats)
	}
	rep, err = r.client().SetCache(ctx, node.CacheSetRequest{MemoryBytes: 5 * mib})
	if err != nil || rep.Memory.ThresholdBytes != 5*mib || rep.Memory.UsedBytes > 5*mib {
		t.Errorf("set: %+v, %v", rep.Memory, err)
	}
	r.readAll(0, 128<<10)
	for _, n := range []int64{-1, 1, 1 << 60} {
		if _, err := r.client().SetCache(ctx, node.CacheSetRequest{MemoryBytes: n}); node.CodeOf(err) != node.CodeBadRequest || node.HintOf(err) == "" {
			t.Errorf("a threshold of %d: %v", n, err)
		}
	}
}

func TestCacheThatCannotBe(t *testing.T) {
	r := newRig(t)
	r.cfg.Cache.Memory = ptr(node.Bytes(1 << 60))
	driver, err := r.kernel.NewDriver()
	check(t, err)
	defer driver.Close()
	r.cfg.Driver = driver
	if _, err := node.New(r.cfg); node.CodeOf(err) != node.CodeBadRequest || !strings.Contains(err.Error(), "memory") {
		t.Errorf("%v", err)
	}
}

// An export and a detach read all of a root once, and leave the memory to those who read again.
func TestScansDoNotFillTheCache(t *testing.T) {
	r := newCacheRig(t)
	r.start()
	r.create(r.on("web1", r.refA))
	r.write(0, "own", 8192)
	r.same(0, 1*mib)
	before := r.cacheStats()
	_, err := r.export(context.Background(), "web1", filepath.Join(r.dir, "out"), ignore)
	check(t, err)
	r.detach(node.DetachRequest{Device: "web1"})
	after := r.cacheStats()
	if after.Memory.Inserted != before.Memory.Inserted || after.Memory.Chunks != before.Memory.Chunks || after.Origin.Bytes < 2*imageSize*9/10 {
		t.Errorf("memory held %+v and holds %+v, the origin gave %d bytes", before.Memory, after.Memory, after.Origin.Bytes)
	}
}

func (r *imageRig) traceFiles() []string {
	r.t.Helper()
	files, err := filepath.Glob(filepath.Join(r.cfg.Cache.TracesPath, "*.trace"))
	check(r.t, err)
	return files
}

// What the first device on a root asks for is on record when it is gone, and is there before the next one asks.
func TestTraceIsReplayed(t *testing.T) {
	r := newCacheRig(t)
	r.cfg.Cache.Record, r.cfg.Cache.PrefetchPercent = "1m", ptr(50)
	d := r.start()
	r.create(r.on("web1", r.refA))
	wanted := []int64{3 * mib, 1 * mib, 3*mib + 64<<10, 0, 1 * mib}
	for _, off := range wanted {
		r.same(0, off)
	}
	live := filepath.Join(r.dir, "live.trace")
	rep, err := r.client().CacheTrace(context.Background(), "web1")
	check(t, err)
	check(t, os.WriteFile(live, rep, 0o600))
	_, err = r.client().Delete(context.Background(), "web1")
	check(t, err)
	files := r.traceFiles()
	if len(files) != 1 {
		t.Fatalf("traces %v", files)
	}
	kept, err := os.ReadFile(files[0])
	if err != nil || !bytes.Equal(kept, rep) {
		t.Errorf("%v, or another trace than the one that was asked for", err)
	}
	trace, err := prefetch.Decode(kept)
	check(t, err)
	if got := trace.Chunks; len(got) != 4 || got[0] != 48 || got[1] != 16 || got[2] != 49 || got[3] != 0 {
		t.Errorf("recorded %v", got)
	}
	check(t, d.Stop())

	r.start()
	r.create(r.on("web2", r.refB))
	wait(t, "the replay", func() bool { return r.cacheStats().Prefetch.Replays == 1 })
	if s := r.cacheStats(); s.Prefetch.ReplayedBytes != 4*64<<10 || s.Origin.Bytes != 4*64<<10 {
		t.Errorf("replayed %+v, origin %+v", s.Prefetch, s.Origin)
	}
	r.a.up.Store(false)
	r.b.up.Store(false)
	for _, off := range wanted {
		r.same(0, off)
	}
	s := r.cacheStats()
	if v := s.Devices[0]; v.Reads != 0 || v.Memory.Chunks != uint64(len(wanted)) {
		t.Errorf("the second device waited: %+v", v)
	}
	r.a.up.Store(true)
	// One who does less leaves the trace as it is.
	_, err = r.client().Delete(context.Background(), "web2")
	check(t, err)
	r.create(r.on("web3", r.refA))
	_, err = r.client().Delete(context.Background(), "web3")
	check(t, err)
	if now, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(now, kept) {
		t.Errorf("%v, or the trace is another", err)
	}
}

// A replay stays within its share of the memory, and a trace that is damaged, or of other content, is no trace.
// attachTrace attaches a list of chunks to the image that a reference means.
func attachTrace(t *testing.T, dir, ref string, chunks ...int64) {
	t.Helper()
	ctx := context.Background()
	im, src, err := image.OpenRef(ctx, mustRef(t, ref), image.SourceOptions{})
	check(t, err)
	l, err := image.OpenLayout(dir)
	check(t, err)
	list := &prefetch.Trace{Root: im.ContentRoot(), SizeBytes: im.Size(), ChunkSize: im.ChunkSize(), Chunks: chunks}
	check(t, image.AttachTrace(ctx, im, l, image.Trace{Root: list.Root, Chunks: list.Encode(), Events: []byte("nobody reads them")}))
	check(t, errors.Join(im.Close(), src.Close(), l.Close()))
}

// Where this node has no trace of a content, the one that is attached to the image is replayed; its own goes before, and who does not want it does not get it.
func TestAttachedTraceIsReplayed(t *testing.T) {
	r := newCacheRig(t)
	r.cfg.Cache.PrefetchPercent, r.cfg.Cache.AttachedTraces = ptr(50), ptr(false)
	attachTrace(t, r.a.dir, r.refA, 48, 16, 0)
	d := r.start()
	r.create(r.on("web0", r.refA))
	r.same(0, 2*mib)
	_, err := r.client().Delete(context.Background(), "web0")
	check(t, err)
	if s := r.cacheStats(); s.Prefetch.Replays != 0 || s.Origin.Bytes != 64<<10 {
		t.Errorf("not wanted: %+v, origin %+v", s.Prefetch, s.Origin)
	}
	check(t, d.Stop())

	r.cfg.Cache.AttachedTraces, r.cfg.Cache.Record = nil, "1m"
	d = r.start()
	r.create(r.on("web1", r.refA))
	wait(t, "the replay", func() bool { return r.cacheStats().Prefetch.Replays == 1 })
	if s := r.cacheStats(); s.Prefetch.ReplayedBytes != 3*64<<10 || s.Origin.Bytes != 3*64<<10 {
		t.Errorf("replayed %+v, origin %+v", s.Prefetch, s.Origin)
	}
	r.a.up.Store(false)
	for _, off := range []int64{3 * mib, 1 * mib, 0} {
		r.same(0, off)
	}
	if v := r.cacheStats().Devices[0]; v.Reads != 0 {
		t.Errorf("the device waited: %+v", v)
	}
	r.a.up.Store(true)
	r.same(0, 2*mib+512<<10)
	_, err = r.client().Delete(context.Background(), "web1")
	check(t, err)
	check(t, d.Stop())

	r.start()
	r.create(r.on("web2", r.refA)) // which has what the one before has read: four chunks
	wait(t, "the replay", func() bool { return r.cacheStats().Prefetch.Replays == 1 })
	if s := r.cacheStats(); s.Prefetch.ReplayedBytes != 4*64<<10 {
		t.Errorf("replayed %+v", s.Prefetch)
	}
}

// A trace that is attached and no use costs nothing but a word to who looks for it.
func TestAttachedTraceOfNoUse(t *testing.T) {
	r := newCacheRig(t)
	r.cfg.Cache.PrefetchPercent = ptr(50)
	ctx := context.Background()
	im, src, err := image.OpenRef(ctx, mustRef(t, r.refA), image.SourceOptions{})
	check(t, err)
	l, err := image.OpenLayout(r.a.dir)
	check(t, err)
	other := &prefetch.Trace{Root: image.Digest{7}, SizeBytes: im.Size(), ChunkSize: im.ChunkSize(), Chunks: []int64{1}}
	r.start()
	for _, chunks := range [][]byte{[]byte("no list"), other.Encode()} {
		check(t, image.AttachTrace(ctx, im, l, image.Trace{Root: im.ContentRoot(), Chunks: chunks, Events: []byte("nobody reads them")}))
		before := strings.Count(r.log.String(), "no trace is attached")
		r.create(r.on("web1", r.refA))
		wait(t, "a word about it", func() bool { return strings.Count(r.log.String(), "no trace is attached") > before })
		_, err = r.client().Delete(ctx, "web1")
		check(t, err)
	}
	if s := r.cacheStats(); s.Prefetch.Replays != 0 || s.Origin.Bytes != 0 {
		t.Errorf("%+v, origin %+v", s.Prefetch, s.Origin)
	}
	check(t, errors.Join(im.Close(), src.Close(), l.Close()))
}

func TestReplayIsBounded(t *testing.T) {
	r := newCacheRig(t)
	r.cfg.Cache.PrefetchPercent = ptr(25)
	r.cfg.Cache.Memory = ptr(node.Bytes(8 * mib))
	im := &prefetch.Trace{SizeBytes: imageSize, ChunkSize: 64 << 10}
	for i := range int64(imageSize / (64 << 10)) {
		im.Chunks = append(im.Chunks, i)
	}
	open, src, err := image.OpenRef(context.Background(), mustRef(t, r.refA), image.SourceOptions{})
	check(t, err)
	im.Root = open.ContentRoot()
	check(t, errors.Join(open.Close(), src.Close()))
	path := filepath.Join(r.cfg.Cache.TracesPath, strings.TrimPrefix(im.Root.String(), "sha256:")+".trace")
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, im.Encode(), 0o600))
	r.start()
	r.create(r.on("web1", r.refA))
	wait(t, "the replay", func() bool { return r.cacheStats().Prefetch.Replays == 1 })
	if s := r.cacheStats(); s.Memory.ContentBytes > 2*mib || s.Memory.ContentBytes < 1*mib {
		t.Errorf("a replay of %d bytes filled %d of %d", imageSize, s.Memory.ContentBytes, s.Memory.ThresholdBytes)
	}
	bad := im.Encode()
	bad[len(bad)-1] ^= 1
	im.Root[0] ^= 1
	for what, data := range map[string][]byte{"damaged": bad, "of other content": im.Encode()} {
		check(t, os.WriteFile(path, data, 0o600))
		before := strings.Count(r.log.String(), "is not prefetched")
		r.create(r.on("x", r.refA))
		wait(t, "a word about a trace "+what, func() bool { return strings.Count(r.log.String(), "is not prefetched") > before })
		_, err := r.client().Delete(context.Background(), "x")
		check(t, err)
	}
}

// A stream of reads is read ahead, and at most so far.
func TestStreamIsReadAhead(t *testing.T) {
	r := newCacheRig(t)
	r.cfg.Cache.Readahead = ptr(node.Bytes(256 << 10))
	r.start()
	r.create(r.on("web1", r.refA))
	p := make([]byte, 32<<10)
	for off := int64(0); off < 1*mib; off += int64(len(p)) {
		_, err := r.kernel.Disk(0).ReadAt(p, off)
		check(t, err)
		time.Sleep(time.Millisecond)
	}
	wait(t, "readahead", func() bool { return r.cacheStats().Prefetch.ReadaheadBytes > 0 })
	if s := r.cacheStats(); s.Origin.Bytes > 1*mib+512<<10 || s.Devices[0].Origin.Bytes >= s.Origin.Bytes {
		t.Errorf("origin %+v, the device %+v", s.Origin, s.Devices[0].Origin)
	}
}

func TestWarm(t *testing.T) {
	r := newCacheRig(t)
	clear(r.content[1*mib : 2*mib])
	_, ref := r.a.build("sparse:1", r.content)
	r.start()
	r.create(r.on("web1", ref))
	ctx := context.Background()
	steps := 0
	rep, err := r.client().WarmCache(ctx, "web1", node.CacheWarmRequest{}, func(done, total int64) {
		if steps++; done > total || total != imageSize {
			t.Errorf("%d of %d bytes", done, total)
		}
	})
	if err != nil || rep.Bytes != imageSize-1*mib || rep.ReadBytes != rep.Bytes || rep.Partly || steps == 0 {
		t.Errorf("%+v after %d steps, %v", rep, steps, err)
	}
	r.a.up.Store(false)
	r.readAll(0, 64<<10)
	r.a.up.Store(true)
	// Once more there is nothing to do, and less than fits is said.
	rep, err = r.client().WarmCache(ctx, "web1", node.CacheWarmRequest{}, func(int64, int64) {})
	if err != nil || rep.Bytes != imageSize-1*mib || rep.ReadBytes != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	_, err = r.client().SetCache(ctx, node.CacheSetRequest{MemoryBytes: 4 * mib})
	check(t, err)
	_, err = r.client().DropCache(ctx, node.CacheDropRequest{})
	check(t, err)
	_, big := r.b.build("big:1", append(imageContent(5), imageContent(6)...))
	r.create(r.on("web2", big))
	rep, err = r.client().WarmCache(ctx, "web2", node.CacheWarmRequest{}, func(int64, int64) {})
	if err != nil || !rep.Partly || rep.ReadBytes > 4*mib {
		t.Errorf("%+v, %v", rep, err)
	}
}

func TestWarmByTrace(t *testing.T) {
	r := newCacheRig(t)
	r.cfg.Cache.Record = "1m"
	r.start()
	r.create(r.on("web1", r.refA))
	ctx := context.Background()
	if _, err := r.client().CacheTrace(ctx, "web1"); node.CodeOf(err) != node.CodeNotFound {
		t.Errorf("a trace of nothing: %v", err)
	}
	r.same(0, 1*mib)
	r.same(0, 3*mib)
	data, err := r.client().CacheTrace(ctx, "web1")
	check(t, err)
	path := filepath.Join(r.dir, "a.trace")
	check(t, os.WriteFile(path, data, 0o600))
	_, err = r.client().DropCache(ctx, node.CacheDropRequest{})
	check(t, err)
	rep, err := r.client().WarmCache(ctx, "web1", node.CacheWarmRequest{Trace: path}, func(int64, int64) {})
	if err != nil || rep.Bytes != 2*64<<10 || rep.ReadBytes != rep.Bytes || rep.TotalBytes != rep.Bytes {
		t.Errorf("%+v, %v", rep, err)
	}
	_, other := r.a.build("other:1", imageContent(2))
	r.create(r.on("web2", other))
	raw := r.request("raw")
	r.create(raw)
	for what, c := range map[string]struct {
		name, trace string
		code        node.Code
	}{
		"trace of other content": {"web2", path, node.CodeBadRequest},
		"no trace":               {"web1", r.root, node.CodeBadRequest},
		"no file":                {"web1", path + ".not", node.CodeBadRequest},
		"relative path":          {"web1", "a.trace", node.CodeBadRequest},
		"raw root":               {"raw", "", node.CodeBadRequest},
		"no device":              {"x", "", node.CodeNotFound},
	} {
		if _, err := r.client().WarmCache(ctx, c.name, node.CacheWarmRequest{Trace: c.trace}, func(int64, int64) {}); node.CodeOf(err) != c.code || node.HintOf(err) == "" {
			t.Errorf("%s: %s, %v", what, node.CodeOf(err), err)
		}
	}
}

func mustRef(t *testing.T, text string) image.Ref {
	t.Helper()
	ref, err := image.ParseRef(text)
	check(t, err)
	return ref
}

// readFromDisk reads all of the only device until at least half of it comes from the disk tier, and fails where that was not there when it was first called. On a
// machine that is busy the tier may not answer in time at first.
func (r *imageRig) readFromDisk() {
	r.t.Helper()
	wait(r.t, "the disk tier gives what it has", func() bool {
		before, err := r.client().DropCache(context.Background(), node.CacheDropRequest{})
		check(r.t, err)
		r.readAll(0, 128<<10)
		after := r.cacheStats()
		disk, origin := after.Devices[0].Disk.Bytes-before.Devices[0].Disk.Bytes, after.Origin.Bytes-before.Origin.Bytes
		if disk+origin != imageSize || after.DiskTier.WrittenBytes > imageSize/2 {
			r.t.Errorf("%d bytes from the disk, %d from the origin; the disk was %+v and is %+v", disk, origin, before.DiskTier, after.DiskTier)
		}
		return disk >= imageSize/2
	})
}

// A daemon that is started again finds on the disk what the one before had read.
func TestDiskTierOutlivesTheDaemon(t *testing.T) {
	r := newCacheRig(t)
	r.cfg.Cache.Disk, r.cfg.Cache.DiskSize = filepath.Join(r.dir, "cache"), ptr(node.Bytes(64*mib))
	d := r.start()
	r.create(r.on("web1", r.refA))
	r.readAll(0, 128<<10)
	wait(t, "what waits to be written", func() bool { s := r.cacheStats().DiskTier; return s.QueuedBytes == 0 && s.WrittenBytes > 0 })
	check(t, d.Stop())
	r.start()
	r.readFromDisk()
	rep, err := r.client().DropCache(context.Background(), node.CacheDropRequest{Disk: true})
	if err != nil || rep.DiskTier.Used != 0 {
		t.Errorf("dropped: %+v, %v", rep.DiskTier, err)
	}
}

// The region of a leaf store is the disk tier for as long as the store is open.
func TestRegionOfALeafStoreIsTheDiskTier(t *testing.T) {
	r := newCacheRig(t)
	_, err := union.Format(r.store, union.FormatOptions{SizeBytes: storeSize + 64*mib, CacheBytes: 64 * mib, Force: true})
	check(t, err)
	d := r.start()
	if s := r.cacheStats(); s.DiskTier != nil || s.Disk != nil {
		t.Errorf("no store is open: %+v", s.DiskTier)
	}
	r.create(r.on("web1", r.refA))
	r.readAll(0, 128<<10)
	wait(t, "what waits to be written", func() bool { s := r.cacheStats().DiskTier; return s.QueuedBytes == 0 && s.WrittenBytes > 0 })
	_, err = r.client().Delete(t.Context(), "web1")
	check(t, err)
	if s := r.cacheStats(); s.DiskTier != nil {
		t.Errorf("the store is closed: %+v", s.DiskTier)
	}
	check(t, d.Stop())
	report, err := union.Check(r.store, union.CheckOptions{})
	check(t, err)
	if len(report.Problems) > 0 {
		t.Errorf("store: %v", report.Problems)
	}
	r.start()
	r.create(r.on("web2", r.refA))
	r.readFromDisk()
}

func TestCacheDiskThatIsSomethingElse(t *testing.T) {
	r := newRig(t)
	r.cfg.Cache.Disk = r.store
	driver, err := r.kernel.NewDriver()
	check(t, err)
	defer driver.Close()
	r.cfg.Driver = driver
	if _, err := node.New(r.cfg); err == nil || !strings.Contains(err.Error(), r.store) || node.HintOf(err) == "" {
		t.Errorf("a leaf store is taken for a cache: %v", err)
	}
}

// Two daemons share their caches: what one has read, the other takes from it.
func TestPeersShareTheirCaches(t *testing.T) {
	a, b := newCacheRig(t), newCacheRig(t)
	peers := filepath.Join(a.dir, "peers")
	urls := []string{"http://" + freeAddress(t), "http://" + freeAddress(t)}
	check(t, os.WriteFile(peers, []byte(strings.Join(urls, "\n")+"\n"), 0o600))
	for i, r := range []*imageRig{a, b} {
		c := &r.cfg.Cache
		c.Peers, c.Self, c.Listen, c.Insecure = peers, urls[i], strings.TrimPrefix(urls[i], "http://"), true
		r.start()
		r.create(r.on("web1", a.refA))
	}
	type sum struct {
		origin, given uint64
		late          int64
	}
	so := func() (s sum) {
		one, two := a.cacheStats(), b.cacheStats()
		s.given = two.Devices[0].Peers.Bytes
		for _, r := range []node.CacheReport{one, two} {
			s.origin += r.Origin.Bytes
			s.late += int64(r.Peers.Timeouts+r.Peers.Skipped) + r.PeerList.Peers[0].Errors + r.PeerList.Peers[0].Busy
		}
		return s
	}
	for before := (sum{}); ; before = so() {
		a.readAll(0, 128<<10)
		b.readAll(0, 128<<10)
		if s := so(); s.late == before.late {
			if origin := s.origin - before.origin; origin > imageSize*11/10 || s.given == before.given {
				t.Errorf("the origin gave %d bytes, peers gave %d", origin, s.given-before.given)
			}
			return
		}
		// A machine was too busy to answer in time, and is not asked for a while. The origin is right then, and the round does not count.
		for _, r := range []*imageRig{a, b} {
			wait(t, "the peer is asked again", func() bool { return r.cacheStats().PeerList.Peers[0].State == cachepeer.StateReady })
			_, err := r.client().DropCache(context.Background(), node.CacheDropRequest{})
			check(t, err)
		}
	}
}

// freeAddress is one that no other process takes before it is used, whatever else runs on this machine.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ownLoopback(), "0"))
	check(t, err)
	defer l.Close()
	return l.Addr().String()
}

// ownLoopback is an address of this machine that other processes do not use: all of 127.0.0.0/8 is.
func ownLoopback() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d", 1+pid>>16&63, pid>>8&255, pid&255)
}
