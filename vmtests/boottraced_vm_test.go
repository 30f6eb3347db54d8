//go:build vm && long

package vmtests

import (
	"encoding/base64"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice/cache"
	"coppice/ebpf/boottrace"
	daemon "coppice/node"
	"coppice/union"
)

const (
	// farDelay is how long each answer of the origin takes to begin, and farBytes how many bytes of all answers together it sends in a second: 20 ms, 100 Mbit/s.
	farDelay, farBytes = 20 * time.Millisecond, 100 << 20 / 8

	// mostTrips is how many of the reads that wait in a cold boot may wait in one with a trace, mostAhead how much of what the boot uses may be read ahead.
	mostTrips, mostAhead = 0.25, 1.1
)

// traceCPUs is 2 because an emulated CPU has much to do with what is read ahead, which is in the way of all else.
var traceCPUs = flag.Int("boot-trace-cpus", 2, "virtual CPUs of the machines of TestBootTrace")

// TestBootTrace boots a machine from an origin that is far away, recorded by the kernel from the first request on, attaches that to the image, and boots another machine from it, whose daemon
// reads ahead by it.
func TestBootTrace(t *testing.T) {
	l := newMachineLab(t, Systemd)
	coppice, err := l.b.Binary(t.Context(), "./cmd/coppice")
	if err != nil {
		t.Fatal(err)
	}
	l.web = startServer(t, &far{content: http.FileServer(http.Dir(filepath.Join(l.dir, "web")))})
	cold := l.bootTraced(t, "cold")
	file := filepath.Join(l.dir, "boot.events")
	if err := os.WriteFile(file, cold.file, 0o600); err != nil {
		t.Fatal(err)
	}
	shown, err := command(t.Context(), "", coppice, "trace", "show", file)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the cold boot:\n%s", shown)
	if first := cold.trace.Events[0]; first.Off != 0 || cold.trace.Lost != 0 || cold.trace.Processes[first.Process] == "" {
		t.Errorf("the first request is %+v, %d lost", first, cold.trace.Lost)
	}
	if _, err := command(t.Context(), "", coppice, "trace", "attach", "oci:"+filepath.Join(l.dir, "web", "root")+":debian:1", file); err != nil {
		t.Fatal(err)
	}
	warm := l.bootTraced(t, "warm")

	chunk := int64(warm.trace.ChunkSize)
	used := int64(len(warm.trace.Prefetch().Chunks)) * chunk
	ahead := int64(warm.stats.Prefetch.ReplayedBytes)
	trips := float64(warm.waits()) / float64(cold.waits())
	t.Logf("reads that waited: %d cold, %d with the trace: %.3f of it", cold.waits(), warm.waits(), trips)
	t.Logf("read ahead by the trace: %.2f MiB, the boot uses %.2f MiB: %.3f of it", mib(ahead), mib(used), float64(ahead)/float64(used))
	t.Logf("of reads that waited, 99 %% took less than %s cold and %s with the trace; of all reads of the device, %s and %s", cold.waited(99), warm.waited(99), cold.took(99), warm.took(99))
	for _, percent := range []int{50, 90, 99} {
		t.Logf("%d %% of the reads of what was in memory took less than %s cold and %s with the trace", percent, cold.tookFrom(union.FromMemory, percent), warm.tookFrom(union.FromMemory, percent))
	}
	if warm.stats.Prefetch.Replays != 1 || cold.stats.Prefetch.Replays != 0 {
		t.Errorf("%d replays cold, %d with the trace", cold.stats.Prefetch.Replays, warm.stats.Prefetch.Replays)
	}
	if trips > mostTrips {
		t.Errorf("%.3f of the reads of a cold boot waited, want at most %.2f", trips, mostTrips)
	}
	if float64(ahead) > mostAhead*float64(used) {
		t.Errorf("%.3f of what the boot uses was read ahead, want at most %.1f", float64(ahead)/float64(used), mostAhead)
	}
	if warm.took(99) > cold.took(99) {
		t.Errorf("99 %% of the reads took up to %s, without the trace %s", warm.took(99), cold.took(99))
	}
}

// far is a server at the end of a long line.
type far struct {
	content http.Handler

	mu   sync.Mutex
	free time.Time // when the line has sent what it has been given
}

// ServeHTTP answers late, and slowly.
func (f *far) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	time.Sleep(farDelay)
	f.content.ServeHTTP(farWriter{w, f}, r)
}

// farWriter is an answer on its way down the line.
type farWriter struct {
	http.ResponseWriter
	line *far
}

// Write waits until the line has sent it.
func (w farWriter) Write(p []byte) (int, error) {
	f := w.line
	f.mu.Lock()
	if now := time.Now(); f.free.Before(now) {
		f.free = now
	}
	f.free = f.free.Add(time.Duration(float64(len(p)) / farBytes * float64(time.Second)))
	until := f.free
	f.mu.Unlock()
	time.Sleep(time.Until(until))
	return w.ResponseWriter.Write(p)
}

// tracedBoot is what a boot was like.
type tracedBoot struct {
	file   []byte
	trace  *boottrace.Trace
	stats  daemon.CacheReport
	device cache.ReaderStats
}

// bootTraced boots a machine with a blank leaf until it asks for a login, and returns what it was like.
func (l *machineLab) bootTraced(t *testing.T, name string) (b tracedBoot) {
	t.Helper()
	m := l.node(t, name, l.web.address)
	m.bootShort()
	m.cfg.CPUs = *traceCPUs
	m.cfg.KernelArgs += " coppice.trace=on"
	vm := l.boot(t, m)
	run := func(v any, args ...string) {
		t.Helper()
		out, err := vm.Output(t.Context(), append([]string{"coppice", "--run-dir", "/run/coppice-root"}, args...)...)
		if err != nil {
			t.Fatalf("%s: coppice %q: %v\n%s", name, args, err, out)
		}
		if err := json.Unmarshal([]byte(out), v); err != nil {
			t.Fatalf("%s: coppice %q: %v\n%s", name, args, err, out)
		}
	}
	var device daemon.Device
	run(&b.stats, "cache", "stats", "-o", "json")
	run(&device, "inspect", "root", "-o", "json")
	b.device = *device.Cache
	run(&struct{}{}, "trace", "record", "root", "/run/boot.events", "-o", "json")
	text, err := vm.Output(t.Context(), "base64", "-w0", "/run/boot.events")
	if err == nil {
		b.file, err = base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	}
	if err == nil {
		b.trace, err = boottrace.Decode(b.file)
	}
	if err != nil || len(b.trace.Events) == 0 {
		t.Fatalf("%s: its trace: %v", name, err)
	}
	if err := vm.Kill(); err != nil {
		t.Error(err)
	}
	return b
}

// waits is how many reads had to wait for what is not in memory.
func (b tracedBoot) waits() uint64 { return b.device.Reads }

// waited is what so many percent of these took at most, to a factor of two.
func (b tracedBoot) waited(percent uint64) time.Duration {
	seen := uint64(0)
	for _, bucket := range b.device.Fetch.Buckets {
		if seen += bucket.Count; seen*100 >= b.device.Fetch.Count*percent {
			return time.Duration(bucket.Below * float64(time.Second))
		}
	}
	return 0
}

// took is what so many percent of all reads of the device took at most, as the kernel saw them.
func (b tracedBoot) took(percent int) time.Duration { return b.tookFrom(0, percent) }

// tookFrom is took of those whose data came from there, and from nowhere else; 0: of all.
func (b tracedBoot) tookFrom(from union.Origins, percent int) time.Duration {
	var all []time.Duration
	for e := range b.trace.Reads() {
		if from == 0 || e.From == from {
			all = append(all, e.Took)
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[(len(all)*percent+99)/100-1]
}
