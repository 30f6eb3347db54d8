package bench

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A Report is a run with what else its reader needs.
type Report struct {
	Run     *Run
	Title   string
	Commit  string
	Date    string // YYYY-MM-DD
	Seconds float64
	Native  []GoBench // in-process benchmarks of the same commit
}

// Write writes the report as Markdown.
func (r *Report) Write(w io.Writer) error {
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "# %s\n\n", r.Title)
	r.writeMachine(out)
	r.writeGoals(out)
	for _, job := range Jobs() {
		r.writeJob(out, job)
	}
	r.writeNative(out)
	r.writeMethod(out)
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func (r *Report) writeMachine(out io.Writer) {
	fmt.Fprintf(out, "| | |\n| --- | --- |\n| date | %s |\n| commit | %s |\n", r.Date, r.Commit)
	keys := make([]string, 0, len(r.Run.Info))
	for key := range r.Run.Info {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		fmt.Fprintf(out, "| %s | %s |\n", key, r.Run.Info[key])
	}
	_, void := r.Run.Valid()
	fmt.Fprintf(out, "| samples | %d, of which %d void: a vCPU waited for a host core more than %.0f %% of the job, "+
		"or %.0f points more than in the calmest round |\n", len(r.Run.Samples), void, maxWait*100, maxExcess*100)
}

func (r *Report) writeGoals(out io.Writer) {
	fmt.Fprintf(out, "\n## Goals\n\nIOPS as a ratio to the kernel's loop device with direct I/O, on a RAM disk, in the same round: median\n"+
		"[95 %% interval]. A goal is met when the interval's lower end is above it over at least %d paired rounds.\n\n",
		roundsForVerdict)
	fmt.Fprintln(out, "| subject | job | goal | measured | rounds | |\n| --- | --- | --- | --- | --- | --- |")
	for _, goal := range Goals() {
		ratio := Bootstrap(r.Run.Ratios(goal.Subject, goal.Job))
		fmt.Fprintf(out, "| %s | %s | ≥ %.2f | %s | %d | %s |\n",
			goal.Subject, goal.Job, goal.AtLeast, ratioText(ratio), ratio.N, ratio.Verdict(goal.AtLeast))
	}
}

func (r *Report) writeJob(out io.Writer, job Job) {
	unit, scale := "IOPS", 1.0
	if job.Block > 4<<10 {
		unit, scale = "MB/s", float64(job.Block)/1e6
	}
	fmt.Fprintf(out, "\n## %s\n\n", job)
	fmt.Fprintf(out, "| subject | %s: median | min | max | ratio to loop [95 %%] | rounds | 99th percentile, µs | guest CPU per request, µs | requests per enter |\n", unit)
	fmt.Fprintln(out, "| --- | --: | --: | --: | --- | --: | --: | --: | --: |")
	for _, subject := range Subjects() {
		speeds := r.Run.Values(subject.Name, job, func(f Figure) float64 { return f.IOPS * scale })
		if len(speeds) == 0 {
			continue
		}
		s := NewSpread(speeds)
		ratio := Bootstrap(r.Run.Ratios(subject.Name, job))
		p99 := NewSpread(r.Run.Values(subject.Name, job, func(f Figure) float64 { return f.P99US }))
		cpu := NewSpread(r.Run.Values(subject.Name, job, func(f Figure) float64 { return f.CPUPerIOUS }))
		batch := "–"
		if b := NewSpread(r.Run.Values(subject.Name, job, func(f Figure) float64 { return f.PerEnter })); b.Median > 0 {
			batch = fmt.Sprintf("%.1f", b.Median)
		}
		fmt.Fprintf(out, "| %s | %.0f | %.0f | %.0f | %s | %d | %.0f | %.1f | %s |\n",
			subject.Name, s.Median, s.Min, s.Max, ratioText(ratio), s.N, p99.Median, cpu.Median, batch)
	}
}

func ratioText(i Interval) string {
	if i.N == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f [%.2f, %.2f]", i.Median, i.Low, i.High)
}

func (r *Report) writeNative(out io.Writer) {
	if len(r.Native) == 0 {
		return
	}
	fmt.Fprint(out, "\n## In-process benchmarks\n\nOn the host itself, without a kernel driver (`go test -bench`).\n\n")
	fmt.Fprintln(out, "| package | benchmark | ns per operation | allocations | other |\n| --- | --- | --: | --: | --- |")
	for _, b := range r.Native {
		fmt.Fprintf(out, "| %s | %s | %s | %s | %s |\n", b.Package, b.Name, b.NsPerOp, b.AllocsPerOp, strings.Join(b.Other, ", "))
	}
}

func (r *Report) writeMethod(out io.Writer) {
	fmt.Fprintf(out, `
## How it was measured

One virtual machine, one run; vCPU threads pinned to one host core each. Every store is a RAM disk
of the guest whose pages were allocated beforehand. fio, io_uring, direct=1, one job, %g s per job; first-touch
writes end early when every block has been written. Each round does every job on every subject, in reversed order
every other round. Devices are made anew in each round, and for first-touch writes before
each job. The baseline is the loop device straight on a RAM disk: its fastest form, with no file
system below. It writes in place and copies nothing: its random write is the baseline
of both overwrite and first-touch write. Union devices read and write RAM disks too. dm-snapshot is persistent with 4 KiB chunks, its origin and its
store on loop devices of the same kind. "Verified" means that a leaf read checks the block's
CRC-32C, which costs an emulated machine tens of times what it costs a real one.

Ratios of one run hold; absolute figures of an emulated machine do not carry over to a real one.
`, r.Seconds)
}
