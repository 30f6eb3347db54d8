//go:build mutants

package union

import (
	"flag"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coppice/ublk/ublktest"
)

var mutantStates = flag.Uint64("mutant-states", 30_000, "how many states are looked at for a mutant before it counts as not noticed")

// mutants says how each bug is looked for: what a run must have for the bug to show, beside what its seed says.
var mutants = [bugs]struct {
	name string
	hint func(c *simConfig) []simOp // nil: none; a script where the seed's own will not do
}{
	bugReleaseAtRecord:       {name: "ReleaseAtRecord", hint: tight},
	bugReleaseAtLogWrite:     {name: "ReleaseAtLogWrite", hint: slowFlushes},
	bugFUAFrees:              {name: "FUAFrees", hint: busyFlushes},
	bugDiscardFreesEarly:     {name: "DiscardFreesEarly", hint: tight},
	bugMergeFreesEarly:       {name: "MergeFreesEarly", hint: tightLayers},
	bugMergeFreesMaps:        {name: "MergeFreesMaps", hint: tightLayers},
	bugMapFreedEarly:         {name: "MapFreedEarly", hint: tight},
	bugCatalogFreedEarly:     {name: "CatalogFreedEarly", hint: tight},
	bugRemoveFreesEarly:      {name: "RemoveFreesEarly", hint: tightLayers},
	bugEpochsIgnored:         {name: "EpochsIgnored", hint: slowReads},
	bugReplayFreesSuperseded: {name: "ReplayFreesSuperseded", hint: dying},
	bugReplayOwnsNothing:     {name: "ReplayOwnsNothing"},

	bugFlushSkipsOpen: {name: "FlushSkipsOpen"},
	bugFlushBesideLog: {name: "FlushBesideLog"},
	bugNoDeviceFlush:  {name: "NoDeviceFlush"},
	bugCommitNoFlush:  {name: "CommitNoFlush"},
	bugFreezeNoCommit: {name: "FreezeNoCommit"},
	bugFUAVolatile:    {name: "FUAVolatile"},
	bugAckFailedFlush: {name: "AckFailedFlush", hint: failing},
	bugErrorNotSticky: {name: "ErrorNotSticky", hint: failing},

	bugFUADurable:      {name: "FUADurable"},
	bugClaimsDurable:   {name: "ClaimsDurable", hint: smallLog},
	bugOneLogCopy:      {name: "OneLogCopy"},
	bugCommitOneCopy:   {name: "CommitOneCopy", hint: commits},
	bugLogOverrun:      {name: "LogOverrun", hint: smallLog},
	bugCountLags:       {name: "CountLags"},
	bugSealTextMissing: {name: "SealTextMissing"},
	bugSealSplit:       {name: "SealSplit", hint: fullBlock},
	bugSequenceReuse:   {name: "SequenceReuse"},

	bugCheckpointNoFlush:    {name: "CheckpointNoFlush"},
	bugCheckpointWithoutLog: {name: "CheckpointWithoutLog", hint: checkpoints},
	bugStartTooLate:         {name: "StartTooLate"},
	bugStartMovedEarly:      {name: "StartMovedEarly", hint: slowCheckpoints},
	bugOneSuperblock:        {name: "OneSuperblock"},
	bugSuperblocksTogether:  {name: "SuperblocksTogether", hint: recut},
	bugBitmapStale:          {name: "BitmapStale"},
	bugCatalogAlone:         {name: "CatalogAlone", hint: mergeThenCreate},

	bugNoDataCheck:      {name: "NoDataCheck"},
	bugTrustsFirstBlock: {name: "TrustsFirstBlock"},
	bugDurableIgnored:   {name: "DurableIgnored", hint: damaged},
	bugOldSuperblock:    {name: "OldSuperblock", hint: damaged},
	bugNotLevelled:      {name: "NotLevelled", hint: recut},
	bugLevelledNoFlush:  {name: "LevelledNoFlush", hint: relapsing},
	bugReplayUnflushed:  {name: "ReplayUnflushed", hint: dying},
	bugLayerNumberReuse: {name: "LayerNumberReuse"},

	bugRingPrivate:      {name: "RingPrivate", hint: dying},
	bugRingForgotten:    {name: "RingForgotten", hint: dying},
	bugPublishEarly:     {name: "PublishEarly", hint: dying},
	bugRingNotPublished: {name: "RingNotPublished", hint: dying},

	bugDiscardToRoot:  {name: "DiscardToRoot"},
	bugEdgesForgotten: {name: "EdgesForgotten", hint: partsOfBlocks},
}

// A store with few free slots, which are used again soon.
var tightGeometry = simGeometry{128, 24, 17, 0, 12*blockSize - 3*sector, 9*blockSize + 777, nil}

func tight(c *simConfig) []simOp {
	c.geometry, c.mix, c.faultAt = tightGeometry, opMixes[[]int{0, 1, 4, 5}[c.seed%4]], 0
	return nil
}

func tightLayers(c *simConfig) []simOp {
	c.geometry, c.mix, c.faultAt = tightGeometry, opMixes[2+c.seed%2], 0
	c.geometry.deviceBytes = 6*blockSize - 3*sector
	c.geometry.rootBytes = 3 * blockSize
	return nil
}

// fillUp writes everything that the devices have.
func fillUp(c *simConfig) (script []simOp) {
	const most = 8 * 8 // sectors of a request
	for dev := range 2 {
		for first := 0; first < c.geometry.sectors(); first += most {
			script = append(script, simOp{kind: opWrite, dev: dev, first: first, count: most}, simOp{kind: opDrain})
		}
	}
	return script
}

// busy draws operations of two kinds and more: writes are of one block, or of the first eight, which soon use a slot again that became free.
func busy(c *simConfig, ops, steps int, kinds ...opKind) []simOp {
	rng := rand.New(rand.NewPCG(c.seed, 52))
	script := fillUp(c)
	for range ops {
		o := simOp{kind: kinds[rng.IntN(len(kinds))], dev: rng.IntN(2), first: rng.IntN(8) * 8, count: 8, steps: rng.IntN(steps)}
		if o.kind == opWrite && rng.IntN(2) == 0 {
			o.first, o.count = 0, 8*8
		}
		script = append(script, o)
	}
	return script
}

// slowReads has few spare slots, and reads that last.
func slowReads(c *simConfig) []simOp {
	c.geometry, c.faultAt = tightGeometry, 0
	c.geometry.deviceBytes = 16*blockSize - 3*sector
	c.blind, c.runDir, c.slow = true, false, []ublktest.Kind{ublktest.Read}
	return busy(c, 200, 3, opWrite, opWrite, opWrite, opWrite, opRead, opFlush)
}

// slowFlushes has few spare slots, and flushes that last.
func slowFlushes(c *simConfig) []simOp {
	c.geometry, c.faultAt = tightGeometry, 0
	c.geometry.deviceBytes = 16*blockSize - 3*sector
	c.exhaustive, c.runDir, c.slow = 0, false, []ublktest.Kind{ublktest.Flush}
	return busy(c, 40, 6, opWrite, opWrite, opWrite, opFlush)
}

func busyFlushes(c *simConfig) []simOp {
	tight(c)
	c.mix = opMix{weights: weigh(map[opKind]int{opWrite: 14, opDiscard: 1, opFlush: 4}), fua: 3, ops: 80, steps: 3, blocks: 3}
	c.oneQueue = false
	return nil
}

// slowCheckpoints has much go to a small log while a checkpoint is under way.
func slowCheckpoints(c *simConfig) []simOp {
	smallLog(c)
	c.slowCalls, c.runDir, c.exhaustive = true, false, 0
	c.mix = opMix{weights: weigh(map[opKind]int{opWrite: 14, opFlush: 5, opCheckpoint: 1}), fua: 2, ops: 60, steps: 6, blocks: 2}
	return nil
}

func checkpoints(c *simConfig) []simOp {
	c.geometry, c.faultAt = simGeometries[0], 0
	c.mix = opMix{weights: weigh(map[opKind]int{opWrite: 14, opDiscard: 1, opFlush: 5, opCheckpoint: 5}), fua: 3, ops: 60, steps: 6, blocks: 2}
	return nil
}

// commits has the background do what flushes would.
func commits(c *simConfig) []simOp {
	checkpoints(c)
	c.mix.weights = weigh(map[opKind]int{opWrite: 8, opCommit: 5, opFlush: 2})
	c.damage, c.runDir = 1, false
	return nil
}

func recut(c *simConfig) []simOp {
	checkpoints(c)
	c.recuts, c.runDir = 1, false
	return nil
}

// relapsing makes one checkpoint after the other where a recovery soon writes to the slots that an older superblock names.
func relapsing(c *simConfig) []simOp {
	c.geometry, c.faultAt = tightGeometry, 0
	c.geometry.deviceBytes = 20*blockSize - 3*sector
	c.relapses, c.runDir = true, false
	rng := rand.New(rand.NewPCG(c.seed, 53))
	script := fillUp(c)
	for range 20 {
		script = append(script, simOp{kind: opWrite, first: rng.IntN(20) * 8, count: 8}, simOp{kind: opDrain}, simOp{kind: opCheckpoint}, simOp{kind: opDrain})
	}
	return script
}

func partsOfBlocks(c *simConfig) []simOp {
	c.faultAt = 0
	rng := rand.New(rand.NewPCG(c.seed, 50))
	var script []simOp
	for range 80 {
		script = append(script, simOp{kind: opWrite, first: rng.IntN(16), count: 1 + rng.IntN(3), steps: rng.IntN(4)})
	}
	return append(script, simOp{kind: opDrain}, simOp{kind: opRead, count: 16, steps: 20})
}

func dying(c *simConfig) []simOp {
	c.runDir, c.kills, c.faultAt = true, 1, 0
	return nil
}

func failing(c *simConfig) []simOp {
	c.faultAt, c.faultFlush = 1+int(c.seed%12), true
	c.mix = opMixes[0]
	return nil
}

func smallLog(c *simConfig) []simOp {
	c.geometry, c.mix, c.faultAt = simGeometries[0], opMixes[c.seed%2*5], 0
	return nil
}

func damaged(c *simConfig) []simOp {
	c.damage = 1
	return nil
}

// fullBlock freezes when a block of the log has hardly room for what that records.
func fullBlock(c *simConfig) []simOp {
	c.faultAt, c.geometry = 0, simGeometries[0]
	var script []simOp
	for i := range recordsPerLog - 1 - int(c.seed%2) {
		script = append(script, simOp{kind: opZero, first: i % 2 * 8, count: 8, steps: 6})
	}
	return append(script, simOp{kind: opDrain}, simOp{kind: opFreeze, steps: 40}, simOp{kind: opFlush, steps: 20})
}

// mergeThenCreate leaves to a catalog what only a checkpoint can say.
func mergeThenCreate(c *simConfig) []simOp {
	c.faultAt = 0
	script := drawScript(rand.New(rand.NewPCG(c.seed, 51)), c, 5)
	return append(script, simOp{kind: opDrain}, simOp{kind: opFreeze, steps: 30}, simOp{kind: opWrite, count: 16, steps: 20},
		simOp{kind: opCheckpoint, steps: 60}, simOp{kind: opDrain}, simOp{kind: opMerge, steps: 10}, simOp{kind: opDrain},
		simOp{kind: opCreate, steps: 60}, simOp{kind: opFlush, steps: 20})
}

// hunt runs one seed after the other until one shows the bug, or the time is over.
func hunt(t *testing.T, b bug, benches []*bench) (seed uint64, v *violation, states uint64) {
	t.Helper()
	mutant = b
	defer func() { mutant = noBug }()
	var next, seen atomic.Uint64
	var mu sync.Mutex
	var found atomic.Bool
	var wg sync.WaitGroup
	for _, bench := range benches {
		wg.Go(func() {
			for !found.Load() && seen.Load() < *mutantStates {
				cfg, script := mutantRun(b, next.Add(1))
				w, stats := simulate(t, cfg, script, bench)
				seen.Add(stats.States + 10) // a run counts too
				if w != nil {
					mu.Lock()
					if v == nil {
						seed, v = cfg.seed, w
					}
					mu.Unlock()
					found.Store(true)
				}
			}
		})
	}
	wg.Wait()
	return seed, v, seen.Load()
}

func mutantRun(b bug, seed uint64) (simConfig, []simOp) {
	cfg := newSimConfig(seed)
	cfg.exhaustive = 4
	if hint := mutants[b].hint; hint != nil {
		if script := hint(&cfg); script != nil {
			return cfg, script
		}
	}
	return cfg, newScript(&cfg)
}

// TestNoMutant looks, in each way in which bugs are looked for, where there is none.
func TestNoMutant(t *testing.T) {
	var total simStats
	var mu sync.Mutex
	tried := map[string]bool{}
	t.Run("like", func(t *testing.T) {
		for like := noBug + 1; like < bugs; like++ {
			way := runtime.FuncForPC(reflect.ValueOf(mutants[like].hint).Pointer())
			name := "usual"
			if way != nil {
				name = way.Name()[strings.LastIndex(way.Name(), ".")+1:]
			}
			if tried[name] {
				continue
			}
			tried[name] = true
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				stats := findNothing(t, like)
				mu.Lock()
				defer mu.Unlock()
				total.add(&stats)
			})
		}
	})
	t.Logf("%d states in %d ways, %s", total.States, len(tried), violations(t))
}

// findNothing looks for a violation as one would for a bug.
func findNothing(t *testing.T, like bug) (total simStats) {
	t.Helper()
	b := &bench{dir: runDir(t)}
	seen := uint64(0)
	for seed := uint64(1); seen < *mutantStates/20; seed++ {
		cfg, script := mutantRun(like, seed)
		v, stats := simulate(t, cfg, script, b)
		seen += stats.States + 10
		total.add(&stats)
		if v != nil {
			t.Errorf("seed %d: %v", seed, v.err)
			small, w := minimise(t, cfg, script, v, b, time.Now().Add(20*time.Second))
			t.Fatalf("%d operations are enough: %v\n%s\n%v", len(small), small, strings.Join(w.trace, "\n"), w)
		}
	}
	return total
}

// TestMutants demands that the crash simulator notices each bug that can be made, and none where there is none.
func TestMutants(t *testing.T) {
	var benches []*bench
	for range runtime.GOMAXPROCS(0) {
		benches = append(benches, &bench{dir: runDir(t)})
	}
	began := time.Now()
	killed := 0
	var times []time.Duration
	for b := noBug + 1; b < bugs; b++ {
		t.Run(mutants[b].name, func(t *testing.T) {
			start := time.Now()
			seed, v, states := hunt(t, b, benches)
			took := time.Since(start)
			if v == nil {
				t.Fatalf("survived %d states in %.1f s", states, took.Seconds())
			}
			killed++
			times = append(times, took)
			t.Logf("killed after %d states in %.2f s by seed %d: %.200v", states, took.Seconds(), seed, v.err)
		})
	}
	slices.Sort(times)
	if len(times) > 0 {
		t.Logf("%d of %d mutants killed in %.0f s, half of them within %.2f s", killed, bugs-1, time.Since(began).Seconds(), times[len(times)/2].Seconds())
	}
}

// TestMinimiseMutant demands that little is left of the script that shows a bug.
func TestMinimiseMutant(t *testing.T) {
	b := &bench{dir: runDir(t)}
	seed, v, _ := hunt(t, bugNoDeviceFlush, []*bench{b})
	if v == nil {
		t.Fatal("not noticed")
	}
	mutant = bugNoDeviceFlush
	defer func() { mutant = noBug }()
	cfg, script := mutantRun(bugNoDeviceFlush, seed)
	small, w := minimise(t, cfg, script, v, b, time.Now().Add(time.Minute))
	t.Logf("%d of %d operations are left: %v\n%s\n%v", len(small), len(script), small, strings.Join(w.trace, "\n"), w)
	if len(small) > 4 {
		t.Errorf("%d of %d operations are left", len(small), len(script))
	}
}
