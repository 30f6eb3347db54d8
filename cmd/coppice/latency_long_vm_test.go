//go:build vm && long

package main

import (
	"strconv"
	"testing"
	"time"

	"coppice/ebpf"
	"coppice/node"
)

// The percentiles of the kernel's histogram are those that fio sees, or one bucket beside. A machine that is emulated on a busy one lets fio wait after the kernel
// has completed a request: what that has disturbed is measured again.
func TestLatencyPercentiles(t *testing.T) {
	const tries = 6
	r := newVMRig(t)
	dev, _ := r.measuredDevice()
	for try := 1; !r.comparePercentiles(dev); try++ {
		if try == tries {
			t.Fatalf("not once in %d times", tries)
		}
	}
	r.ok("delete", "web1")
}

// comparePercentiles tells whether all of them are beside fio's.
func (r *vmRig) comparePercentiles(dev node.Device) bool {
	t := r.t
	t.Helper()
	key := latencyKey{"read", "leaf"}
	before := r.latencies("web1")[key]
	job := r.fio(dev.Path, "--name=job", "--rw=randread", "--bs=64k", "--size=2M", "--ioengine=psync", "--time_based", "--runtime=3",
		"--percentile_list=50:90:95:99")["job"]
	got := since(r.latencies("web1")[key], before)
	if int64(got.Count) != job.Read.Total {
		t.Errorf("the kernel counted %d, fio made %d", got.Count, job.Read.Total)
	}
	if len(job.Read.Clat.Percentile) != 4 {
		t.Fatalf("fio says %+v", job)
	}
	near := true
	for text, ns := range job.Read.Clat.Percentile {
		percent, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatal(err)
		}
		kernel, fio := got.PercentileBucket(percent), ebpf.BucketOf(time.Duration(ns))
		t.Logf("%g %%: fio %s (bucket %d), the kernel less than %s (bucket %d)", percent, time.Duration(ns), fio, got.Percentile(percent), kernel)
		near = near && kernel >= fio-1 && kernel <= fio+1
	}
	return near
}
