package union

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

var (
	crashStates = flag.Uint64("crash-states", 0, "how many states the crash tests look at, at least; 0: some")
	crashSeed   = flag.Uint64("crash-seed", 0, "the one seed that TestCrashSimulator runs; 0: from 1 on")
)

// simulate carries out one run, in a bubble of its own.
func simulate(t *testing.T, cfg simConfig, script []simOp, b *bench) (*violation, simStats) {
	t.Helper()
	return simulateFrom(t, cfg, script, 0, b)
}

// simulateFrom looks at no state before the given operation of the script.
func simulateFrom(t *testing.T, cfg simConfig, script []simOp, from int, b *bench) (v *violation, stats simStats) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &simRun{cfg: cfg, stats: &stats, look: looker{bench: b}, dir: b.dir + "/run"}
		if err := r.begin(); err != nil {
			r.fail(fmt.Errorf("begin: %w", err), "")
		} else {
			r.live(script, from)
		}
		r.end()
		if cfg.runDir {
			os.RemoveAll(r.dir)
		}
		stats.Runs++
		v = r.failed
	})
	return v, stats
}

// campaign has as many runs as there are processors at a time, until next has no more.
func campaign(t *testing.T, next func(b *bench, t *testing.T) (simStats, bool)) {
	t.Helper()
	// Every recovery leaves garbage, and next to nothing lives.
	defer debug.SetGCPercent(debug.SetGCPercent(1000))
	var total simStats
	var mu sync.Mutex
	began, cpu := time.Now(), cpuTime()
	t.Run("runs", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("worker", func(t *testing.T) {
				t.Parallel()
				b := &bench{dir: runDir(t)}
				for {
					stats, ok := next(b, t)
					mu.Lock()
					total.add(&stats)
					mu.Unlock()
					if !ok {
						return
					}
				}
			})
		}
	})
	took, used := time.Since(began), cpuTime()-cpu
	t.Logf("%d distinct states (%d images) of %d runs in %.1f s, %.1f CPU s: %.0f states/s; %v",
		total.States, total.Images, total.Runs, took.Seconds(), used.Seconds(), float64(total.States)/took.Seconds(), violations(t))
	t.Logf("%d events: every subset of the pending writes after %d, a choice of them after %d, at most %d pending; %d deaths of the process, "+
		"%d rotten or displaced blocks (%d refused), %d torn writes, %d recoveries cut, %d second lives",
		total.Events, total.Exhaustive, total.Sampled, total.Deepest, total.Kills, total.Rots, total.Refused, total.Torn, total.CutRecoveries, total.Lives)
}

// TestCrashSimulator cuts the power, and kills the process, after every write and every flush of randomised schedules of
// requests, checkpoints and changes of layers, in all ways that the disk may have executed what no flush covered, and demands
// from each state what was promised.
func TestCrashSimulator(t *testing.T) {
	t.Parallel()
	target := *crashStates
	if target == 0 {
		target = 10_000
		if testing.Short() {
			target = 500
		}
	}
	var seed, states atomic.Uint64
	var failed atomic.Bool
	seed.Store(max(1, *crashSeed))
	campaign(t, func(b *bench, t *testing.T) (stats simStats, more bool) {
		cfg := newSimConfig(seed.Add(1) - 1)
		if failed.Load() || *crashSeed != 0 && cfg.seed != *crashSeed {
			return stats, false
		}
		v, stats := simulate(t, cfg, newScript(&cfg), b)
		if v != nil {
			failed.Store(true)
			report(t, cfg, newScript(&cfg), v, b)
		}
		return stats, states.Add(stats.States) < target
	})
}

// TestCrashSmallScope goes through every workload of up to three operations out of eight, each operation after the one before, and
// then all at once in some other schedules, and through every subset of the writes that are pending after each write and flush.
func TestCrashSmallScope(t *testing.T) {
	t.Parallel()
	const b4 = 4 * blockSize / sector
	alphabet := []simOp{
		{kind: opWrite, first: 0, count: 8},
		{kind: opWrite, first: b4, count: 8}, // an overwrite
		{kind: opZero, first: b4, count: 8},
		{kind: opDiscard, first: b4 - 8, count: 16},
		{kind: opFlush},
		{kind: opWrite, first: b4, count: 16, fua: true},
		{kind: opCheckpoint},
		{kind: opFreeze},
	}
	before := []simOp{{kind: opWrite, first: b4 - 8, count: 24}, {kind: opFlush}, {kind: opWrite, first: b4, count: 3}, {kind: opFlush}}
	var workloads [][]simOp
	for _, a := range alphabet {
		workloads = append(workloads, []simOp{a})
		for _, b := range alphabet {
			workloads = append(workloads, []simOp{a, b})
			for _, c := range alphabet {
				workloads = append(workloads, []simOp{a, b, c})
			}
		}
	}
	stride, schedules := 1, 1+int(*crashStates/100_000)
	if testing.Short() {
		stride = 60
	}
	var next, done, most atomic.Int64
	campaign(t, func(b *bench, t *testing.T) (stats simStats, more bool) {
		at := int(next.Add(1)-1) * stride
		if at >= len(workloads)*schedules {
			return stats, false
		}
		i, schedule := at%len(workloads), at/len(workloads)
		cfg := simConfig{seed: uint64(i), geometry: simGeometries[0], runDir: true, fifo: true, oneQueue: true, exhaustive: 12, scope: true, spoils: 6, recuts: 8, kills: 3, mix: opMixes[0]}
		script := append(append([]simOp(nil), before...), workloads[i]...)
		from := len(script) - 1 // the states of a workload's beginning are those of a shorter one
		if schedule > 0 {
			cfg.fifo, cfg.oneQueue, cfg.seed, from = false, false, uint64(at), len(before)
		}
		v, stats := simulateFrom(t, cfg, script, from, b)
		if v != nil {
			t.Errorf("workload %v: %v\n%s\n%s", workloads[i], v.err, strings.Join(v.trace, "\n"), v.state)
		}
		done.Add(1)
		for n := most.Load(); n < int64(stats.Deepest) && !most.CompareAndSwap(n, int64(stats.Deepest)); n = most.Load() {
		}
		if stats.Sampled > 0 {
			t.Errorf("workload %v: more than 12 writes pending", workloads[i])
		}
		return stats, v == nil
	})
	t.Logf("%d of %d workloads in %d schedules, at most %d writes pending", done.Load(), len(workloads)*schedules, schedules, most.Load())
	if !t.Failed() && stride == 1 && int(done.Load()) != len(workloads)*schedules {
		t.Errorf("only %d workloads", done.Load())
	}
}

// TestCrashMinimiser has the oracle demand of each acknowledged write what only a flush gives: the simulator must notice, and leave
// of the script what is needed to show it.
func TestCrashMinimiser(t *testing.T) {
	t.Parallel()
	b := &bench{dir: runDir(t)}
	cfg := newSimConfig(3)
	cfg.deaf, cfg.exhaustive = true, 4
	script := newScript(&cfg)
	v, _ := simulate(t, cfg, script, b)
	if v == nil {
		t.Fatal("nothing noticed")
	}
	small, w := minimise(t, cfg, script, v, b, time.Now().Add(20*time.Second))
	t.Logf("%d operations of %d are left: %v\n%v", len(small), len(script), small, w)
	if len(small) > 2 {
		t.Errorf("%d operations of %d are left: %v", len(small), len(script), small)
	}
	if !strings.Contains(w.Error(), "lost") {
		t.Errorf("the report does not tell which writes were lost: %v", w)
	}
}

func violations(t *testing.T) string {
	if t.Failed() {
		return "VIOLATED"
	}
	return "0 violations"
}

// report prints a violation and the smallest script that still makes one.
func report(t *testing.T, cfg simConfig, script []simOp, v *violation, b *bench) {
	t.Helper()
	t.Errorf("seed %d (go test ./union -run TestCrashSimulator -crash-seed %d): %v", cfg.seed, cfg.seed, v.err)
	small, w := minimise(t, cfg, script, v, b, time.Now().Add(time.Minute))
	var lines strings.Builder
	for _, o := range small {
		fmt.Fprintf(&lines, "  %v\n", o)
	}
	t.Errorf("%d of %d operations are enough:\n%sgeometry %+v, run directory %v\n%s\n%v", len(small), len(script), lines.String(), cfg.geometry, cfg.runDir,
		strings.Join(w.trace, "\n"), w)
}

// minimise leaves out operations, many at a time and then one by one, while something is still violated.
func minimise(t *testing.T, cfg simConfig, script []simOp, v *violation, b *bench, until time.Time) ([]simOp, *violation) {
	t.Helper()
	for size := len(script) / 2; size > 0; {
		shrunk := false
		for at := 0; at+size <= len(script) && time.Now().Before(until); {
			less := append(append([]simOp(nil), script[:at]...), script[at+size:]...)
			if w, _ := simulate(t, cfg, less, b); w != nil {
				script, v, shrunk = less, w, true
			} else {
				at += size
			}
		}
		if size > 1 || !shrunk {
			size /= 2
		}
	}
	return script, v
}

func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
