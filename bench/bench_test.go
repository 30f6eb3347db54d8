package bench

import (
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	tests := []struct {
		values []float64
		want   Spread
	}{
		{[]float64{3}, Spread{3, 3, 3, 1}},
		{[]float64{9, 1, 5}, Spread{5, 1, 9, 3}},
		{[]float64{4, 1, 2, 3}, Spread{2.5, 1, 4, 4}},
	}
	for _, test := range tests {
		if got := NewSpread(test.values); got != test.want {
			t.Errorf("NewSpread(%v) = %v, want %v", test.values, got, test.want)
		}
	}
	if s := NewSpread(nil); !math.IsNaN(s.Median) || s.N != 0 {
		t.Errorf("NewSpread(nil) = %v", s)
	}
}

func TestBootstrap(t *testing.T) {
	values := []float64{0.61, 0.63, 0.65, 0.62, 0.64, 0.66, 0.60, 0.67, 0.63, 0.64, 0.62}
	got := Bootstrap(values)
	if got.Median != 0.63 || got.N != 11 {
		t.Errorf("%+v: want median 0.63 of 11", got)
	}
	if got.Low < 0.60 || got.Low > got.Median || got.High < got.Median || got.High > 0.67 {
		t.Errorf("%+v: the interval is outside the values or off the median", got)
	}
	if again := Bootstrap(values); again != got {
		t.Errorf("same values, other interval: %+v, %+v", got, again)
	}
	if one := Bootstrap([]float64{2}); one.Low != 2 || one.High != 2 {
		t.Errorf("one value: %+v", one)
	}
}

// The interval of a median must hold the true median about as often as it says.
func TestBootstrapCoverage(t *testing.T) {
	const trials, n = 200, 12
	hits := 0
	state := uint64(1)
	next := func() float64 { // a fixed linear congruential sequence in [0, 1)
		state = state*6364136223846793005 + 1442695040888963407
		return float64(state>>11) / (1 << 53)
	}
	for range trials {
		values := make([]float64, n)
		for i := range values {
			values[i] = next()
		}
		if i := Bootstrap(values); i.Low <= 0.5 && 0.5 <= i.High {
			hits++
		}
	}
	if hits < trials*88/100 {
		t.Errorf("true median within the interval in %d of %d trials", hits, trials)
	}
}

func TestVerdict(t *testing.T) {
	tests := []struct {
		interval Interval
		want     string
	}{
		{Interval{0.7, 0.61, 0.8, 10}, "met"},
		{Interval{0.7, 0.61, 0.8, 9}, "unresolved"},
		{Interval{0.7, 0.59, 0.8, 10}, "unresolved"},
		{Interval{0.5, 0.4, 0.59, 10}, "missed"},
		{Interval{0.7, 0.6, 0.8, 10}, "unresolved"}, // above the goal, not at it
	}
	for _, test := range tests {
		if got := test.interval.Verdict(0.6); got != test.want {
			t.Errorf("%+v: %s, want %s", test.interval, got, test.want)
		}
	}
}

func TestParseFio(t *testing.T) {
	output, err := os.ReadFile("testdata/fio-3.33-read.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"", "fio: warning about something\n"} {
		f, err := ParseFio(append([]byte(prefix), output...))
		if err != nil {
			t.Fatal(err)
		}
		if f.IOs != 4096 || f.IOPS <= 0 || f.MeanUS <= 0 || f.P99US < f.MeanUS/10 {
			t.Errorf("figure %+v", f)
		}
		if ratio := f.BytesPerSec / f.IOPS; math.Abs(ratio-4096) > 41 {
			t.Errorf("%.0f bytes per I/O, want 4096", ratio)
		}
	}
}

func TestParseFioRejects(t *testing.T) {
	tests := []struct{ name, output, want string }{
		{"silence", "", "no JSON"},
		{"words", "fio: cannot open /dev/x", "cannot open /dev/x"},
		{"cut short", `{"jobs": [`, "unexpected EOF"},
		{"no job", `{"jobs": []}`, "0 jobs"},
		{"failed job", `fio: io_u error {"jobs":[{"jobname":"a","error":5,"read":{"total_ios":1,"iops":1}}]}`, "error 5: fio: io_u error"},
		{"idle job", `{"jobs":[{"jobname":"a"}]}`, "no I/O"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := ParseFio([]byte(test.output))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q in it", err, test.want)
			}
		})
	}
}

func FuzzParseFio(f *testing.F) {
	f.Add([]byte(`{"jobs":[{"jobname":"a","read":{"total_ios":1,"iops":1}}]}`))
	f.Fuzz(func(t *testing.T, output []byte) {
		if figure, err := ParseFio(output); err == nil && figure.IOs == 0 {
			t.Error("a job without I/O passed")
		}
	})
}

func TestEventRoundTrip(t *testing.T) {
	sent := Event{Kind: KindEnd, Round: 3, Subject: FirstTouch, Job: RandWrite32.Name, Figure: &Figure{IOPS: 12.5, IOs: 25}}
	var line strings.Builder
	if err := sent.Emit(&line); err != nil {
		t.Fatal(err)
	}
	// A console may put its own words in front.
	got, ok, err := ParseEvent("[  1.2] " + strings.TrimSpace(line.String()))
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if *got.Figure != *sent.Figure || got.Subject != sent.Subject || got.Round != 3 {
		t.Errorf("got %+v, sent %+v", got, sent)
	}
	if _, ok, err := ParseEvent("random: crng init done"); ok || err != nil {
		t.Errorf("a kernel message: ok %v, error %v", ok, err)
	}
	if _, _, err := ParseEvent(linePrefix + "{"); err == nil {
		t.Error("a broken event passed")
	}
}

func everything(t *testing.T) Selection {
	t.Helper()
	all, err := Select("", "")
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestRoundsAlternate(t *testing.T) {
	odd, even := everything(t).Round(1), everything(t).Round(2)
	if len(odd) != len(Subjects()) {
		t.Errorf("%d subjects of %d", len(odd), len(Subjects()))
	}
	slices.Reverse(even)
	for i := range odd {
		if odd[i].Name != even[i].Name {
			t.Fatalf("subject %d: %s, and reversed %s", i, odd[i].Name, even[i].Name)
		}
	}
}

// A part of the plan brings what its ratios refer to, and nothing else.
func TestSelect(t *testing.T) {
	sel, err := Select("^union, (cached|first)", "qd32$")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range sel.Plan() {
		for _, j := range s.Jobs {
			got = append(got, string(s.Name)+": "+j.Name)
		}
	}
	want := []string{
		"loop, direct I/O: 4k-randread-qd32", "loop, direct I/O: 4k-randwrite-qd32", "union, cached read: 4k-randread-qd32", "union, first-touch write: 4k-randwrite-qd32",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for _, bad := range [][2]string{{"(", ""}, {"", "("}, {"nobody", ""}, {"^null$", "fsync"}} {
		if _, err := Select(bad[0], bad[1]); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// Every goal must be about something that is measured, and so must what it is compared with; every job's base does the job.
func TestGoalsAreMeasured(t *testing.T) {
	does := func(name SubjectName, job Job) bool {
		return slices.ContainsFunc(Subjects(), func(s Subject) bool { return s.Name == name && slices.Contains(s.Jobs, job) })
	}
	for _, goal := range Goals() {
		if !does(goal.Subject, goal.Job) || goal.Base != "" && !does(goal.Base, goal.Job) {
			t.Errorf("%s, %s: %s is not measured", goal.Subject, goal.Job, goal)
		}
	}
	for _, job := range Jobs() {
		if !does(job.Base, job) {
			t.Errorf("%s is no base of %s", job.Base, job)
		}
	}
}

func TestJobArgs(t *testing.T) {
	args := Fsync32.Args("/dev/x", 1500*time.Millisecond, true, "out")
	for _, want := range []string{"--filename=/dev/x", "--rw=randwrite", "--bs=4096", "--iodepth=32", "--fsync=32", "--runtime=1.5s", "--output=out"} {
		if !slices.Contains(args, want) {
			t.Errorf("no %s in %q", want, args)
		}
	}
	if slices.Contains(args, "--time_based=1") || !slices.Contains(RandRead1.Args("x", time.Second, false, "out"), "--time_based=1") {
		t.Error("jobs on fresh devices, and only those, end with the device")
	}
}

// fakeRun has n rounds in which subjects run at fixed ratios to the baseline; in voidRound the host
// takes a core away during the baseline's job.
func fakeRun(t *testing.T, n, voidRound int) *Run {
	t.Helper()
	now := time.Unix(0, 0)
	waits := []time.Duration{0, 0}
	run := NewRun(func() []time.Duration { return slices.Clone(waits) })
	add := func(e Event) {
		if err := run.Add(e, now); err != nil {
			t.Fatal(err)
		}
	}
	add(Event{Kind: KindInfo, Key: "guest kernel", Value: "6.12.0"})
	ratios := map[SubjectName]float64{Baseline: 1, Null: 1.1, LeafRead: 0.5}
	for round := 1; round <= n; round++ {
		for _, s := range []SubjectName{Baseline, Null, LeafRead} {
			add(Event{Kind: KindStart, Round: round, Subject: s, Job: RandRead32.Name})
			now = now.Add(2 * time.Second)
			if round == voidRound && s == Baseline {
				waits[1] += time.Second
			}
			iops := ratios[s] * (1000 + float64(round))
			f := Figure{IOPS: iops, IOs: 10, P50US: 50, P99US: 90, CPUPerIOUS: 11 / ratios[s]}
			if s == Null {
				allocs := 0.01
				if round == 7 && n > 9 {
					allocs = 1
				}
				f.AllocsPerIO = &allocs
			}
			add(Event{Kind: KindEnd, Round: round, Subject: s, Job: RandRead32.Name, Figure: &f})
		}
	}
	calls := 0.2
	add(Event{Kind: KindCount, Round: 1, Subject: Null, Job: RandRead32.Name, Figure: &Figure{IOs: 10, SyscallsPerIO: &calls}})
	add(Event{Kind: KindDone})
	return run
}

func TestRunPairsWithinRounds(t *testing.T) {
	run := fakeRun(t, 12, 4)
	if _, void := run.Valid(); !run.Done || len(void) != 1 {
		t.Errorf("done %v, %d void; want one void sample", run.Done, len(void))
	}
	ratios := run.Ratios(Null, RandRead32, Baseline, Speed)
	if len(ratios) != 11 {
		t.Fatalf("%d ratios, want 11: the round with the void baseline has none", len(ratios))
	}
	for _, r := range ratios {
		if math.Abs(r-1.1) > 1e-9 {
			t.Errorf("ratio %v was not taken within its round", r)
		}
	}
	if n := len(run.Values(Null, RandRead32, Speed)); n != 12 {
		t.Errorf("%d values of the subject itself, want 12", n)
	}
}

// A job whose vCPUs always wait a little, because it sleeps and wakes, is not void for that.
func TestVoidIsRelativeToTheCalmestRound(t *testing.T) {
	run := NewRun(nil)
	for i, wait := range []float64{0.08, 0.09, 0.07, 0.125, 0.10} {
		run.Samples = append(run.Samples, Sample{Round: i + 1, Subject: Null, Job: RandRead1.Name, Wait: wait})
	}
	run.Samples = append(run.Samples, Sample{Round: 1, Subject: Memory, Job: RandRead1.Name, Wait: 0.3})
	valid, void := run.Valid()
	if len(valid) != 4 || len(void) != 2 {
		t.Errorf("%d valid, %d void; want the fourth round and the one above the limit void", len(valid), len(void))
	}
}

func TestRunRejectsUnknownEvents(t *testing.T) {
	run := NewRun(nil)
	for _, e := range []Event{{Kind: "other"}, {Kind: KindEnd}, {Kind: KindCount}} {
		if err := run.Add(e, time.Now()); err == nil {
			t.Errorf("event %+v passed", e)
		}
	}
}

// Goals are judged from both sides, and those without a base by the worst sample.
func TestJudge(t *testing.T) {
	run := fakeRun(t, 12, 0)
	tests := []struct {
		goal     Goal
		measured string
		verdict  string
	}{
		{Goal{Subject: Null, Job: RandRead32, Metric: Speed, Base: Baseline, Limit: 1.05}, "1.10 [1.10, 1.10]", Met},
		{Goal{Subject: Null, Job: RandRead32, Metric: Speed, Base: Baseline, Limit: 1.2}, "1.10 [1.10, 1.10]", Missed},
		{Goal{Subject: LeafRead, Job: RandRead32, Metric: CPU, Base: Null, Limit: 2.5, AtMost: true}, "2.20 [2.20, 2.20]", Met},
		{Goal{Subject: LeafRead, Job: RandRead32, Metric: CPU, Base: Null, Limit: 2, AtMost: true}, "2.20 [2.20, 2.20]", Missed},
		{Goal{Subject: LeafRead, Job: RandRead32, Metric: Time, Base: Baseline, Limit: 2.5, AtMost: true}, "2.00 [2.00, 2.00]", Met},
		{Goal{Subject: Memory, Job: RandRead32, Metric: Speed, Base: Baseline, Limit: 1}, "–", Unresolved},
		{Goal{Subject: Null, Job: RandRead32, Metric: Syscalls, Limit: 0.25, AtMost: true}, "0.20, at most 0.20", Met},
		{Goal{Subject: LeafRead, Job: RandRead32, Metric: Syscalls, Limit: 0.25, AtMost: true}, "–", Unresolved},
		{Goal{Subject: Null, Job: RandRead32, Metric: Allocs, Limit: noAllocation, AtMost: true}, "0.01, at most 1.00", Missed},
	}
	for _, test := range tests {
		if measured, _, verdict := test.goal.Judge(run); measured != test.measured || verdict != test.verdict {
			t.Errorf("%s, %s: %s, %s; want %s, %s", test.goal.Subject, test.goal, measured, verdict, test.measured, test.verdict)
		}
	}
}

// Runs keep their rounds apart when they are put together, and come back from JSON as they were.
func TestMerge(t *testing.T) {
	data, err := json.Marshal(fakeRun(t, 5, 2))
	if err != nil {
		t.Fatal(err)
	}
	var first Run
	if err := json.Unmarshal(data, &first); err != nil {
		t.Fatal(err)
	}
	all, err := Merge([]*Run{&first, fakeRun(t, 4, 0)})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(all.Ratios(Null, RandRead32, Baseline, Speed)); n != 8 || all.Info["rounds"] != "9" || len(all.Counts) != 2 || !all.Done {
		t.Errorf("%d ratios of 8, %v, %d counts", n, all.Info, len(all.Counts))
	}
	other := fakeRun(t, 1, 0)
	other.Info["guest kernel"] = "6.1"
	if _, err := Merge([]*Run{&first, other}); err == nil || !strings.Contains(err.Error(), "guest kernel") {
		t.Errorf("runs of different kernels: %v", err)
	}
}

type chart struct{ strings.Builder }

func (*chart) Close() error { return nil }

func TestCharts(t *testing.T) {
	charts := map[string]*chart{}
	report := Report{Run: fakeRun(t, 12, 4), Commit: "abc123", Date: "2026-11-21"}
	err := report.WriteCharts(func(name string) (io.WriteCloser, error) {
		charts[name] = &chart{}
		return charts[name], nil
	})
	if err != nil || len(charts) != 1 {
		t.Fatalf("%d charts, %v", len(charts), err)
	}
	text := charts[RandRead32.Name+".svg"].String()
	for _, want := range []string{RandRead32.String(), "abc123", string(Null), "1.10", string(LeafRead), "0.50"} {
		if !strings.Contains(text, want) {
			t.Errorf("the chart lacks %q", want)
		}
	}
	err = report.WriteCharts(func(string) (io.WriteCloser, error) { return nil, io.ErrShortWrite })
	if !errors.Is(err, io.ErrShortWrite) {
		t.Error(err)
	}
}

func TestReport(t *testing.T) {
	report := Report{Run: fakeRun(t, 12, 4), Title: "Benchmark", Commit: "abc123", Date: "2026-11-21", Seconds: 2, Charts: "2026-11-21/"}
	var out strings.Builder
	if err := report.Write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| guest kernel | 6.12.0 |", "| commit | abc123 |", "36, of which 1 void",
		"| **null** | 4 KiB random read, depth 32 | requests per second ≥ 1.05x of loop, direct I/O | 1.10 [1.10, 1.10] | 11 | met |",
		"| union, leaf read, not verified | 4 KiB random read, depth 32 | requests per second ≥ 0.8x of loop, direct I/O | 0.50 [0.50, 0.50] | 11 | missed |",
		"| **union, cached read** | 4 KiB random read, depth 32 | requests per second ≥ 1x of loop, direct I/O | – | 0 | unresolved |",
		"| null | 1107 | 1101 | 1113 | 1.10 [1.10, 1.10] | 12 | 50 | 90 | 10.0 | 0.20 | 0.01 |",
		"![4 KiB random read, depth 32](2026-11-21/4k-randread-qd32.svg)",
		"## Void samples", "| loop, direct I/O | 4 KiB random read, depth 32 | 4 (50 %) |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("report lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
}

const goBenchOutput = `goos: linux
pkg: coppice/union
BenchmarkLeafRead4K/verify=off-2   1000   800 ns/op   5041.00 MB/s   700 cpu-ns/op   0 B/op   0 allocs/op
BenchmarkLeafRead4K/verify=on-2    1000   1000 ns/op  900 cpu-ns/op   0 B/op   0 allocs/op
BenchmarkLookup100K/over=1GiB/map-2  1000  10 ns/op  20.5 B/extent
BenchmarkLookup100K/over=1GiB/sort.Search-2  1000  30 ns/op
PASS
`

func TestNative(t *testing.T) {
	var n Native
	for range 10 {
		lines, err := ParseGoBench(strings.NewReader(goBenchOutput))
		if err != nil {
			t.Fatal(err)
		}
		n.Rounds = append(n.Rounds, lines)
	}
	var out strings.Builder
	if err := n.Write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| verification of a 4 KiB leaf read, CPU, ns | ≤ 300 | 200.00 [200.00, 200.00] | 10 | met |",
		"| the same over 1 GiB | ≥ 2.5 | 3.00 [3.00, 3.00] | 10 | met |",
		"| the same over 1 GiB | ≤ 16 | 20.50 [20.50, 20.50] | 10 | missed |",
		"| allocations of coppice/union.LeafRead4K/verify=on | ≤ 0 | 0.00 [0.00, 0.00] | 10 | met |",
		"| first-touch 4 KiB write, CPU above a plain io_uring write, ns | ≤ 1500 | – | 0 | unresolved |",
		"| union.LeafRead4K/verify=off | 800 | 800 | 800 | 700 | 0 | 5041 MB/s |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
	if _, err := ParseGoBench(strings.NewReader("BenchmarkX-2 10 many ns/op\n")); err == nil {
		t.Error("a line without a number passed")
	}
}
