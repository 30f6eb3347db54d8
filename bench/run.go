package bench

import (
	"fmt"
	"strconv"
	"time"
)

// A job is void when a vCPU waited for a host core for more of its time than it did in
// the calmest round of the same job plus maxExcess, or for more than maxWait altogether. Some waiting
// is the job's own: a vCPU that sleeps and is woken thousands of times a second waits a little each time.
const (
	maxExcess = 0.05
	maxWait   = 0.20
)

// A Sample is one job done once.
type Sample struct {
	Round   int         `json:"round"`
	Subject SubjectName `json:"subject"`
	Job     string      `json:"job"`
	Figure  Figure      `json:"figure"`
	// Wait is the share of the job's time that the most disturbed vCPU waited for a host core.
	Wait float64 `json:"wait"`
}

// A Run collects the samples of one virtual machine.
type Run struct {
	Samples []Sample          `json:"samples"`
	Counts  []Sample          `json:"counts"` // passes that counted system calls; no other metric of theirs means anything
	Info    map[string]string `json:"info"`
	Done    bool              `json:"done"`

	wait    func() []time.Duration // run-queue wait of each vCPU so far
	started time.Time
	before  []time.Duration
}

// NewRun returns an empty run. Wait tells how long each vCPU thread has waited for a host core since
// it began, in a fixed order; it is called at both ends of every job. It may be nil where nothing
// can be told.
func NewRun(wait func() []time.Duration) *Run {
	if wait == nil {
		wait = func() []time.Duration { return nil }
	}
	return &Run{Info: map[string]string{}, wait: wait}
}

// Add takes the next event of the guest, at the moment it arrives.
func (r *Run) Add(e Event, now time.Time) error {
	switch e.Kind {
	case KindInfo:
		r.Info[e.Key] = e.Value
	case KindStart:
		r.started, r.before = now, r.wait()
	case KindEnd:
		if e.Figure == nil {
			return fmt.Errorf("event of %s, %s has no figure", e.Subject, e.Job)
		}
		r.Samples = append(r.Samples, Sample{
			Round: e.Round, Subject: e.Subject, Job: e.Job, Figure: *e.Figure,
			Wait: r.waited(now.Sub(r.started)),
		})
	case KindCount:
		if e.Figure == nil {
			return fmt.Errorf("event of %s, %s has no figure", e.Subject, e.Job)
		}
		r.Counts = append(r.Counts, Sample{Round: e.Round, Subject: e.Subject, Job: e.Job, Figure: *e.Figure})
	case KindDone:
		r.Done = true
	default:
		return fmt.Errorf("event of unknown kind %q", e.Kind)
	}
	return nil
}

func (r *Run) waited(elapsed time.Duration) float64 {
	worst := time.Duration(0)
	after := r.wait()
	for i := range min(len(r.before), len(after)) {
		worst = max(worst, after[i]-r.before[i])
	}
	if elapsed <= 0 {
		return 0
	}
	return float64(worst) / float64(elapsed)
}

// Valid returns the samples that the host did not disturb, and the others.
func (r *Run) Valid() (valid, void []Sample) {
	type jobOn struct {
		subject SubjectName
		job     string
	}
	calmest := map[jobOn]float64{}
	for _, s := range r.Samples {
		key := jobOn{s.Subject, s.Job}
		if wait, ok := calmest[key]; !ok || s.Wait < wait {
			calmest[key] = s.Wait
		}
	}
	for _, s := range r.Samples {
		if s.Wait > maxWait || s.Wait > calmest[jobOn{s.Subject, s.Job}]+maxExcess {
			void = append(void, s)
			continue
		}
		valid = append(valid, s)
	}
	return valid, void
}

// Values returns a metric of each valid sample of a subject's job; system calls have been counted beside the samples.
func (r *Run) Values(subject SubjectName, job Job, metric Metric) []float64 {
	var values []float64
	r.each(subject, job, metric, func(_ int, v float64) { values = append(values, v) })
	return values
}

func (r *Run) each(subject SubjectName, job Job, metric Metric, do func(round int, v float64)) {
	samples := r.Counts
	if metric != Syscalls {
		samples, _ = r.Valid()
	}
	for _, s := range samples {
		if s.Subject != subject || s.Job != job.Name {
			continue
		}
		if v, ok := metric.Of(s.Figure); ok {
			do(s.Round, v)
		}
	}
}

// Ratios returns a subject's metric divided by the base's, for each round in which neither is
// void.
func (r *Run) Ratios(subject SubjectName, job Job, base SubjectName, metric Metric) []float64 {
	below := map[int]float64{}
	r.each(base, job, metric, func(round int, v float64) { below[round] = v })
	var ratios []float64
	r.each(subject, job, metric, func(round int, v float64) {
		if b, ok := below[round]; ok && b > 0 {
			ratios = append(ratios, v/b)
		}
	})
	return ratios
}

// infoRounds is how many rounds there are, among what is said of a machine.
const infoRounds = "rounds"

// Merge puts the samples of runs together, each in rounds of its own. What they say of their
// machines must be the same.
func Merge(runs []*Run) (*Run, error) {
	all := NewRun(nil)
	all.Done = true
	rounds := 0
	for _, r := range runs {
		last := rounds
		for _, list := range []struct{ from, to *[]Sample }{{&r.Samples, &all.Samples}, {&r.Counts, &all.Counts}} {
			for _, s := range *list.from {
				s.Round += rounds
				last = max(last, s.Round)
				*list.to = append(*list.to, s)
			}
		}
		rounds = last
		all.Done = all.Done && r.Done
		for key, v := range r.Info {
			if key == infoRounds {
				continue
			}
			if have, ok := all.Info[key]; ok && have != v {
				return nil, fmt.Errorf("merge runs: their %s differs: %q and %q", key, have, v)
			}
			all.Info[key] = v
		}
	}
	all.Info[infoRounds] = strconv.Itoa(rounds)
	all.Info["virtual machines, one after the other"] = strconv.Itoa(len(runs))
	return all, nil
}
