package bench

import (
	"fmt"
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
	Round   int
	Subject SubjectName
	Job     string
	Figure  Figure
	// Wait is the share of the job's time that the most disturbed vCPU waited for a host core.
	Wait float64
}

// A Run collects the samples of one virtual machine.
type Run struct {
	Samples []Sample
	Info    map[string]string
	Done    bool

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

// Valid returns the samples that the host did not disturb, and how many others there are.
func (r *Run) Valid() (valid []Sample, void int) {
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
			void++
			continue
		}
		valid = append(valid, s)
	}
	return valid, void
}

// Values returns f of each valid sample of a subject's job.
func (r *Run) Values(subject SubjectName, job Job, f func(Figure) float64) []float64 {
	var values []float64
	valid, _ := r.Valid()
	for _, s := range valid {
		if s.Subject == subject && s.Job == job.Name {
			values = append(values, f(s.Figure))
		}
	}
	return values
}

// Ratios returns a subject's IOPS divided by the baseline's, for each round in which neither is
// void.
func (r *Run) Ratios(subject SubjectName, job Job) []float64 {
	valid, _ := r.Valid()
	base := map[int]float64{}
	for _, s := range valid {
		if s.Subject == Baseline && s.Job == job.Name {
			base[s.Round] = s.Figure.IOPS
		}
	}
	var ratios []float64
	for _, s := range valid {
		if s.Subject != subject || s.Job != job.Name {
			continue
		}
		if b, ok := base[s.Round]; ok && b > 0 {
			ratios = append(ratios, s.Figure.IOPS/b)
		}
	}
	return ratios
}
