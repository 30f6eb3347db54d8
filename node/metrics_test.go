package node_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"coppice/node"
)

// scrape returns the metrics of the daemon as Prometheus would have them, and the text.
func (r *rig) scrape() (map[string]*dto.MetricFamily, []byte) {
	r.t.Helper()
	answer, err := http.Get("http://" + r.cfg.Metrics + "/metrics")
	check(r.t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	check(r.t, err)
	if answer.StatusCode != http.StatusOK {
		r.t.Fatalf("%s: %s", answer.Status, text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	check(r.t, err)
	return families, text
}

// value returns the value of a metric with labels as KEY=VALUE.
func value(t *testing.T, families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	t.Helper()
	for _, m := range families[name].GetMetric() {
		have := map[string]bool{}
		for _, l := range m.GetLabel() {
			have[l.GetName()+"="+l.GetValue()] = true
		}
		if !slices.ContainsFunc(labels, func(l string) bool { return !have[l] }) {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	t.Fatalf("no %s with %v", name, labels)
	return 0
}

// everyMetric runs a daemon that has all there is to measure, with a device that has read its image twice.
func everyMetric(t *testing.T) *imageRig {
	r := newCacheRig(t)
	r.cfg.Metrics = freeAddress(t)
	r.cfg.Cache.Disk, r.cfg.Cache.DiskSize = filepath.Join(r.dir, "cache"), ptr(node.Bytes(64*mib))
	nobody := "http://" + freeAddress(t)
	peers := filepath.Join(r.dir, "peers")
	check(t, os.WriteFile(peers, []byte(nobody+"\n"), 0o600))
	r.cfg.Cache.Peers, r.cfg.Cache.Appliances, r.cfg.Cache.Insecure = peers, []string{nobody}, true
	r.start()
	r.create(r.on("web1", r.refA))
	r.readAll(0, 128<<10)
	r.readAll(0, 128<<10)
	return r
}

func TestMetrics(t *testing.T) {
	r := everyMetric(t)
	got, text := r.scrape()
	s := r.cacheStats()
	curve, err := r.client().CacheCurve(t.Context())
	check(t, err)
	if curve.MissRatio == 0 || curve.Requests == 0 {
		t.Errorf("%+v", curve)
	}
	for _, w := range []struct {
		name   string
		want   float64
		labels []string
	}{
		{"coppice_build_info", 1, []string{"version=test"}},
		{"coppice_device_state", 1, []string{"device=web1", "state=live"}},
		{"coppice_device_cache_bytes_total", float64(s.Devices[0].Memory.Bytes), []string{"device=web1", "tier=memory"}},
		{"coppice_device_cache_bytes_total", float64(s.Devices[0].Origin.Bytes), []string{"device=web1", "tier=origin"}},
		{"coppice_device_read_bytes_total", 2 * imageSize, []string{"device=web1", "from=root"}},
		{"coppice_cache_memory_chunks", float64(s.Memory.Chunks), nil},
		{"coppice_cache_memory_threshold_bytes", float64(s.Memory.ThresholdBytes), nil},
		{"coppice_cache_origin_bytes_total", float64(s.Origin.Bytes), nil},
		{"coppice_cache_origin_seconds", float64(s.Origin.Reads), nil},
		{"coppice_cache_fetch_seconds", float64(s.Readers.Fetch.Count), nil},
		{"coppice_cache_disk_on", 1, nil},
		{"coppice_cache_curve_sampled_ratio", 1, nil},
		{"coppice_cache_curve_measured_miss_ratio", curve.MissRatio, nil},
		{"coppice_cache_curve_miss_ratio", curve.MissRatio, []string{fmt.Sprintf("threshold_bytes=%d", curve.ThresholdBytes)}},
		{"coppice_cache_ghost_hits_total", 0, nil},
		{"coppice_store_waiting_requests", 0, []string{"store=" + r.store}},
	} {
		if v := value(t, got, w.name, w.labels...); v != w.want || w.want == 0 && strings.Contains(w.name, "bytes") {
			t.Errorf("%s%v is %v, want %v", w.name, w.labels, v, w.want)
		}
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	check(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestDashboard compares the metrics that the dashboard asks for with those that there are.
func TestDashboard(t *testing.T) {
	const path = "../docs/grafana-dashboard.json"
	data, err := os.ReadFile(path)
	check(t, err)
	var page any
	check(t, json.Unmarshal(data, &page))
	asked := map[string]bool{}
	suffix := regexp.MustCompile(`_(bucket|sum|count)$`)
	r := everyMetric(t)
	measured := r.measureSomething()
	families, _ := r.scrape()
	for _, name := range regexp.MustCompile(`coppice_[a-z_]+`).FindAllString(string(data), -1) {
		if families[name] == nil {
			name = suffix.ReplaceAllString(name, "")
		}
		asked[name] = true
	}
	if len(asked) < 10 {
		t.Errorf("it asks for %d metrics only", len(asked))
	}
	for _, name := range slices.Sorted(maps.Keys(asked)) {
		if families[name] == nil && (measured || !strings.HasPrefix(name, "coppice_request_")) {
			t.Errorf("it asks for %s, which there is not", name)
		}
	}
}

func TestMetricsAddressInUse(t *testing.T) {
	r := newRig(t)
	r.cfg.Metrics = freeAddress(t)
	r.start()
	other := newRig(t)
	other.cfg.Metrics = r.cfg.Metrics
	driver, err := other.kernel.NewDriver()
	check(t, err)
	other.cfg.Driver = driver
	d, err := node.New(other.cfg)
	check(t, err)
	if err := d.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "serve metrics") {
		t.Errorf("%v", err)
	}
}
