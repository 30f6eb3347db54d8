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
	Charts  string // where the charts of [Report.WriteCharts] are, from the page: what comes before "JOB.svg"; "": nowhere
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
	r.writeVoid(out)
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
	if !r.Run.Done {
		fmt.Fprintln(out, "| cut short | the machine died, or a job failed, before all was measured |")
	}
	_, void := r.Run.Valid()
	fmt.Fprintf(out, "| samples | %d, of which %d void: a vCPU waited for a host core more than %.0f %% of the job, "+
		"or %.0f points more than in the calmest round |\n", len(r.Run.Samples), len(void), maxWait*100, maxExcess*100)
}

func (r *Report) writeGoals(out io.Writer) {
	fmt.Fprintf(out, "\n## Goals\n\nRatios are taken between two subjects in the same round: median [95 %% interval]. One is met when the nearer end of its interval is "+
		"beyond the goal over at least %d paired\nrounds, and missed when the other end is short of it; what lies between, or has fewer rounds, is unresolved. Where there is nothing to compare with, every sample has to be "+
		"within the goal. Those in bold are mandatory.\n\n", roundsForVerdict)
	fmt.Fprintln(out, "| subject | job | goal | measured | rounds | |\n| --- | --- | --- | --- | --: | --- |")
	for _, goal := range Goals() {
		measured, rounds, verdict := goal.Judge(r.Run)
		name := string(goal.Subject)
		if goal.Mandatory {
			name = "**" + name + "**"
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s | %d | %s |\n", name, goal.Job, goal, measured, rounds, verdict)
	}
}

// unit is what a job's speed is shown in, and what one request per second is of it.
func (j Job) unit() (name string, scale float64) {
	if j.Block > 4<<10 {
		return "MB/s", float64(j.Block) / 1e6
	}
	return "IOPS", 1
}

func (r *Report) writeJob(out io.Writer, job Job) {
	if !slices.ContainsFunc(Subjects(), func(s Subject) bool { return len(r.Run.Values(s.Name, job, Speed)) > 0 }) {
		return
	}
	fmt.Fprintf(out, "\n## %s\n\n", job)
	if r.Charts != "" && len(r.Run.Values(job.Base, job, Speed)) > 0 {
		fmt.Fprintf(out, "![%s](%s%s.svg)\n\n", job, r.Charts, job.Name)
	}
	if job.RW == "" {
		r.writeCreate(out, job)
		return
	}
	unit, scale := job.unit()
	fmt.Fprintf(out, "| subject | %s: median | min | max | ratio to %s [95 %%] | rounds | p50, µs | p99, µs | guest CPU per request, µs | system calls per request | allocations per request |\n",
		unit, job.Base)
	fmt.Fprintln(out, "| --- | --: | --: | --: | --- | --: | --: | --: | --: | --: | --: |")
	for _, subject := range Subjects() {
		speeds := r.Run.Values(subject.Name, job, Speed)
		if len(speeds) == 0 {
			continue
		}
		s := NewSpread(speeds)
		ratio := Bootstrap(r.Run.Ratios(subject.Name, job, job.Base, Speed))
		fmt.Fprintf(out, "| %s | %.0f | %.0f | %.0f | %s | %d | %s | %s | %s | %s | %s |\n",
			subject.Name, s.Median*scale, s.Min*scale, s.Max*scale, ratioText(ratio), s.N, r.median(subject, job, P50, 0), r.median(subject, job, P99, 0),
			r.median(subject, job, CPU, 1), r.median(subject, job, Syscalls, 2), r.median(subject, job, Allocs, 2))
	}
}

// writeCreate shows times, not rates.
func (r *Report) writeCreate(out io.Writer, job Job) {
	fmt.Fprintf(out, "| subject | ms: median | min | max | time as a ratio to %s [95 %%] | rounds |\n| --- | --: | --: | --: | --- | --: |\n", job.Base)
	for _, subject := range Subjects() {
		times := r.Run.Values(subject.Name, job, Time)
		if len(times) == 0 {
			continue
		}
		s := NewSpread(times)
		fmt.Fprintf(out, "| %s | %.0f | %.0f | %.0f | %s | %d |\n", subject.Name, s.Median*1e3, s.Min*1e3, s.Max*1e3,
			ratioText(Bootstrap(r.Run.Ratios(subject.Name, job, job.Base, Time))), s.N)
	}
}

func (r *Report) median(s Subject, job Job, m Metric, decimals int) string {
	values := r.Run.Values(s.Name, job, m)
	if len(values) == 0 {
		return "–"
	}
	return fmt.Sprintf("%.*f", decimals, NewSpread(values).Median)
}

func ratioText(i Interval) string {
	if i.N == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f [%.2f, %.2f]", i.Median, i.Low, i.High)
}

// writeVoid lists the samples that do not count.
func (r *Report) writeVoid(out io.Writer) {
	_, void := r.Run.Valid()
	if len(void) == 0 {
		return
	}
	fmt.Fprint(out, "\n## Void samples\n\nThe host took cores away from the machine during these; they are in no table.\n\n"+
		"| subject | job | rounds, with the share of the time that a vCPU waited |\n| --- | --- | --- |\n")
	for _, subject := range Subjects() {
		for _, job := range subject.Jobs {
			var rounds []string
			for _, s := range void {
				if s.Subject == subject.Name && s.Job == job.Name {
					rounds = append(rounds, fmt.Sprintf("%d (%.0f %%)", s.Round, s.Wait*100))
				}
			}
			if len(rounds) > 0 {
				fmt.Fprintf(out, "| %s | %s | %s |\n", subject.Name, job, strings.Join(rounds, ", "))
			}
		}
	}
}

func (r *Report) writeMethod(out io.Writer) {
	fmt.Fprintf(out, `
## How it was measured

One virtual machine at a time; vCPU threads pinned to one host core each. Every store is a RAM disk
of the guest whose pages were allocated beforehand, but for the virtio disk, whose flushes reach the host's file system. fio, io_uring, direct=1, one job, %g s per job; first-touch
writes end early when every block has been written. Each round does every job on every subject, in reversed order
every other round. Devices are made anew in each round, and for first-touch writes before
each job. The baseline is the loop device straight on a RAM disk: its fastest form, with no file
system below. It writes in place and copies nothing: its random write is the baseline
of both overwrite and first-touch write.

- null_blk has its defaults, but for its size. It answers without any work: the floor.
- Union devices are those of the daemon, made by "coppice create" on a store formatted for each. "Cached read" has an image as its root, of which every chunk is in the
  daemon's memory; the root of all others is a raw RAM disk. "Verified" means that a leaf read checks the block's
  CRC-32C, as the daemon does by default, which costs an emulated machine tens of times what it costs a real one. Null and memory devices are served by the benchmark's own process.
- dm-snapshot is persistent with 4 KiB chunks, its origin and its store on loop devices of the same kind; on the virtio disk, its store is the disk itself.
- qemu-nbd has a qcow2 overlay straight on the block device, cache=none and aio=native. nbdkit has the file plugin and the cow filter with blocks of 4 KiB; what that writes is a file on tmpfs.
- Guest CPU is the time that all CPUs of the guest worked, fio included, less what it takes to start and end fio. System calls are those of the process that serves the device, counted by a tracepoint in a short pass of its own after
  the last round, so that counting slows nothing that is measured. Allocations are objects on the heap of that process.
- 10 TiB: what a shell would run, from the start of the first command to the end of a read of 4 KiB with O_DIRECT; %d times, of which the median counts. The root is a sparse file, or an image of one.

Ratios of one run hold; absolute figures of an emulated machine do not carry over to a real one.
`, r.Seconds, Creations)
}
