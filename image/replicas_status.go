package image

import (
	"math"
	"slices"
	"time"
)

// samples are the latest durations of requests, with what is asked of them often. It is not for concurrent use.
type samples struct {
	last      [64]time.Duration
	n         int           // ever
	p50, p95  time.Duration // of the latest, as of some samples ago
	best      time.Duration
	refreshed int
}

// refreshEvery is after how many samples the percentiles are computed anew.
const refreshEvery = 8

func (s *samples) add(d time.Duration) {
	s.last[s.n%len(s.last)] = d
	s.n++
	if s.n < refreshEvery || s.n-s.refreshed >= refreshEvery {
		s.refresh()
	}
}

func (s *samples) refresh() {
	sorted := slices.Clone(s.last[:min(s.n, len(s.last))])
	slices.Sort(sorted)
	s.best, s.p50, s.p95 = sorted[0], sorted[len(sorted)/2], sorted[(len(sorted)*95-1)/100]
	s.refreshed = s.n
}

// rate counts what happened lately: what lies rateTime back counts a third.
type rate struct {
	n    float64
	when time.Time
}

const rateTime = 2 * time.Second

func (r *rate) add(now time.Time) { r.n, r.when = r.at(now)+1, now }

func (r *rate) at(now time.Time) float64 {
	return r.n * math.Exp(-now.Sub(r.when).Seconds()/rateTime.Seconds())
}

// ReplicaStatus is how a replica does.
type ReplicaStatus struct {
	Ref      string    `json:"ref"`
	State    State     `json:"state"`
	Since    time.Time `json:"since"`
	Error    string    `json:"error,omitempty"` // the last one, also of a replica that is ready again
	Requests int64     `json:"requests"`        // that were answered
	Bytes    int64     `json:"bytes"`
	Failures int64     `json:"failures"` // requests and probes that failed
	Hedged   int64     `json:"hedged"`   // requests that were made again elsewhere because it was slow
	InFlight int       `json:"in_flight"`
	P50MS    float64   `json:"p50_ms"` // of the latest requests
	P95MS    float64   `json:"p95_ms"`
	Share    float64   `json:"share"`             // of the requests of the last seconds, 0 to 1
	Manifest Digest    `json:"manifest,omitzero"` // by which it is open
}

// Replicas returns how the replicas do, in the order in which they were added.
func (s *Set) Replicas() []ReplicaStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, total := time.Now(), 0.0
	for _, r := range s.replicas {
		total += r.share.at(now)
	}
	all := make([]ReplicaStatus, 0, len(s.replicas))
	for _, r := range s.replicas {
		st := r.status()
		if r.slow && r.state == StateReady {
			st.State = StateSlow
		}
		if total > 0 {
			st.Share = r.share.at(now) / total
		}
		all = append(all, st)
	}
	return all
}

func (r *replica) status() ReplicaStatus {
	st := ReplicaStatus{
		Ref: r.ref.String(), State: r.state, Since: r.since, Requests: r.requests, Bytes: r.bytes, Failures: r.failures, Hedged: r.hedged,
		InFlight: *r.busy, P50MS: ms(r.recent.p50), P95MS: ms(r.recent.p95),
	}
	if r.member != nil {
		st.Manifest, _ = ParseDigest(string(r.member.im.desc.Digest))
	}
	if r.err != nil {
		st.Error = r.err.Error()
	}
	return st
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Images returns the images of the replicas, those first that answer now, for what concerns one image: signatures, copies. They stay the set's,
// and one that is removed is closed. There may be none.
func (s *Set) Images() []*Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	var now, later []*Image
	for _, r := range s.replicas {
		switch {
		case r.member == nil:
		case r.state == StateReady:
			now = append(now, r.member.im)
		default:
			later = append(later, r.member.im)
		}
	}
	return append(now, later...)
}
