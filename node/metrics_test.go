package node_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
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
		{"coppice_replica_state", 1, []string{"content=" + s.Devices[0].Content, "ref=" + r.refA, "state=ready"}},
		{"coppice_replica_failures_total", 0, []string{"ref=" + r.refA}},
		{"coppice_store_waiting_requests", 0, []string{"store=" + r.store}},
	} {
		if v := value(t, got, w.name, w.labels...); v != w.want || w.want == 0 && strings.Contains(w.name, "bytes") {
			t.Errorf("%s%v is %v, want %v", w.name, w.labels, v, w.want)
		}
	}
	if v := value(t, got, "coppice_heap_allocated_objects_total"); v < 1000 {
		t.Errorf("the daemon has allocated %v objects", v)
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	check(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Each query of the dashboard is of metrics that there are, with labels that they have.
func TestDashboard(t *testing.T) {
	data, err := os.ReadFile("../docs/grafana-dashboard.json")
	check(t, err)
	var page struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	check(t, json.Unmarshal(data, &page))
	r := everyMetric(t)
	measured := r.measureSomething()
	families, _ := r.scrape()
	places := map[[2]int]string{}
	for i, p := range page.Panels {
		at := [2]int{p.GridPos.X, p.GridPos.Y}
		if other := places[at]; other != "" || p.ID != i+1 || len(p.Targets) == 0 {
			t.Errorf("panel %q has number %d, %d queries, and the place of %q", p.Title, p.ID, len(p.Targets), other)
		}
		places[at] = p.Title
		for _, q := range p.Targets {
			for _, problem := range wrongWith(q.Expr, q.LegendFormat, families, measured) {
				t.Errorf("panel %q: %s: %s", p.Title, q.Expr, problem)
			}
		}
	}
	if len(page.Panels) < 20 {
		t.Errorf("%d panels only", len(page.Panels))
	}
}

var (
	selectors = regexp.MustCompile(`(coppice_[a-z_]+)(?:\{([^}]*)\})?`)
	matchers  = regexp.MustCompile(`([a-z_]+)(?:=~|!~|!=|=)"`)
	groupings = regexp.MustCompile(`by \(([^)]*)\)`)
	legends   = regexp.MustCompile(`\{\{([a-z_]+)\}\}`)
)

// wrongWith compares a query with what there is. What the kernel measures is there on machines that can only.
func wrongWith(query, legend string, families map[string]*dto.MetricFamily, measured bool) (problems []string) {
	labels := map[string]bool{"instance": true} // which Prometheus adds
	found := selectors.FindAllStringSubmatch(query, -1)
	if len(found) == 0 {
		return []string{"it asks for nothing of Coppice's"}
	}
	for _, m := range found {
		f := families[m[1]]
		if base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(m[1], ""); f == nil && base != m[1] {
			f = families[base]
			labels["le"] = true
		}
		switch {
		case f == nil && !measured && strings.HasPrefix(m[1], "coppice_request_"):
			return problems
		case f == nil:
			return append(problems, "there is no "+m[1])
		}
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels[l.GetName()] = true
		}
		for _, l := range matchers.FindAllStringSubmatch(m[2], -1) {
			if !labels[l[1]] {
				problems = append(problems, fmt.Sprintf("%s has no label %s", m[1], l[1]))
			}
		}
	}
	used := legends.FindAllStringSubmatch(legend, -1)
	for _, g := range groupings.FindAllStringSubmatch(query, -1) {
		for name := range strings.SplitSeq(g[1], ",") {
			used = append(used, []string{"", strings.TrimSpace(name)})
		}
	}
	for _, l := range used {
		if !labels[l[1]] {
			problems = append(problems, "nothing has label "+l[1])
		}
	}
	return problems
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
