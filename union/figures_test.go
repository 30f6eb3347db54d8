package union

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

var (
	figuresFile  = flag.String("figures", "", "measure in full and write the page of figures here")
	figuresOnly  = flag.String("figures-only", "", "measure only the sections whose title holds this")
	figuresChild = flag.String("figures-child", "", "measure this in a process of its own and print it as JSON")
)

// figureRow is one figure: what, how much, and the goal, if there is one.
type figureRow struct{ what, value, goal string }

// figureSection is a table of figures that were measured together.
type figureSection struct {
	title, how string
	measure    func(f *figures) []figureRow
}

// figures measures. Small runs use little of everything, to prove that the measuring works.
type figures struct {
	t      *testing.T
	full   bool
	memory string // directory on tmpfs: what is counted
	store  string // directory on a real disk: what is timed with flushes
}

// scaled is n, or much less in a small run.
func (f *figures) scaled(n int) int {
	if f.full {
		return n
	}
	return max(n/1000, 2)
}

// sizes are those of devices, or the first alone in a small run.
func (f *figures) sizes(all ...int64) []int64 {
	if f.full {
		return all
	}
	return all[:1]
}

// runs is how often something is timed.
func (f *figures) runs(n int) int {
	if f.full {
		return n
	}
	return 1
}

const (
	gib = int64(1) << 30
	tib = int64(1) << 40
)

var figureSections = []figureSection{
	{"Write amplification and flushes", "First-touch random 4 KiB writes, a flush after every k, background work and its checkpoints included. " +
		"Bytes and flushes are counted at the disk interface; the store has room for 1/8 more than the device.", (*figures).amplification},
	{"Recovery", "Time to open a store whose log is as full as it gets before a checkpoint, after a power cut that lost nothing, " +
		"on a sparse file. Store and device have the same size.", (*figures).recovery},
	{"Freeze", "From the call that prepares to the return of the one that seals, with the flush that makes it durable. The leaf " +
		"was filled by scattered 4 KiB writes whose data was not kept.", (*figures).freeze},
	{"Depth", "Random 4 KiB reads of blocks that lie in a chain of layers, 32 at a time through a real ring, store and blocks in memory.", (*figures).depth},
	{"Memory", "Resident size of the whole process that serves, the test's own parts included. The blocks were mapped by scattered " +
		"4 KiB writes whose data was not kept.", (*figures).memoryUse},
	{"Overhead of a leaf", "Slots of the store that do not hold data, in percent of those that do, after scattered first-touch 4 KiB writes, a checkpoint and a rest. The log " +
		"has a fixed size.", (*figures).overhead},
	{"Look-ups", "One block at random, in a layer with a million scattered blocks that are in memory.", (*figures).lookups},
}

// TestFigures measures the figures of the leaf. Without -figures, it only proves on little that they can be measured.
func TestFigures(t *testing.T) {
	if *figuresChild != "" {
		childFigure(t, *figuresChild)
		return
	}
	f := &figures{t: t, full: *figuresFile != "", memory: runDir(t), store: t.TempDir()}
	page := figuresHead()
	for _, s := range figureSections {
		if !strings.Contains(s.title, *figuresOnly) {
			continue
		}
		began := time.Now()
		rows := s.measure(f)
		page += fmt.Sprintf("\n## %s\n\n%s\n\n| | measured | goal |\n| --- | --- | --- |\n", s.title, s.how)
		for _, r := range rows {
			page += fmt.Sprintf("| %s | %s | %s |\n", r.what, r.value, r.goal)
			t.Logf("%s: %s %s (%s)", s.title, r.what, r.value, r.goal)
		}
		t.Logf("%s took %.1f s", s.title, time.Since(began).Seconds())
	}
	if f.full {
		if err := os.WriteFile(*figuresFile, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func figuresHead() string {
	return fmt.Sprintf(`# Figures of the leaf

Written by %s on %s, with Go %s on %d CPUs, in one process and without a kernel driver: absolute times depend on the
machine, counts and ratios do not. Times are medians of several runs.
`, "`make figures`", time.Now().UTC().Format("2006-01-02"), strings.TrimPrefix(runtime.Version(), "go"), runtime.NumCPU())
}

func median(v []float64) float64 {
	slices.Sort(v)
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

func sizeName(n int64) string {
	if n >= tib {
		return fmt.Sprintf("%d TiB", n/tib)
	}
	return fmt.Sprintf("%d GiB", n/gib)
}

// dir makes an empty directory below another.
func (f *figures) dir(parent string) string {
	d, err := os.MkdirTemp(parent, "figure-")
	if err != nil {
		f.t.Fatal(err)
	}
	return d
}

func (f *figures) amplification() (rows []figureRow) {
	for _, device := range f.sizes(10*gib, 100*gib, 10*tib) {
		for _, k := range []int{1, 32, 1024} {
			d := newTapped(f.t, f.dir(f.memory), "", device+device/8, device)
			d.work()
			// Several checkpoints: the log takes one block for each flush at least.
			n := f.scaled(min(64<<10*max(k, 1), 2400<<10))
			bytes, flushes := d.tap.written+d.disk.written.Load(), int64(d.tap.flushes)+d.disk.syncs.Load()
			generation := d.store.Info().Generation
			d.writeMany(n, k)
			bytes = d.tap.written + d.disk.written.Load() - bytes
			flushes = int64(d.tap.flushes) + d.disk.syncs.Load() - flushes
			guest := int64((n + k - 1) / k)
			goals := [2]string{}
			if k == 32 {
				goals = [2]string{"≤ 1.10", "≤ 1.05"}
			}
			checkpoints := d.store.Info().Generation - generation
			what := fmt.Sprintf("%s, k = %d", sizeName(device), k)
			rows = append(rows,
				figureRow{what + ": bytes written per byte of the guest", fmt.Sprintf("%.3f (%d writes, %d checkpoints)", float64(bytes)/float64(n<<blockShift), n, checkpoints), goals[0]},
				figureRow{what + ": flushes per flush of the guest", fmt.Sprintf("%.3f", float64(flushes)/float64(guest)), goals[1]})
			d.close()
		}
	}
	return rows
}

// fillLog writes until the store wants a checkpoint.
func (d *tapped) fillLog(k int) {
	for {
		select {
		case <-d.store.kick:
			return
		default:
			d.write(k)
		}
	}
}

func (f *figures) recovery() (rows []figureRow) {
	runs := f.runs(7)
	// Processor time tells how much of it the machine's other work took.
	reopen := func(d *tapped, k int) (ms, cpu float64, r Recovery) {
		if f.full {
			d.fillLog(k)
		} else {
			d.write(k)
		}
		d.crash()
		began, used := time.Now(), processorTime(f.t)
		d.open()
		return time.Since(began).Seconds() * 1e3, (processorTime(f.t) - used).Seconds() * 1e3, d.store.Info().Recovery
	}
	text := func(ms, cpu []float64, last Recovery) string {
		return fmt.Sprintf("%.0f ms, of processors %.0f ms (%d log blocks, %d records)", median(ms), median(cpu), last.LogBlocks, last.Records)
	}
	for _, k := range []int{32, 1024} {
		by := []float64{0, 0}
		for i, size := range f.sizes(10*gib, 10*tib) {
			var times, cpus []float64
			var last Recovery
			for range runs {
				// A fresh store each time: 10 GiB have not enough blocks to touch for many full logs.
				d := newTapped(f.t, f.dir(f.store), "", size+size/8, size)
				ms, cpu, r := reopen(d, k)
				times, cpus, last = append(times, ms), append(cpus, cpu), r
				d.close()
			}
			by[i] = median(times)
			rows = append(rows, figureRow{fmt.Sprintf("%s, %d writes per flush", sizeName(size), k), text(times, cpus, last), "≤ 500 ms"})
		}
		if f.full {
			rows = append(rows, figureRow{"10 TiB compared with 10 GiB", fmt.Sprintf("%.2f", by[1]/by[0]), "≤ 1.1"})
		}
	}
	large := f.sizes(10*gib, 10*tib)
	size := large[len(large)-1]
	d := newTapped(f.t, f.dir(f.store), "", size+size/8, size)
	d.map10M(f)
	var times, cpus []float64
	var last Recovery
	for range runs {
		ms, cpu, r := reopen(d, 32)
		times, cpus, last = append(times, ms), append(cpus, cpu), r
	}
	rows = append(rows, figureRow{fmt.Sprintf("%s, %d scattered blocks mapped, 32 writes per flush", sizeName(size), f.scaled(10_000_000)),
		text(times, cpus, last), "≤ 500 ms"})
	d.close()
	return rows
}

// processorTime is what the process has used.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// map10M maps ten million blocks, as the background work would have it.
func (d *tapped) map10M(f *figures) {
	n := f.scaled(10_000_000)
	for done := 0; done < n; done += 1024 {
		d.write(min(1024, n-done))
		select {
		case <-d.store.kick:
			d.store.maintain()
		default:
		}
	}
	if err := d.store.Checkpoint(); err != nil {
		d.tb.Fatal(err)
	}
}

// rest lets the store do what it does when nothing else is going on.
func (d *tapped) rest() LayerInfo {
	info := d.layer.Info()
	for before := int64(-1); before != info.MapBytes; info = d.layer.Info() {
		before = info.MapBytes
		d.store.maintain()
		d.store.maintain()
	}
	return info
}

func (f *figures) freeze() (rows []figureRow) {
	runs := f.runs(9)
	for _, megabytes := range f.sizes(10, 1000, 10_000) {
		d := newTapped(f.t, f.dir(f.store), "", 64*gib, 32*gib)
		d.tap.sync = true
		d.work()
		d.writeMany(f.scaled(int(megabytes)*1e6>>blockShift), 4096)
		var pauses, own []float64
		for i := range runs {
			d.write(100) // flushed, and some that are not
			if err := d.tap.run(8, func(i int) ublk.Descriptor {
				return ublk.Descriptor{Op: ublk.OpWrite, Off: int64(i) << blockShift, Len: blockSize}
			}); err != nil {
				f.t.Fatal(err)
			}
			waited := d.disk.waited.Load()
			began := time.Now()
			fr, err := d.layer.PrepareFreeze("sealed" + strconv.Itoa(i))
			if err == nil {
				_, err = fr.Seal()
			}
			pause := time.Since(began)
			if err == nil {
				err = d.layer.Merge()
			}
			if err != nil {
				f.t.Fatal(err)
			}
			pauses = append(pauses, pause.Seconds()*1e3)
			own = append(own, (pause-time.Duration(d.disk.waited.Load()-waited)).Seconds()*1e3)
		}
		slices.Sort(pauses)
		rows = append(rows, figureRow{fmt.Sprintf("leaf of %d MB", megabytes),
			fmt.Sprintf("%.2f ms, longest of %d %.2f ms; without the flush %.2f ms", median(pauses), runs, pauses[len(pauses)-1], median(own)), "≤ 50 ms and a flush"})
		d.close()
	}
	return rows
}

func (f *figures) depth() (rows []figureRow) {
	blocks, perRound := f.scaled(32<<10), f.scaled(200_000)
	blocks = max(blocks, 65) // one for each layer
	rates := map[int][]float64{}
	depths := []int{1, 16, 64}
	for round := range f.runs(7) {
		for _, depth := range depths {
			rates[depth] = append(rates[depth], f.readRate(depth, blocks, perRound, uint64(round)))
		}
	}
	one := median(rates[1])
	for _, depth := range depths {
		r := median(rates[depth])
		rows = append(rows, figureRow{fmt.Sprintf("%d layers", depth), fmt.Sprintf("%.0f reads/s, %.2f of one layer's", r, r/one), ""})
	}
	return rows
}

// readRate reads blocks that were written into the layers of a chain in turn.
func (f *figures) readRate(depth, blocks, reads int, seed uint64) float64 {
	const size = 1 << 30
	t, dir := f.t, f.dir(f.memory)
	path := filepath.Join(dir, "leaf")
	if _, err := Format(path, FormatOptions{SizeBytes: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	s, err := OpenStore(path, StoreOptions{RunDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.OpenLayer("web1", LayerOptions{Create: true, Pin: tapBase.Pin(), SizeBytes: size})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := NewDevice(l, tapBase, DeviceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	at := func(i int) int64 { return int64(uint64(i)*2654435761%(size>>blockShift)) << blockShift }
	var rate float64
	onFake(t, dev, ublktest.FakeConfig{SizeBytes: size, Depth: 32, Unchecked: true, KeepBuffers: true}, func(fake *ublktest.Fake) {
		p := make([]byte, blockSize)
		for i := range blocks {
			if _, err := fake.WriteAt(p, at(i)); err != nil {
				t.Fatal(err)
			}
			if n := (i + 1) * (depth + 1) / blocks; n > i*(depth+1)/blocks && n <= depth {
				fr, err := l.PrepareFreeze("s" + strconv.Itoa(n))
				if err == nil {
					_, err = fr.Seal()
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		mustFlatten(t, s)
		rng := rand.New(rand.NewPCG(seed, 1))
		began := time.Now()
		manyRequests(t, fake, reads, 32, func(int) ublk.Descriptor {
			return ublk.Descriptor{Op: ublk.OpRead, Off: at(rng.IntN(blocks)), Len: blockSize}
		})
		rate = float64(reads) / time.Since(began).Seconds()
	})
	l.Release()
	if err := errors.Join(s.Close(), os.RemoveAll(dir)); err != nil {
		t.Fatal(err)
	}
	return rate
}

// onFake has a reactor serve the device while f runs.
func onFake(t *testing.T, dev *Device, c ublktest.FakeConfig, f func(*ublktest.Fake)) {
	t.Helper()
	rs, err := ublk.NewReactors(ublk.ReactorConfig{})
	if err != nil {
		t.Fatal(err)
	}
	fake, err := ublktest.NewFake(c)
	if err != nil {
		t.Fatal(err)
	}
	at, err := fake.Start(rs, dev)
	if err != nil {
		t.Fatal(err)
	}
	f(fake)
	fake.Stop()
	<-at.Ended()
	for _, err := range []error{at.Err(), fake.Err(), fake.Close(), rs.Close()} {
		if err != nil {
			t.Error(err)
		}
	}
}

// manyRequests keeps depth requests in flight until n have ended.
func manyRequests(t *testing.T, fake *ublktest.Fake, n, depth int, next func(i int) ublk.Descriptor) {
	t.Helper()
	done := make(chan struct{})
	started, ended := 0, 0
	var submit func()
	finish := func(errno syscall.Errno, _ []byte) {
		if errno != 0 {
			t.Errorf("request: %v", errno)
		}
		if ended++; ended == n {
			close(done)
			return
		}
		submit()
	}
	submit = func() {
		if started < n {
			started++
			fake.Submit(next(started-1), nil, finish)
		}
	}
	// All from the reactor's thread, on which finish runs too.
	fake.Submit(ublk.Descriptor{Op: ublk.OpRead, Len: blockSize}, nil, func(syscall.Errno, []byte) {
		for range min(depth, n) {
			submit()
		}
	})
	<-done
}

// childFigures are measured in processes of their own.
var childFigures = map[string]func(f *figures) []figureRow{
	"mapped": (*figures).memoryMapped,
	"idle":   (*figures).memoryIdle,
}

func childFigure(t *testing.T, what string) {
	full := strings.HasSuffix(what, "-full")
	f := &figures{t: t, full: full, memory: runDir(t), store: t.TempDir()}
	rows := childFigures[strings.TrimSuffix(what, "-full")](f)
	text := make([][]string, len(rows))
	for i, r := range rows {
		text[i] = []string{r.what, r.value, r.goal}
	}
	b, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("figures: %s\n", b)
}

func (f *figures) memoryUse() (rows []figureRow) {
	for _, what := range []string{"mapped", "idle"} {
		if f.full {
			what += "-full"
		}
		out, err := exec.Command(os.Args[0], "-test.run=^TestFigures$", "-figures-child="+what).CombinedOutput()
		if err != nil {
			f.t.Fatalf("%s: %v\n%s", what, err, out)
		}
		_, line, ok := strings.Cut(string(out), "figures: ")
		line, _, _ = strings.Cut(line, "\n")
		var text [][]string
		if err := json.Unmarshal([]byte(line), &text); !ok || err != nil {
			f.t.Fatalf("%s: %v\n%s", what, err, out)
		}
		for _, r := range text {
			rows = append(rows, figureRow{r[0], r[1], r[2]})
		}
	}
	return rows
}

// resident is what the process has of anonymous memory and of files on tmpfs, in bytes.
func resident(t *testing.T) float64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib * 1024
}

func (f *figures) memoryMapped() []figureRow {
	before := resident(f.t)
	large := f.sizes(10*gib, 10*tib)
	size := large[len(large)-1]
	d := newTapped(f.t, f.dir(f.memory), f.dir(f.memory), size+size/8, size)
	opened := resident(f.t)
	d.map10M(f)
	mapped := resident(f.t)
	// Look-ups all over, hits and misses.
	rng := rand.New(rand.NewPCG(1, 1))
	err := d.tap.run(f.scaled(1_000_000), func(i int) ublk.Descriptor {
		off := rng.Int64N(d.size >> blockShift)
		if i%2 == 0 {
			off = d.scattered(rng.IntN(d.next))
		}
		return ublk.Descriptor{Op: ublk.OpRead, Off: off << blockShift, Len: blockSize}
	})
	if err != nil {
		f.t.Fatal(err)
	}
	read := resident(f.t)
	info := d.rest()
	d.close()
	mib := func(b float64) string { return fmt.Sprintf("%.0f MiB", b/(1<<20)) }
	return []figureRow{
		{"process before any store is open", mib(before), ""},
		{"with an empty store for a device of " + sizeName(size), mib(opened), ""},
		{fmt.Sprintf("%d scattered blocks of it written", f.scaled(10_000_000)), mib(mapped), "≤ 256 MiB"},
		{"after random reads all over the device", mib(read), "≤ 256 MiB"},
		{"sector map on the store, per scattered block", fmt.Sprintf("%.1f bytes", float64(info.MapBytes)/float64(info.DataBytes>>blockShift)), "≤ 16"},
	}
}

func (f *figures) memoryIdle() []figureRow {
	devices := f.runs(50)
	dir := f.dir(f.memory)
	s, err := func() (*Store, error) {
		path := filepath.Join(dir, "leaf")
		if _, err := Format(path, FormatOptions{SizeBytes: 20 * gib}); err != nil {
			return nil, err
		}
		return OpenStore(path, StoreOptions{RunDir: dir})
	}()
	if err != nil {
		f.t.Fatal(err)
	}
	rs, err := ublk.NewReactors(ublk.ReactorConfig{})
	if err != nil {
		f.t.Fatal(err)
	}
	var before float64
	var stop []func()
	for i := range devices + 1 {
		l, err := s.OpenLayer("web"+strconv.Itoa(i), LayerOptions{Create: true, Pin: tapBase.Pin(), SizeBytes: 10 * gib})
		if err != nil {
			f.t.Fatal(err)
		}
		dev, err := NewDevice(l, tapBase, DeviceOptions{})
		if err != nil {
			f.t.Fatal(err)
		}
		fake, err := ublktest.NewFake(ublktest.FakeConfig{SizeBytes: 10 * gib, Queues: runtime.NumCPU()})
		if err != nil {
			f.t.Fatal(err)
		}
		at, err := fake.Start(rs, dev)
		if err != nil {
			f.t.Fatal(err)
		}
		stop = append(stop, func() {
			fake.Stop()
			<-at.Ended()
			l.Release()
			if err := errors.Join(at.Err(), fake.Err(), fake.Close()); err != nil {
				f.t.Error(err)
			}
		})
		if i == 0 { // the first brings with it what all share
			before = resident(f.t)
		}
	}
	after := resident(f.t)
	for _, f := range stop {
		f()
	}
	if err := errors.Join(rs.Close(), s.Close()); err != nil {
		f.t.Error(err)
	}
	return []figureRow{{fmt.Sprintf("idle device of 10 GiB, each of %d, %d queues", devices, runtime.NumCPU()),
		fmt.Sprintf("%.2f MiB", (after-before)/float64(devices)/(1<<20)), "≤ 2 MiB"}}
}

func (f *figures) overhead() (rows []figureRow) {
	for _, device := range f.sizes(10*gib, 10*tib) {
		d := newTapped(f.t, f.dir(f.memory), "", device+device/8, device)
		empty := d.store.Info()
		d.writeMany(f.scaled(1e9>>blockShift), 1024)
		if err := d.store.Checkpoint(); err != nil {
			f.t.Fatal(err)
		}
		data := d.rest().DataBytes
		now := d.store.Info()
		meta := empty.FreeBytes - now.FreeBytes - data
		rows = append(rows, figureRow{fmt.Sprintf("%s device, %d MB written", sizeName(device), data/1e6),
			fmt.Sprintf("%.2f %%, and %d MiB of log", float64(meta)/float64(data)*100, 2*now.LogBytes>>20), "< 2 %"})
		d.close()
	}
	return rows
}

func (f *figures) lookups() (rows []figureRow) {
	d := newTapped(f.t, f.dir(f.memory), "", 128*gib, 100*gib)
	n := f.scaled(1_000_000)
	d.writeMany(n, 1024)
	rng := rand.New(rand.NewPCG(1, 2))
	for _, hit := range []bool{true, false} {
		blocks := make([]uint64, 4096)
		for i := range blocks {
			blocks[i] = uint64(d.scattered(rng.IntN(n)))
			if !hit {
				blocks[i] = uint64(d.scattered(n + rng.IntN(n)))
			}
		}
		const times = 1 << 20
		var m [1]mapping
		var sum [1]uint32
		began := time.Now()
		for i := range f.scaled(times) {
			if err := d.layer.resolve(blocks[i%len(blocks)], m[:], sum[:]); err != nil {
				f.t.Fatal(err)
			}
			if m[0].isData() != hit {
				f.t.Fatalf("block %d: %v", blocks[i%len(blocks)], m[0])
			}
		}
		ns := float64(time.Since(began).Nanoseconds()) / float64(f.scaled(times))
		what := "of a block that the layer does not hold"
		if hit {
			what = "of a block that the layer holds"
		}
		rows = append(rows, figureRow{what, fmt.Sprintf("%.0f ns", ns), ""})
	}
	d.close()
	return rows
}
