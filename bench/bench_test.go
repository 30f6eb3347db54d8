package bench

import (
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

func TestRoundsAlternate(t *testing.T) {
	odd, even := Round(1), Round(2)
	slices.Reverse(even)
	for i := range odd {
		if odd[i].Name != even[i].Name {
			t.Fatalf("subject %d: %s, and reversed %s", i, odd[i].Name, even[i].Name)
		}
	}
}

// Every goal must be about something that is measured.
func TestGoalsAreMeasured(t *testing.T) {
	for _, goal := range Goals() {
		found := false
		for _, s := range Subjects() {
			found = found || s.Name == goal.Subject && slices.Contains(s.Jobs, goal.Job)
		}
		if !found {
			t.Errorf("no subject does %s on %s", goal.Job, goal.Subject)
		}
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
			add(Event{Kind: KindEnd, Round: round, Subject: s, Job: RandRead32.Name, Figure: &Figure{IOPS: iops, IOs: 10}})
		}
	}
	add(Event{Kind: KindDone})
	return run
}

func TestRunPairsWithinRounds(t *testing.T) {
	run := fakeRun(t, 12, 4)
	if _, void := run.Valid(); !run.Done || void != 1 {
		t.Errorf("done %v, %d void; want one void sample", run.Done, void)
	}
	ratios := run.Ratios(Null, RandRead32)
	if len(ratios) != 11 {
		t.Fatalf("%d ratios, want 11: the round with the void baseline has none", len(ratios))
	}
	for _, r := range ratios {
		if math.Abs(r-1.1) > 1e-9 {
			t.Errorf("ratio %v was not taken within its round", r)
		}
	}
	if n := len(run.Values(Null, RandRead32, func(f Figure) float64 { return f.IOPS })); n != 12 {
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
	if len(valid) != 4 || void != 2 {
		t.Errorf("%d valid, %d void; want the fourth round and the one above the limit void", len(valid), void)
	}
}

func TestRunRejectsUnknownEvents(t *testing.T) {
	run := NewRun(nil)
	for _, e := range []Event{{Kind: "other"}, {Kind: KindEnd}} {
		if err := run.Add(e, time.Now()); err == nil {
			t.Errorf("event %+v passed", e)
		}
	}
}

func TestReport(t *testing.T) {
	native, err := ParseGoBench(strings.NewReader("goos: linux\npkg: coppice/union\n" +
		"BenchmarkLeafRead-2   1000   812.5 ns/op   5041.00 MB/s   0 B/op   0 allocs/op\nPASS\n"))
	if err != nil {
		t.Fatal(err)
	}
	report := Report{Run: fakeRun(t, 12, 4), Title: "Benchmark", Commit: "abc123", Date: "2026-11-21", Seconds: 2, Native: native}
	var out strings.Builder
	if err := report.Write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| guest kernel | 6.12.0 |", "| commit | abc123 |", "36, of which 1 void",
		"| null | 4 KiB random read, depth 32 | ≥ 0.90 | 1.10 [1.10, 1.10] | 11 | met |",
		"| union, leaf read, not verified | 4 KiB random read, depth 32 | ≥ 0.60 | 0.50 [0.50, 0.50] | 11 | missed |",
		"| memory | 4 KiB random read, depth 32 | ≥ 0.80 | – | 0 | unresolved |",
		"| coppice/union | LeafRead | 812.5 | 0 | 5041.00 MB/s |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("report lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(out.String())
	}
}
