package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	rtmetrics "runtime/metrics"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"coppice/cache"
	"coppice/cache/disk"
	"coppice/union"
)

// metricsPath is where the numbers are.
const metricsPath = "/metrics"

// metricsServer gives the daemon's numbers to Prometheus, over plain HTTP and to whoever asks: they hold names of devices and nothing of their content.
type metricsServer struct {
	http  *http.Server
	addr  net.Addr
	ended chan struct{}
}

// serveMetrics returns nil where the configuration has no address for it.
func (d *Daemon) serveMetrics() (*metricsServer, error) {
	if d.cfg.Metrics == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", d.cfg.Metrics)
	if err != nil {
		return nil, fail(CodeBadRequest, "give another address: metrics in the configuration", "serve metrics: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{d})
	mux := http.NewServeMux()
	mux.Handle("GET "+metricsPath, promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
	}))
	m := &metricsServer{addr: l.Addr(), ended: make(chan struct{}), http: &http.Server{
		Handler: mux, ReadHeaderTimeout: readTime, ReadTimeout: readTime, WriteTimeout: idleTime, IdleTimeout: idleTime, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}}
	go func() {
		defer close(m.ended)
		if err := m.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("metrics are served no more", "error", err)
		}
	}()
	d.log.Info("metrics served", "url", fmt.Sprintf("http://%s%s", m.addr, metricsPath))
	return m, nil
}

func (m *metricsServer) close() error {
	if m == nil {
		return nil
	}
	err := m.http.Close()
	<-m.ended
	return err
}

// desc describes a metric. help says in a sentence what is counted.
func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("coppice_"+name, help, labels, nil)
}

// The metrics. Names and labels are an interface: docs/grafana-dashboard.json and other people's alarms use them.
var (
	buildInfo = desc("build_info", "1, with the version of the daemon.", "version")
	upSince   = desc("start_time_seconds", "When the daemon was started, in Unix time.")
	allocated = desc("heap_allocated_objects_total", "Objects that the daemon has allocated on the heap; a request that is served from memory, a leaf or a raw root adds none.")

	deviceState    = desc("device_state", "1 for the state that a device is in.", "device", "state")
	deviceRequests = desc("device_requests_total", "Requests of a device that have ended.", "device", "operation")
	deviceErrors   = desc("device_errors_total", "Requests of a device that ended with an error.", "device")
	deviceBadSums  = desc("device_checksum_errors_total", "Blocks of a device's leaf whose checksum was wrong.", "device")
	deviceRead     = desc("device_read_bytes_total", "Bytes that a device read, by where they came from; those that the root had in memory count as root too.", "device", "from")
	deviceWritten  = desc("device_written_bytes_total", "Bytes written to a device.", "device")
	deviceCopied   = desc("device_copied_up_bytes_total", "Bytes of blocks that were written in part, and copied up for that.", "device")
	deviceWaits    = desc("device_root_waits_total", "Requests that waited because many of a queue read the root already.", "device")
	deviceRefused  = desc("device_root_refused_total", "Those of them that got EIO because the root had stalled.", "device")
	deviceCached   = desc("device_cache_bytes_total", "Bytes that a device read of its image, by where the chunks came from.", "device", "tier")
	deviceChunks   = desc("device_cache_chunks_total", "Parts of requests, each from one chunk, by where that came from.", "device", "tier")

	latencySeconds = desc("request_latency_seconds", "How long the requests of a device took, as the kernel saw them, by operation and by the farthest place that their data came from.", "device", "operation", "source")
	latencyMixed   = desc("request_mixed_total", "Those of them that had data from nearer places, too.", "device", "operation", "source")
	latencyErrors  = desc("request_latency_errors_total", "Those of them that failed.", "device", "operation", "source")

	storeUsed      = desc("store_used_ratio", "How full a leaf store is for blocks that are written for the first time, 1 is full.", "store")
	storeAvailable = desc("store_available_bytes", "What such blocks can still take.", "store")
	storeWaiting   = desc("store_waiting_requests", "Requests that wait for space.", "store")

	replicaState    = desc("replica_state", "1 for the state of a place that an image is read from.", "content", "ref", "state")
	replicaReads    = desc("replica_reads_total", "Requests that such a place has answered.", "content", "ref")
	replicaBytes    = desc("replica_read_bytes_total", "Bytes that it gave.", "content", "ref")
	replicaFailures = desc("replica_failures_total", "Requests and probes of it that failed.", "content", "ref")
	replicaHedged   = desc("replica_hedged_total", "Requests that were made again elsewhere because it was slow.", "content", "ref")

	memoryThreshold = desc("cache_memory_threshold_bytes", "What the memory tier may take at most.")
	memoryUsed      = desc("cache_memory_used_bytes", "What it takes, with what is known of the chunks.")
	memoryContent   = desc("cache_memory_content_bytes", "The chunks in it.")
	memoryChunks    = desc("cache_memory_chunks", "How many chunks that are.")
	memoryInserted  = desc("cache_memory_inserted_total", "Chunks that were put into memory.")
	memoryEvicted   = desc("cache_memory_evictions_total", "Chunks that had to go for others.")
	memoryRefused   = desc("cache_memory_refused_total", "Chunks for which there was no room.")

	curveMisses  = desc("cache_curve_miss_ratio", "Which part of the requests memory would miss with a threshold, predicted; what is long past counts less.", "threshold_bytes")
	curveNow     = desc("cache_curve_measured_miss_ratio", "Which part of them it missed.")
	curveGhosts  = desc("cache_ghost_hits_total", "Requests that memory missed, and would not have with twice the threshold, as far as the sample tells.")
	curveSampled = desc("cache_curve_sampled_ratio", "Which part of the chunks the curve is taken from.")

	readBytes    = desc("cache_read_bytes_total", "Bytes that all devices read of images, by where the chunks came from; devices that are gone count too.", "tier")
	readChunks   = desc("cache_read_chunks_total", "Parts of their requests, each from one chunk, by where that came from.", "tier")
	readErrors   = desc("cache_read_errors_total", "Reads that failed.")
	fetchSeconds = desc("cache_fetch_seconds", "How long reads took that memory alone could not serve.")

	tierHits     = desc("cache_tier_hits_total", "Chunks that a tier behind memory had.", "tier")
	tierMisses   = desc("cache_tier_misses_total", "Chunks that it did not have.", "tier")
	tierBytes    = desc("cache_tier_bytes_total", "Bytes that it gave.", "tier")
	tierErrors   = desc("cache_tier_errors_total", "Times that it failed, time-outs included.", "tier")
	tierTimeouts = desc("cache_tier_timeouts_total", "Times that it took too long.", "tier")
	tierRejected = desc("cache_tier_rejected_total", "Chunks that it gave and that were not what they should be.", "tier")
	tierSkipped  = desc("cache_tier_skipped_total", "Times that it was not asked because it was put aside.", "tier")
	tierAside    = desc("cache_tier_aside", "1 while it is put aside because it does not answer.", "tier")
	tierSeconds  = desc("cache_tier_seconds", "How long it took to answer.", "tier")

	originReads   = desc("cache_origin_reads_total", "Reads of neighbouring chunks from the images' own servers.")
	originChunks  = desc("cache_origin_chunks_total", "Chunks read from there.")
	originBytes   = desc("cache_origin_bytes_total", "Their content; less may have been fetched, as it is compressed there.")
	originErrors  = desc("cache_origin_errors_total", "Reads from there that failed.")
	originSeconds = desc("cache_origin_seconds", "How long these reads took.")

	servedHits   = desc("cache_served_hits_total", "Chunks given to peers.")
	servedMisses = desc("cache_served_misses_total", "Chunks that peers asked for and were not given.")
	servedBytes  = desc("cache_served_bytes_total", "Bytes given to peers.")

	diskSize    = desc("cache_disk_size_bytes", "The size of the disk tier.")
	diskContent = desc("cache_disk_content_bytes", "The chunks in it.")
	diskEvicted = desc("cache_disk_evictions_total", "Chunks of it that had to go for others.")
	diskBad     = desc("cache_disk_bad_slots_total", "Slots that held something else than they should.")
	diskDropped = desc("cache_disk_dropped_total", "Chunks that were not kept because the disk was busy.")
	diskOn      = desc("cache_disk_on", "1 while the disk tier is in use.")

	prefetched = desc("prefetch_bytes_total", "Bytes read before they were asked for.", "why")
	replays    = desc("prefetch_replays_total", "Recorded lists of chunks that were replayed.")
)

// collector measures when it is asked.
type collector struct{ d *Daemon }

// Describe tells nothing beforehand: devices and tiers come and go.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect waits for no store and no server.
func (c collector) Collect(out chan<- prometheus.Metric) {
	m := metrics{out}
	m.gauge(buildInfo, 1, c.d.cfg.Version)
	m.gauge(upSince, float64(c.d.began.UnixNano())/1e9)
	m.count(allocated, allocatedObjects())
	stores := map[string]bool{}
	for _, v := range c.d.all() {
		m.device(v, stores)
		m.latencies(c.d.Latency(v.record().Device.Name))
	}
	for _, r := range c.d.rootOverviews() {
		m.replicas(r)
	}
	m.cache(c.d.CacheStats())
	m.curve(c.d.cache.Curve())
}

// allocatedObjects is what the runtime has counted; it stops nobody.
func allocatedObjects() uint64 {
	sample := []rtmetrics.Sample{{Name: "/gc/heap/allocs:objects"}}
	rtmetrics.Read(sample)
	if sample[0].Value.Kind() != rtmetrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}

// metrics is where metrics go.
type metrics struct{ out chan<- prometheus.Metric }

func (m metrics) gauge(d *prometheus.Desc, v float64, labels ...string) {
	m.out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (m metrics) count(d *prometheus.Desc, n uint64, labels ...string) {
	m.out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
}

func (m metrics) histogram(d *prometheus.Desc, h cache.Histogram, labels ...string) {
	m.out <- prometheus.MustNewConstHistogram(d, h.Count, h.Seconds, h.Cumulative(), labels...)
}

func (m metrics) flag(d *prometheus.Desc, on bool, labels ...string) {
	v := 0.0
	if on {
		v = 1
	}
	m.gauge(d, v, labels...)
}

// latencies gives what was measured in the kernel, where anything was.
func (m metrics) latencies(r LatencyReport, err error) {
	if err != nil {
		return
	}
	for _, l := range r.Latencies {
		labels := []string{r.Device, l.Op, l.Source}
		m.out <- latencyMetric{l, labels}
		m.count(latencyMixed, l.Mixed, labels...)
		m.count(latencyErrors, l.Errors, labels...)
	}
}

// device measures a device, and its store unless that has been.
func (m metrics) device(v *device, stores map[string]bool) {
	r := v.measure()
	m.gauge(deviceState, 1, r.name, string(r.state))
	if r.stats == nil {
		return
	}
	m.requests(r.name, *r.stats)
	if r.cached != nil {
		m.parts(deviceCached, deviceChunks, *r.cached, r.name)
	}
	if !stores[r.store] {
		stores[r.store] = true
		m.gauge(storeUsed, r.space.UsedPercent/100, r.store)
		m.gauge(storeAvailable, float64(r.space.AvailableBytes), r.store)
		m.gauge(storeWaiting, float64(r.space.Waiting), r.store)
	}
}

// reading is what can be said of a device at once. All but the first four is absent while it is not served.
type reading struct {
	name   string
	id     int
	state  State
	store  string
	stats  *union.DeviceStats
	space  union.SpaceInfo
	cached *cache.ReaderStats // nil also where the root is no image
}

// measure waits for nothing.
func (v *device) measure() reading {
	v.mu.RLock()
	defer v.mu.RUnlock()
	r := reading{name: v.rec.Device.Name, id: v.rec.Device.ID, state: v.state, store: v.rec.Device.Store}
	if v.disk != nil {
		r.id = v.disk.ID()
	}
	if v.back == nil || v.back.device == nil {
		return r
	}
	stats := v.back.device.Stats()
	r.stats = &stats
	r.space, _, _ = v.back.layer.Space()
	r.cached = v.back.image().stats()
	return r
}

func (m metrics) requests(name string, s union.DeviceStats) {
	for op, n := range map[string]uint64{"read": s.Reads, "write": s.Writes, "flush": s.Flushes, "discard": s.Discards} {
		m.count(deviceRequests, n, name, op)
	}
	for from, n := range map[string]uint64{"leaf": s.LeafReadBytes, "root": s.RootReadBytes, "memory": s.RootMemoryBytes, "zeros": s.ZeroReadBytes} {
		m.count(deviceRead, n, name, from)
	}
	m.count(deviceErrors, s.Errors, name)
	m.count(deviceBadSums, s.ChecksumErrors, name)
	m.count(deviceWritten, s.WrittenBytes, name)
	m.count(deviceCopied, s.CopiedUpBytes, name)
	m.count(deviceWaits, s.RootWaits, name)
	m.count(deviceRefused, s.RootRefused, name)
}

// replicas measures the places that an image is read from.
func (m metrics) replicas(r RootOverview) {
	for _, p := range r.Replicas {
		m.gauge(replicaState, 1, r.Content, p.Ref, string(p.State))
		m.count(replicaReads, uint64(p.Requests), r.Content, p.Ref)
		m.count(replicaBytes, uint64(p.Bytes), r.Content, p.Ref)
		m.count(replicaFailures, uint64(p.Failures), r.Content, p.Ref)
		m.count(replicaHedged, uint64(p.Hedged), r.Content, p.Ref)
	}
}

// parts measures where chunks came from.
func (m metrics) parts(bytes, chunks *prometheus.Desc, s cache.ReaderStats, labels ...string) {
	for tier, p := range map[string]cache.Part{
		"memory": s.Memory, "disk": s.Disk, "peers": s.Peers, "appliance": s.Appliance, "origin": s.Origin, "zeros": s.Zeros,
	} {
		l := append(labels[:len(labels):len(labels)], tier)
		m.count(bytes, p.Bytes, l...)
		m.count(chunks, p.Chunks, l...)
	}
}

func (m metrics) cache(r CacheReport) {
	m.gauge(memoryThreshold, float64(r.Memory.ThresholdBytes))
	m.gauge(memoryUsed, float64(r.Memory.UsedBytes))
	m.gauge(memoryContent, float64(r.Memory.ContentBytes))
	m.gauge(memoryChunks, float64(r.Memory.Chunks))
	m.count(memoryInserted, r.Memory.Inserted)
	m.count(memoryEvicted, r.Memory.Evictions)
	m.count(memoryRefused, r.Memory.Refused)
	m.parts(readBytes, readChunks, r.Readers)
	m.count(readErrors, r.Readers.Errors)
	m.histogram(fetchSeconds, r.Readers.Fetch)
	for tier, s := range map[string]*cache.TierStats{"disk": r.Disk, "peers": r.Peers, "appliance": r.Appliance} {
		m.tier(tier, s)
	}
	m.count(originReads, r.Origin.Reads)
	m.count(originChunks, r.Origin.Chunks)
	m.count(originBytes, r.Origin.Bytes)
	m.count(originErrors, r.Origin.Errors)
	m.histogram(originSeconds, r.Origin.Latency)
	m.count(servedHits, r.Served.Hits)
	m.count(servedMisses, r.Served.Misses)
	m.count(servedBytes, r.Served.Bytes)
	m.count(prefetched, r.Prefetch.ReplayedBytes, "replay")
	m.count(prefetched, r.Prefetch.ReadaheadBytes, "readahead")
	m.count(replays, r.Prefetch.Replays)
	if s := r.DiskTier; s != nil {
		m.gauge(diskSize, float64(s.SizeBytes))
		m.gauge(diskContent, float64(s.Bytes))
		m.count(diskEvicted, s.Evictions)
		m.count(diskBad, s.BadSlots)
		m.count(diskDropped, s.DroppedPuts)
		m.flag(diskOn, s.State == disk.StateOn)
	}
}

// curve measures what memory would miss. There are as many points as thresholds are tried, whatever the threshold is.
func (m metrics) curve(r cache.Curve) {
	m.gauge(curveNow, r.MissRatio)
	m.count(curveGhosts, r.GhostHits)
	m.gauge(curveSampled, 1/float64(r.SampledOneOf))
	for _, p := range r.Points {
		if !p.Coarse {
			m.gauge(curveMisses, p.MissRatio, strconv.FormatInt(p.ThresholdBytes, 10))
		}
	}
}

// tier measures a tier behind memory, if there is one.
func (m metrics) tier(name string, s *cache.TierStats) {
	if s == nil {
		return
	}
	m.count(tierHits, s.Hits, name)
	m.count(tierMisses, s.Misses, name)
	m.count(tierBytes, s.Bytes, name)
	m.count(tierErrors, s.Errors, name)
	m.count(tierTimeouts, s.Timeouts, name)
	m.count(tierRejected, s.Rejected, name)
	m.count(tierSkipped, s.Skipped, name)
	m.flag(tierAside, s.Aside, name)
	m.histogram(tierSeconds, s.Latency, name)
}
