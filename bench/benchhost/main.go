// Command benchhost measures: it boots a virtual machine, runs
// benchguest in it, keeps what was measured as JSON, and writes a report with charts to docs/benchmarks. It is what `make bench` calls.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"coppice/bench"
	"coppice/vmtests"
)

// options are the command line.
type options struct {
	rounds   int
	seconds  float64
	sizeMiB  int
	version  string
	subjects string
	jobs     string
	out      string
	keep     string
	from     string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 12, "paired `rounds`; ten that the host did not disturb are needed for a verdict")
	flag.Float64Var(&o.seconds, "seconds", 2, "`time` of each fio job")
	flag.IntVar(&o.sizeMiB, "size", 512, "`MiB` of each device that jobs touch, at most 512")
	flag.StringVar(&o.version, "version", "unknown", "`commit` to put into the report")
	flag.StringVar(&o.subjects, "subjects", "", "measure only subjects whose names match the `pattern`, and what they are compared with")
	flag.StringVar(&o.jobs, "jobs", "", "measure only jobs whose names match the `pattern`")
	flag.StringVar(&o.out, "out", "", "report `file`; default docs/benchmarks/DATE.md. Charts go into a folder beside it, of the same name without .md")
	flag.StringVar(&o.keep, "keep", "", "`file` for what was measured; default build/bench/TIME.json")
	flag.StringVar(&o.from, "from", "", "measure nothing: report what is in these `FILE,FILE`, as rounds of one run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// kept is a run as it is kept in a file.
type kept struct {
	Commit  string     `json:"commit"`
	Date    string     `json:"date"`
	Seconds float64    `json:"seconds"`
	Run     *bench.Run `json:"run"`
}

func run(ctx context.Context, o options) error {
	build, err := vmtests.NewBuild(logf)
	if err != nil {
		return err
	}
	var k kept
	if o.from != "" {
		k, err = load(strings.Split(o.from, ","))
	} else {
		k, err = measured(ctx, build, o)
	}
	if err != nil {
		return err
	}
	if o.out == "" {
		o.out = filepath.Join(build.Repo(), "docs", "benchmarks", k.Date+".md")
	}
	return write(k, o.out)
}

// measured runs the plan and keeps what comes of it.
func measured(ctx context.Context, build *vmtests.Build, o options) (kept, error) {
	now := time.Now().UTC()
	k := kept{Commit: o.version, Date: now.Format(time.DateOnly), Seconds: o.seconds}
	var early error
	if k.Run, early = measure(ctx, build, o); k.Run == nil || len(k.Run.Samples) == 0 {
		return k, early
	}
	if o.keep == "" {
		o.keep = filepath.Join(build.Repo(), "build", "bench", now.Format("20060102T150405")+".json")
	}
	if err := os.MkdirAll(filepath.Dir(o.keep), 0o755); err != nil {
		return k, err
	}
	data, err := json.MarshalIndent(k, "", " ")
	if err != nil {
		return k, fmt.Errorf("encode run: %w", err)
	}
	if err := os.WriteFile(o.keep, data, 0o644); err != nil {
		return k, err
	}
	logf("kept in %s", o.keep)
	if early != nil {
		early = fmt.Errorf("%w; what was measured before is kept, and reported by -from %s", early, o.keep)
	}
	return k, early
}

// load reads runs that were kept, which must be of one commit and have the same time for a job.
func load(paths []string) (kept, error) {
	var all kept
	var runs []*bench.Run
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return all, err
		}
		var k kept
		if err := json.Unmarshal(data, &k); err != nil {
			return all, fmt.Errorf("read run %s: %w", path, err)
		}
		if k.Run == nil {
			return all, fmt.Errorf("read run %s: it has no samples", path)
		}
		if len(runs) > 0 && (k.Commit != all.Commit || k.Seconds != all.Seconds) {
			return all, fmt.Errorf("run %s is of commit %s with %g s a job, others of %s with %g s: they cannot be reported together", path, k.Commit, k.Seconds, all.Commit, all.Seconds)
		}
		runs = append(runs, k.Run)
		all = k
	}
	var err error
	all.Run, err = bench.Merge(runs)
	return all, err
}

// write writes the page to path, and the charts beside it.
func write(k kept, path string) error {
	charts := strings.TrimSuffix(path, ".md")
	if charts == path {
		return fmt.Errorf("report %s: its name does not end with .md", path)
	}
	if err := os.MkdirAll(charts, 0o755); err != nil {
		return err
	}
	report := bench.Report{
		Run: k.Run, Title: "Benchmark of " + k.Date, Commit: k.Commit, Date: k.Date, Seconds: k.Seconds, Charts: filepath.Base(charts) + "/",
	}
	err := report.WriteCharts(func(name string) (io.WriteCloser, error) { return os.Create(filepath.Join(charts, name)) })
	if err != nil {
		return err
	}
	page, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(report.Write(io.MultiWriter(page, os.Stdout)), page.Close()); err != nil {
		return err
	}
	logf("written to %s", path)
	return nil
}

func logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}
