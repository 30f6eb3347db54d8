package bench

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// Native is what Go benchmarks measured on the machine itself, without the kernel's driver: all of them in each round.
type Native struct {
	Date, Commit, Machine string
	Rounds                [][]GoBench
}

// How two benchmarks, or two values of one, are compared.
type relation int

const (
	alone  relation = iota // a value by itself
	ratio                  // a value divided by the other's
	excess                 // what a value is above the other's
)

// nativeGoal is a bound for a value of a benchmark, or for what it is beside another one's in the same round.
type nativeGoal struct {
	what        string
	bench, base string
	unit        string
	how         relation
	limit       float64
	atMost      bool
}

// nativeGoals are those that hold for the software alone.
func nativeGoals() []nativeGoal {
	const union, extents = "coppice/union.", "coppice/union.Lookup100K/over="
	goals := []nativeGoal{
		{"sector map look-up, 100,000 extents over 10 GiB: time of sort.Search as a multiple of it", extents + "10GiB/sort.Search", extents + "10GiB/map", "ns/op", ratio, 2.5, false},
		{"the same over 1 GiB", extents + "1GiB/sort.Search", extents + "1GiB/map", "ns/op", ratio, 2.5, false},
		{"sector map, bytes for each of 100,000 extents over 10 GiB", extents + "10GiB/map", "", "B/extent", alone, 16, true},
		{"the same over 1 GiB", extents + "1GiB/map", "", "B/extent", alone, 16, true},
		{"first-touch 4 KiB write, CPU above a plain io_uring write, ns", union + "FirstTouchWrite4K", union + "PlainWrite4K/new", "cpu-ns/op", excess, 1500, true},
		{"4 KiB overwrite, CPU above a plain io_uring write, ns", union + "Overwrite4K", union + "PlainWrite4K/again", "cpu-ns/op", excess, 1500, true},
		{"verification of a 4 KiB leaf read, CPU, ns", union + "LeafRead4K/verify=on", union + "LeafRead4K/verify=off", "cpu-ns/op", excess, 300, true},
		{"128 KiB sequential leaf write, part of the speed of a plain io_uring write", union + "PlainSequentialWrite128K", union + "SequentialWrite128K", "ns/op", ratio, 0.8, false},
		{"the same by CPU time, which a busy machine changes less", union + "PlainSequentialWrite128K", union + "SequentialWrite128K", "cpu-ns/op", ratio, 0.8, false},
	}
	for _, name := range []string{
		union + "LeafRead4K/verify=on", union + "RootMemoryRead4K", union + "FirstTouchWrite4K", union + "Overwrite4K", union + "SequentialWrite128K", "coppice/cache.Hit/copy=4096", "coppice/ublk.Serve/null/read/depth=32",
	} {
		goals = append(goals, nativeGoal{"allocations of " + name, name, "", "allocs/op", alone, 0, true})
	}
	return goals
}

// values are those of a benchmark in the rounds that have it, by round.
func (n *Native) values(name, unit string) map[int]float64 {
	at := map[int]float64{}
	for i, round := range n.Rounds {
		for _, b := range round {
			if v, ok := b.Values[unit]; ok && b.Name == name {
				at[i] = v
			}
		}
	}
	return at
}

// judge returns the interval of a goal's values, and what it says of the goal.
func (n *Native) judge(g nativeGoal) (i Interval, verdict string) {
	measured, base := n.values(g.bench, g.unit), n.values(g.base, g.unit)
	var values []float64
	for _, round := range slices.Sorted(maps.Keys(measured)) {
		v := measured[round]
		if g.how != alone {
			b, ok := base[round]
			if !ok || b == 0 {
				continue
			}
			if g.how == ratio {
				v /= b
			} else {
				v -= b
			}
		}
		values = append(values, v)
	}
	i = Bootstrap(values)
	switch {
	case g.how == alone && len(values) > 0 && g.atMost: // it is counted, not timed
		if slices.Max(values) <= g.limit {
			return i, Met
		}
		return i, Missed
	case g.atMost:
		return i, Interval{-i.Median, -i.High, -i.Low, i.N}.Verdict(-g.limit)
	}
	return i, i.Verdict(g.limit)
}

// Write writes a page of it as Markdown.
func (n *Native) Write(w io.Writer) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "# Native benchmarks of %s\n\nCommit %s, %s. All benchmarks in each of %d rounds, in reversed order every other one. Stores are files on tmpfs, the kernel's driver is the stand-in of\n"+
		"`ublk/ublktest`, and everything else is real: reactors, rings, threads.\n\n## Goals\n\nA time or a ratio is taken within a round, and met when the nearer end of the 95 %% interval of its median is beyond the goal over at least %d rounds; what is counted has to be within "+
		"the goal in all.\n\n| what | goal | measured | rounds | |\n| --- | --- | --- | --: | --- |\n", n.Date, n.Commit, n.Machine, len(n.Rounds), roundsForVerdict)
	for _, g := range nativeGoals() {
		sign := "≥"
		if g.atMost {
			sign = "≤"
		}
		i, verdict := n.judge(g)
		fmt.Fprintf(out, "| %s | %s %g | %s | %d | %s |\n", g.what, sign, g.limit, ratioText(i), i.N, verdict)
	}
	n.writeAll(out)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func (n *Native) writeAll(out io.Writer) {
	fmt.Fprint(out, "\n## All benchmarks\n\nMedians; what `cpu-ns/op` counts is the CPU time of all threads of the process, which others on the machine do not change as they do the clock.\n\n"+
		"| benchmark | ns/op | least | most | cpu-ns/op | allocations | other |\n| --- | --: | --: | --: | --: | --: | --- |\n")
	shown := map[string]bool{}
	for _, round := range n.Rounds {
		for _, b := range round {
			if shown[b.Name] {
				continue
			}
			shown[b.Name] = true
			clock := NewSpread(n.list(b.Name, "ns/op"))
			var other []string
			for _, unit := range slices.Sorted(maps.Keys(b.Values)) {
				if !slices.Contains([]string{"ns/op", "cpu-ns/op", "allocs/op", "B/op"}, unit) {
					other = append(other, fmt.Sprintf("%.4g %s", NewSpread(n.list(b.Name, unit)).Median, unit))
				}
			}
			fmt.Fprintf(out, "| %s | %.4g | %.4g | %.4g | %s | %s | %s |\n", strings.TrimPrefix(b.Name, "coppice/"), clock.Median, clock.Min, clock.Max,
				n.middle(b.Name, "cpu-ns/op"), n.middle(b.Name, "allocs/op"), strings.Join(other, ", "))
		}
	}
}

func (n *Native) list(name, unit string) []float64 {
	return slices.Collect(maps.Values(n.values(name, unit)))
}

func (n *Native) middle(name, unit string) string {
	list := n.list(name, unit)
	if len(list) == 0 {
		return "–"
	}
	return fmt.Sprintf("%.4g", NewSpread(list).Median)
}
