package bench

import "fmt"

// A Metric is one number of a figure.
type Metric string

// The metrics.
const (
	Speed    Metric = "requests per second"
	Time     Metric = "time"
	CPU      Metric = "guest CPU per request"
	Syscalls Metric = "system calls per request"
	Allocs   Metric = "allocations per request"
	P50      Metric = "median latency"
	P99      Metric = "99th percentile of latency"
)

// Of returns the number, and whether the figure has it.
func (m Metric) Of(f Figure) (v float64, ok bool) {
	switch m {
	case Speed:
		return f.IOPS, f.IOPS > 0
	case Time:
		return 1 / f.IOPS, f.IOPS > 0
	case CPU:
		return f.CPUPerIOUS, f.CPUPerIOUS > 0
	case Syscalls:
		return value(f.SyscallsPerIO)
	case Allocs:
		return value(f.AllocsPerIO)
	case P50:
		return f.P50US, f.P50US > 0
	case P99:
		return f.P99US, f.P99US > 0
	}
	return 0, false
}

func value(p *float64) (float64, bool) {
	if p == nil {
		return 0, false
	}
	return *p, true
}

// A Goal is what a subject must reach in a job: a ratio to another subject in the same round, or, without one, a bound for every sample.
type Goal struct {
	Subject SubjectName
	Job     Job
	Metric  Metric
	Base    SubjectName // "": none
	Limit   float64
	AtMost  bool // the limit is one from above
	// Mandatory marks the goals that the project does not go without.
	Mandatory bool
}

// noAllocation is what counts as none: a request that allocates does so each time, and what is less than this comes from what the process does beside.
const noAllocation = 0.05

// Goals lists what the project asks of itself.
func Goals() []Goal {
	atLeast := func(s SubjectName, j Job, base SubjectName, limit float64, mandatory bool) Goal {
		return Goal{Subject: s, Job: j, Metric: Speed, Base: base, Limit: limit, Mandatory: mandatory}
	}
	goals := []Goal{
		atLeast(Null, RandRead32, Baseline, 1.05, true),
		atLeast(Null, RandRead1, Baseline, 1.0, true),
		atLeast(Cached, RandRead32, Baseline, 1.0, true),
		atLeast(Cached, RandRead1, Baseline, 0.9, true),
		atLeast(LeafRead, RandRead32, Baseline, 0.8, false),
		atLeast(LeafRead, RandRead1, Baseline, 0.8, false),
		atLeast(FirstTouch, RandWrite32, Baseline, 0.5, true),
		atLeast(FirstTouch, RandWrite32, SnapshotFirst, 1.6, true),
		atLeast(FirstTouch, RandWrite32, QemuFirst, 12, true),
		atLeast(VirtioUnion, Fsync1, VirtioSnapshot, 1.5, true),
		atLeast(VirtioUnion, Fsync32, VirtioSnapshot, 2, true),
		atLeast(Overwrite, RandWrite32, Baseline, 0.5, false),
		atLeast(Cached, SeqRead, Baseline, 1.1, false),
		atLeast(LeafRead, SeqRead, Baseline, 0.8, false),
		atLeast(Chain64, RandRead32, Chain1, 0.95, true),
		{Subject: Cached, Job: RandRead32, Metric: CPU, Base: Null, Limit: 1.25, AtMost: true},
		{Subject: CreateUnion, Job: Create, Metric: Time, Base: CreateLoop, Limit: 1.2, AtMost: true},
		{Subject: CreateUnionRaw, Job: Create, Metric: Time, Base: CreateLoop, Limit: 1.2, AtMost: true},
		{Subject: CreateUnion, Job: Create, Metric: Time, Base: CreateQemu, Limit: 0.2, AtMost: true},
	}
	for _, s := range []struct {
		name SubjectName
		job  Job
	}{{Null, RandRead32}, {Cached, RandRead32}, {LeafRead, RandRead32}, {FirstTouch, RandWrite32}, {Overwrite, RandWrite32}} {
		goals = append(goals,
			Goal{Subject: s.name, Job: s.job, Metric: Syscalls, Limit: 0.25, AtMost: true},
			Goal{Subject: s.name, Job: s.job, Metric: Allocs, Limit: noAllocation, AtMost: true})
	}
	return goals
}

// String is what is asked.
func (g Goal) String() string {
	sign := "≥"
	if g.AtMost {
		sign = "≤"
	}
	switch {
	case g.Metric == Allocs:
		return "no " + string(g.Metric)
	case g.Base == "":
		return fmt.Sprintf("%s %s %g", g.Metric, sign, g.Limit)
	}
	return fmt.Sprintf("%s %s %gx of %s", g.Metric, sign, g.Limit, g.Base)
}

// Judge tells what was measured, of how many rounds, and "met", "missed" or "unresolved".
func (g Goal) Judge(r *Run) (measured string, rounds int, verdict string) {
	if g.Base != "" {
		i := Bootstrap(r.Ratios(g.Subject, g.Job, g.Base, g.Metric))
		return ratioText(i), i.N, g.verdict(i)
	}
	values := r.Values(g.Subject, g.Job, g.Metric)
	if len(values) == 0 {
		return "–", 0, Unresolved
	}
	s := NewSpread(values)
	verdict = Met
	if s.Max > g.Limit {
		verdict = Missed
	}
	return fmt.Sprintf("%.2f, at most %.2f", s.Median, s.Max), s.N, verdict
}

func (g Goal) verdict(i Interval) string {
	if g.AtMost {
		i.Low, i.High = -i.High, -i.Low
		return i.Verdict(-g.Limit)
	}
	return i.Verdict(g.Limit)
}
