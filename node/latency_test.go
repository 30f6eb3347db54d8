package node_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"golang.org/x/sys/unix"

	dto "github.com/prometheus/client_model/go"

	"coppice/ebpf"
	"coppice/node"
)

// loadMaps returns maps of programs that are loaded for the test; ok is false where this machine cannot, and says so.
func loadMaps(t *testing.T) (maps ebpf.Maps, ok bool) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, unix.Unmount(dir, 0)) })
	pins := filepath.Join(dir, "pins")
	l, err := ebpf.Load(ebpf.LoadConfig{Pins: pins, Devices: 4, Tags: 2048})
	var lack *ebpf.LackError
	if errors.As(err, &lack) && lack.ToDo() != "" {
		t.Logf("not here: %v", err)
		return ebpf.Maps{}, false
	}
	check(t, err)
	t.Cleanup(func() {
		check(t, l.Close())
		_, err := ebpf.Unload(pins)
		check(t, err)
	})
	return l.Maps, true
}

// words maps one of the maps, as the kernel's side sees it.
func words(t *testing.T, f *os.File, n int) []byte {
	t.Helper()
	p, err := unix.Mmap(int(f.Fd()), 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(t, err)
	t.Cleanup(func() { check(t, unix.Munmap(p)) })
	return p
}

// The order of the maps in [ebpf.Maps], and the size of what is in them.
const (
	marksMap, marksBytes         = 1, 2048 * 8
	histogramsMap, aHistogram    = 2, 53 * 8
	bucketsAt, readLeaf, counted = 3 * 8, 2, 5
)

// marked returns what was said of requests since the last call.
func marked(marks []byte) (all byte) {
	for i, b := range marks {
		all |= b
		marks[i] = 0
	}
	return all
}

// A daemon that is given maps says in them where the data of each request came from, and reports what it finds there; later devices join, a later daemon goes on with
// the numbers, and when it is over nothing is said any more.
func TestLatency(t *testing.T) {
	r := newRig(t)
	r.cfg.Metrics = freeAddress(t)
	d := r.start()
	ctx := context.Background()
	web := r.create(r.request("web1"))
	if _, err := r.client().Latency(ctx, "web1"); node.CodeOf(err) != node.CodeNotMeasured || !strings.Contains(node.HintOf(err), "coppice ebpf load") {
		t.Errorf("before: %v", err)
	}
	if _, err := r.client().Latency(ctx, "none"); node.CodeOf(err) != node.CodeNotFound {
		t.Errorf("no device: %v", err)
	}
	foreign, err := os.Open(r.root)
	check(t, err)
	defer foreign.Close()
	if _, err := r.client().Measure(ctx, ebpf.Maps{Files: [3]*os.File{foreign, foreign, foreign}, Shards: 1}); node.CodeOf(err) != node.CodeBadRequest {
		t.Errorf("files that are no maps: %v", err)
	}
	maps, ok := loadMaps(t)
	if !ok {
		return
	}
	marks := words(t, maps.Files[marksMap], marksBytes)
	measure := func(want int) {
		t.Helper()
		if rep, err := r.client().Measure(ctx, maps); err != nil || rep.Devices != want {
			t.Fatalf("%+v, %v", rep, err)
		}
	}
	const leaf, root = 1 << 1, 1 << 7
	said := func(what string, id int, off int64, want byte) {
		t.Helper()
		r.read(id, off, 1)
		if got := marked(marks); got != want {
			t.Errorf("%s: %08b, want %08b", what, got, want)
		}
	}
	said("before", web.ID, 0, 0)
	measure(1)
	said("read of the root", web.ID, 0, root)
	r.write(web.ID, "written", 4096)
	if got := marked(marks); got != leaf {
		t.Errorf("write: %08b", got)
	}
	said("read of the leaf", web.ID, 4096, leaf)
	second := r.create(r.request("web2"))
	said("read of a later device", second.ID, 0, root)

	// As the kernel would count.
	shards := maps.Shards
	histograms := words(t, maps.Files[histogramsMap], 4*shards*36*aHistogram)
	histograms[(shards-1)*36*aHistogram+readLeaf*aHistogram+bucketsAt+10*8] = counted
	histograms[readLeaf*aHistogram+bucketsAt] = 1
	r.wantLatency("web1", counted+1)
	r.wantMetric()

	measure(2) // the same maps once more
	said("read of the leaf", web.ID, 4096, leaf)
	r.wantLatency("web1", counted+1)

	r.kernel.Hold(web.ID, true)
	check(t, d.Stop())
	r.start()
	if _, err := r.client().Latency(ctx, "web1"); node.CodeOf(err) != node.CodeNotMeasured {
		t.Errorf("after a restart: %v", err)
	}
	measure(2)
	r.wantLatency("web1", counted+1)
	said("read of the leaf after a restart", web.ID, 4096, leaf)

	_, err = r.client().EndMeasure(ctx)
	check(t, err)
	said("read when it is over", web.ID, 4096, 0)
	if _, err := r.client().Latency(ctx, "web1"); node.CodeOf(err) != node.CodeNotMeasured {
		t.Errorf("after: %v", err)
	}
	measure(2)
	if rep, err := r.client().Latency(ctx, "web1"); err != nil || len(rep.Latencies) != 0 {
		t.Errorf("a new beginning has numbers: %+v, %v", rep, err)
	}
	r.kernel.Hold(web.ID, false)
	_, err = r.client().Delete(ctx, "web2")
	check(t, err)
}

// measureSomething has the daemon measure, and counts as the kernel would; where this machine cannot, it says so and returns false.
func (r *rig) measureSomething() bool {
	r.t.Helper()
	maps, ok := loadMaps(r.t)
	if !ok {
		return false
	}
	_, err := r.client().Measure(context.Background(), maps)
	check(r.t, err)
	words(r.t, maps.Files[histogramsMap], 4*maps.Shards*36*aHistogram)[readLeaf*aHistogram+bucketsAt] = 1
	return true
}

func (r *rig) wantLatency(name string, count uint64) {
	r.t.Helper()
	rep, err := r.client().Latency(context.Background(), name)
	check(r.t, err)
	if len(rep.Latencies) != 1 || rep.Latencies[0].Count != count || rep.Latencies[0].Op != "read" || rep.Latencies[0].Source != "leaf" {
		r.t.Errorf("%+v", rep)
	}
}

// wantMetric finds the histogram in both forms that Prometheus knows.
func (r *rig) wantMetric() {
	r.t.Helper()
	const name = "coppice_request_latency_seconds"
	families, _ := r.scrape()
	if v := value(r.t, families, name, "device=web1", "operation=read", "source=leaf"); v != counted+1 {
		r.t.Errorf("%g requests", v)
	}
	buckets := families[name].GetMetric()[0].GetHistogram().GetBucket()
	if n := len(buckets); n != 13 || buckets[0].GetUpperBound() != ebpf.Bound(4) || buckets[0].GetCumulativeCount() != 1 || buckets[2].GetCumulativeCount() != counted+1 {
		r.t.Errorf("buckets %v", buckets)
	}
	req, err := http.NewRequest(http.MethodGet, "http://"+r.cfg.Metrics+"/metrics", nil)
	check(r.t, err)
	format := expfmt.NewFormat(expfmt.TypeProtoDelim)
	req.Header.Set("Accept", string(format))
	answer, err := http.DefaultClient.Do(req)
	check(r.t, err)
	defer answer.Body.Close()
	for dec := expfmt.NewDecoder(answer.Body, expfmt.ResponseFormat(answer.Header)); ; {
		var f dto.MetricFamily
		if err := dec.Decode(&f); err != nil {
			r.t.Fatalf("no native histogram: %v", err)
		}
		if f.GetName() != name {
			continue
		}
		h := f.GetMetric()[0].GetHistogram()
		span := h.GetPositiveSpan()
		// Bucket 10 of the kernel ends at 2^-15 s, which is Prometheus's -30.
		if h.GetSchema() != 1 || h.GetZeroCount() != 1 || h.GetZeroThreshold() != ebpf.Bound(0) || len(span) != 1 || span[0].GetOffset() != -30 || h.GetPositiveDelta()[0] != counted {
			r.t.Errorf("native: %v", h)
		}
		return
	}
}
