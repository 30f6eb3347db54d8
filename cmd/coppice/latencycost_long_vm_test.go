//go:build vm && long

package main

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/ebpf"
	"coppice/node"
)

const (
	costRounds = 12

	// costStart is how long a load goes on before it is measured, costSettle how long after programs were loaded or unloaded, and costWindow how long each part of a round is:
	// some 15,000 requests.
	costStart, costSettle, costWindow = 2 * time.Second, 100 * time.Millisecond, 300 * time.Millisecond

	// mostCost is what a request may take with the programs, of what it takes without.
	mostCost = 1.05
	// sameCost is by how much windows without the programs may differ from those before the first were loaded.
	sameCost = 0.01
)

// Measuring costs a request at depth 32 no more than a twentieth of the instructions that it takes, and nothing once the programs are unloaded: windows with and without, in turns, of one
// load, on a machine whose time is what its CPU has executed. fio and the daemon take turns on that one CPU, and when they do may change with what the requests take, by more than the
// programs do: where fio asks and waits for 16 requests at a time, that is the same in all windows.
func TestLatencyCost(t *testing.T) {
	if words, err := os.ReadFile("/proc/cmdline"); err != nil || !slices.Contains(strings.Fields(string(words)), "vmtests.counted") {
		t.Fatalf("this machine does not count instructions: use vmrun -counted (%v)", err)
	}
	r := newVMRig(t)
	r.leaf = "/dev/ram0"
	r.ok("store", "format", r.leaf)
	dev, _ := r.unmeasuredDevice()
	r.fio(dev.Path, "--name=warm", "--rw=read", "--bs=64k", "--offset=2M", "--size=2M", "--ioengine=psync") // into memory
	const leaf, memory, batches = "--offset=0", "--offset=2M", "--iodepth_batch_submit=16 --iodepth_batch_complete_min=16"
	for _, load := range []struct{ name, args string }{
		{"leaf", leaf}, {"memory", memory}, {"leaf in batches", leaf + " " + batches}, {"memory in batches", memory + " " + batches},
	} {
		t.Run(load.name, func(t *testing.T) { (&costRig{t: t, r: r, dev: dev}).compare(strings.Fields(load.args)) })
	}
	r.ok("delete", "web1")
}

// costRig tells what requests of a load cost, with programs loaded and without.
type costRig struct {
	t    *testing.T
	r    *vmRig
	dev  node.Device
	load *exec.Cmd
}

// compare runs a load until it has been measured with and without.
func (c *costRig) compare(args []string) {
	t := c.t
	c.load = exec.Command("fio", append([]string{"--filename=" + c.dev.Path, "--direct=1", "--output=/dev/null", "--thread", "--name=job", "--rw=randread", "--bs=4k", "--size=2M",
		"--ioengine=io_uring", "--iodepth=32", "--time_based", "--runtime=3600"}, args...)...)
	begun := readsOf(t, c.dev) + 1000
	if err := c.load.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		c.signal(syscall.SIGTERM)
		_ = c.load.Wait() // says that it was ended
	}()
	for began := time.Now(); readsOf(t, c.dev) < begun; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatal("fio does not begin")
		}
	}
	time.Sleep(costStart)
	var before, off, on, ratios []float64
	for range costRounds {
		before = append(before, c.window())
	}
	for round := range costRounds {
		var with, without float64
		if round%2 == 0 {
			without, with = c.without(), c.with()
		} else {
			with, without = c.with(), c.without()
		}
		off, on, ratios = append(off, without), append(on, with), append(ratios, with/without)
	}
	low, high := bootstrap(ratios)
	t.Logf("instructions per request: %.0f before, %.0f unloaded, %.0f loaded: times %.4f, 95 %% interval %.4f to %.4f, of %d rounds: %.3f",
		median(before), median(off), median(on), median(ratios), low, high, len(ratios), ratios)
	if high > mostCost {
		t.Errorf("measuring takes %.4f to %.4f of what a request takes without, want at most %.2f", low, high, mostCost)
	}
	if rest := median(off)/median(before) - 1; rest > sameCost || rest < -sameCost {
		t.Errorf("a request takes %.0f instructions with the programs unloaded, %.0f before they were first loaded", median(off), median(before))
	}
	c.counted()
}

// counted says what the kernel counts of the programs itself, which takes some of what it counts.
func (c *costRig) counted() {
	t := c.t
	c.r.sh("echo 1 > /proc/sys/kernel/bpf_stats_enabled")
	defer c.r.sh("echo 0 > /proc/sys/kernel/bpf_stats_enabled")
	all := c.with()
	var programs []ebpf.ProgramStatus
	if err := json.Unmarshal([]byte(c.r.ok("ebpf", "show", "-o", "json")), &programs); err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if p.Runs == 0 {
			t.Fatalf("%s has not run", p.Name)
		}
		each := float64(p.Nanos) / float64(p.Runs)
		t.Logf("the kernel counts %.0f of the %.0f instructions in %s: %.4f of them", each, all, p.Name, each/all)
	}
	c.without()
}

// with is a window with the programs loaded, and without one with none.
func (c *costRig) with() float64    { return c.after("load") }
func (c *costRig) without() float64 { return c.after("unload") }

// after loads or unloads the programs, while the device has no requests, and returns what a request takes then.
func (c *costRig) after(verb string) float64 {
	c.t.Helper()
	c.signal(syscall.SIGSTOP)
	c.r.ok("ebpf", verb)
	c.signal(syscall.SIGCONT)
	time.Sleep(costSettle)
	return c.window()
}

// window returns how many instructions the machine executes for each read.
func (c *costRig) window() float64 {
	began, idle, reads := time.Now(), idleTime(c.t), readsOf(c.t, c.dev)
	time.Sleep(costWindow)
	ended, more, all := time.Now(), idleTime(c.t), readsOf(c.t, c.dev)
	if more != idle { // it is told in hundredths of a second: no window is to have any
		c.t.Errorf("the CPU had nothing to do for %s of %s", more-idle, ended.Sub(began))
	}
	return float64(ended.Sub(began)) / float64(all-reads)
}

func (c *costRig) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.load.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// readsOf is how many reads of a device have ended.
func readsOf(t *testing.T, dev node.Device) int64 {
	t.Helper()
	s, err := readDiskStat("/sys", dev.ID)
	if err != nil {
		t.Fatal(err)
	}
	return int64(s.reads)
}

// idleTime is how long the CPUs of the machine have had nothing to do.
func idleTime(t *testing.T) time.Duration {
	t.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	const tick = 10 * time.Millisecond
	sum := time.Duration(0)
	for _, i := range []int{4, 5} { // after cpu, user, nice and system: idle and iowait
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			t.Fatalf("/proc/stat: %q", line)
		}
		sum += time.Duration(n) * tick
	}
	return sum
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// bootstrap returns the 95 % interval of the median.
func bootstrap(list []float64) (low, high float64) {
	const draws = 4000
	rng := rand.New(rand.NewPCG(1, 1))
	medians := make([]float64, draws)
	drawn := make([]float64, len(list))
	for i := range medians {
		for k := range drawn {
			drawn[k] = list[rng.IntN(len(list))]
		}
		medians[i] = median(drawn)
	}
	slices.Sort(medians)
	return medians[draws/40], medians[draws-1-draws/40]
}
