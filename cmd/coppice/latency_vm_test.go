//go:build vm

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"coppice/ebpf"
	"coppice/node"
)

// fioJob is what fio says of one of its jobs, of its reads.
type fioJob struct {
	Name string `json:"jobname"`
	Read struct {
		Total int64 `json:"total_ios"`
		Bytes int64 `json:"io_bytes"`
		Clat  struct {
			Percentile map[string]float64 `json:"percentile"` // ns
		} `json:"clat_ns"`
	} `json:"read"`
}

// fio runs jobs on a device, all at once, past the page cache.
func (r *vmRig) fio(path string, args ...string) map[string]fioJob {
	r.t.Helper()
	args = append([]string{"--output-format=json", "--filename=" + path, "--direct=1", "--group_reporting=0", "--allow_mounted_write=0"}, args...)
	out, err := exec.Command("fio", args...).Output()
	if err != nil {
		r.t.Fatalf("fio %q: %v\n%s", args, err, out)
	}
	return fioSaid(r.t, out)
}

// fioSaid decodes what fio said, by job.
func fioSaid(t *testing.T, out []byte) map[string]fioJob {
	t.Helper()
	var said struct{ Jobs []fioJob }
	if err := json.Unmarshal(out, &said); err != nil {
		t.Fatalf("fio: %v\n%s", err, out)
	}
	jobs := make(map[string]fioJob)
	for _, j := range said.Jobs {
		jobs[j.Name] = j
	}
	return jobs
}

type latencyKey struct{ op, source string }

// latencies are what was measured of a device.
func (r *vmRig) latencies(name string) map[latencyKey]ebpf.Latency {
	r.t.Helper()
	var rep node.LatencyReport
	if err := json.Unmarshal([]byte(r.ok("latency", name, "-o", "json")), &rep); err != nil {
		r.t.Fatal(err)
	}
	all := make(map[latencyKey]ebpf.Latency)
	for _, l := range rep.Latencies {
		all[latencyKey{l.Op, l.Source}] = l
	}
	return all
}

// since returns what came after an earlier measurement.
func since(now, before ebpf.Latency) ebpf.Latency { return now.Since(&before) }

// The image of TestLatencyBySource, in MiB: data, of which the first part is overwritten, the next is read through the cache and the next stays cold; the rest is zeros.
const (
	latencyImage = 8
	latencyZeros = 6 // where zeros begin
)

// measuredDevice makes a device as unmeasuredDevice does, and has it measured.
func (r *vmRig) measuredDevice() (node.Device, *vmDaemon) {
	r.t.Helper()
	dev, d := r.unmeasuredDevice()
	r.refused("no eBPF programs are loaded", "latency", "web1")
	r.ok("ebpf", "load")
	r.t.Cleanup(func() { r.ok("ebpf", "unload") })
	return dev, d
}

// unmeasuredDevice makes a device on an image, with its first 2 MiB written, that nothing but these tests reads.
func (r *vmRig) unmeasuredDevice() (node.Device, *vmDaemon) {
	r.t.Helper()
	source, ref := filepath.Join(r.dir, "source"), "oci:"+filepath.Join(r.dir, "images")+":root:1"
	r.sh(fmt.Sprintf("head -c %dM /dev/urandom > %s && truncate -s %dM %s", latencyZeros, source, latencyImage, source))
	r.ok("image", "build", ref, source)
	r.root = ref
	config := filepath.Join(r.dir, "latency.toml")
	// What is read before it is asked for would be in memory when it is.
	text := "scrub_bytes_per_second = 0\n[cache]\nmemory = \"64M\"\nreadahead = \"0\"\nprefetch_percent = 0\nrecord = \"0\"\ntraces = \"" + filepath.Join(r.dir, "traces") + "\"\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	d := r.start("--config", config)
	dev := r.create("web1")
	r.fio(dev.Path, "--name=fill", "--rw=write", "--bs=64k", "--size=2M", "--ioengine=psync")
	return dev, d
}

// Requests of a known mix, some at once, are counted under the source that each has its data from: as many as fio says that it made, and no others.
func TestLatencyBySource(t *testing.T) {
	r := newVMRig(t)
	dev, d := r.measuredDevice()
	load := func(jobs ...string) { r.mix(dev, jobs...) }
	// The first 2 MiB are the leaf's.
	const leaf, cached, cold, zero = "leaf", "memory", "root", "zero"
	load(cold + " --offset=2M --size=2M --bs=64k")
	load(leaf+" --offset=0 --size=2M --bs=4k", cached+" --offset=2M --size=2M --bs=4k", cold+" --offset=4M --size=2M --bs=64k", zero+" --offset=6M --size=2M --bs=4k")

	before := r.latencies("web1")
	r.fio(dev.Path, "--name=across", "--rw=read", "--bs=8k", "--offset=2093056", "--size=8k", "--ioengine=psync") // the last block of the leaf, and the next one
	if got := since(r.latencies("web1")[latencyKey{"read", "memory"}], before[latencyKey{"read", "memory"}]); got.Count != 1 || got.Mixed != 1 {
		t.Errorf("a read of leaf and cache is counted as %+v", got)
	}

	// Another daemon goes on with the numbers, once it has the maps.
	before = r.latencies("web1")
	d.signal(syscall.SIGKILL)
	<-d.ended
	r.start("--config", filepath.Join(r.dir, "latency.toml"))
	r.refused("no eBPF programs are loaded", "latency", "web1")
	var loaded ebpfLoadReport
	if err := json.Unmarshal([]byte(r.ok("ebpf", "load", "-o", "json")), &loaded); err != nil || loaded.New || loaded.Devices != 1 {
		t.Errorf("loaded again: %+v, %v", loaded, err)
	}
	load(leaf + " --offset=0 --size=1M --bs=4k")
	if got := r.latencies("web1")[latencyKey{"read", "leaf"}].Count; got != before[latencyKey{"read", "leaf"}].Count+256 {
		t.Errorf("%d reads of the leaf after a restart, were %d", got, before[latencyKey{"read", "leaf"}].Count)
	}
	t.Logf("\n%s", r.ok("latency", "web1"))
	r.ok("ebpf", "unload")
	r.refused("no eBPF programs are loaded", "latency", "web1")
	r.fio(dev.Path, "--name=after", "--rw=randread", "--bs=4k", "--size=1M", "--ioengine=psync")
	r.ok("delete", "web1")
}

// mix runs jobs, each named as the source that all of its reads have their data from, and compares.
func (r *vmRig) mix(dev node.Device, jobs ...string) {
	r.t.Helper()
	before := r.latencies("web1")
	args := []string{"--rw=randread", "--ioengine=io_uring", "--iodepth=8"}
	for _, j := range jobs {
		name, rest, _ := strings.Cut(j, " ")
		args = append(append(args, "--name="+name), strings.Fields(rest)...)
	}
	said := r.fio(dev.Path, args...)
	now := r.latencies("web1")
	for key, l := range now {
		got, want := since(l, before[key]), int64(0)
		if key.op == "read" {
			want = said[key.source].Read.Total
		}
		if int64(got.Count) != want || got.Mixed != 0 {
			r.t.Errorf("%v: the kernel counted %d (%d mixed), fio made %d", key, got.Count, got.Mixed, want)
		}
	}
	for name, job := range said {
		if job.Read.Total == 0 || now[latencyKey{"read", name}].Count == 0 {
			r.t.Errorf("%s: fio made %d, the kernel counted none", name, job.Read.Total)
		}
	}
}
