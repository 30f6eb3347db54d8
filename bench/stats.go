package bench

import (
	"math"
	"math/rand/v2"
	"slices"
)

const (
	resamples = 10_000
	// confidence of every interval.
	confidence = 0.95
)

// A Spread is what a report shows of several values.
type Spread struct {
	Median, Min, Max float64
	N                int
}

// NewSpread summarises values; without any, all of it is NaN.
func NewSpread(values []float64) Spread {
	if len(values) == 0 {
		return Spread{Median: math.NaN(), Min: math.NaN(), Max: math.NaN()}
	}
	return Spread{Median: median(values), Min: slices.Min(values), Max: slices.Max(values), N: len(values)}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// An Interval is a median with the bounds of its 95 % bootstrap interval.
type Interval struct {
	Median, Low, High float64
	N                 int
}

// Bootstrap draws from values with replacement, 10,000 times, and returns the median of
// values with the percentile interval of the medians drawn. The same values give the
// same interval. Without values all of it is NaN.
func Bootstrap(values []float64) Interval {
	if len(values) == 0 {
		return Interval{Median: math.NaN(), Low: math.NaN(), High: math.NaN()}
	}
	random := rand.New(rand.NewPCG(uint64(len(values)), resamples))
	drawn := make([]float64, len(values))
	medians := make([]float64, resamples)
	for i := range medians {
		for j := range drawn {
			drawn[j] = values[random.IntN(len(values))]
		}
		medians[i] = median(drawn)
	}
	slices.Sort(medians)
	tail := (1 - confidence) / 2
	return Interval{
		Median: median(values),
		Low:    medians[int(tail*resamples)],
		High:   medians[int((1-tail)*resamples)-1],
		N:      len(values),
	}
}

// Verdicts.
const (
	Met        = "met"
	Missed     = "missed"
	Unresolved = "unresolved"
)

// roundsForVerdict is how many paired rounds a goal needs before it can be called met.
const roundsForVerdict = 10

// Verdict compares a measured ratio with a goal: "met" when the interval's lower end is
// above it over at least ten paired rounds, "missed" when the upper end is below it, and "unresolved" otherwise.
func (i Interval) Verdict(goal float64) string {
	switch {
	case i.N < roundsForVerdict:
		return Unresolved
	case i.Low > goal:
		return Met
	case i.High < goal:
		return Missed
	}
	return Unresolved
}
