// Command benchhost measures: it runs the in-process benchmarks, boots a virtual machine, runs
// benchguest in it, and writes a report to docs/benchmarks. It is what `make bench` calls.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
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
	version  string
	subjects string
	native   string
	out      string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 12, "paired `rounds`; ten that the host did not disturb are needed for a verdict")
	flag.Float64Var(&o.seconds, "seconds", 2, "`time` of each fio job")
	flag.StringVar(&o.version, "version", "unknown", "`commit` to put into the report")
	flag.StringVar(&o.subjects, "subjects", "", "measure only the baseline and subjects whose names begin with one of `PREFIX,PREFIX`")
	flag.StringVar(&o.native, "native", "./ublk/... ./union/...", "`packages` whose Go benchmarks to run first; empty: none")
	flag.StringVar(&o.out, "out", "", "report `file`; default docs/benchmarks/DATE.md")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	build, err := vmtests.NewBuild(logf)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	report := bench.Report{
		Title: "Benchmark of " + now.Format(time.DateOnly), Commit: o.version,
		Date: now.Format(time.DateOnly), Seconds: o.seconds,
	}
	if report.Native, err = native(ctx, build.Repo(), strings.Fields(o.native)); err != nil {
		return err
	}
	if report.Run, err = measure(ctx, build, o); err != nil {
		return err
	}
	if o.out == "" {
		o.out = filepath.Join(build.Repo(), "docs", "benchmarks", report.Date+".md")
	}
	return write(&report, o.out)
}

func write(report *bench.Report, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	var text strings.Builder
	if err := report.Write(&text); err != nil {
		return err
	}
	fmt.Print(text.String())
	if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
		return err
	}
	logf("written to %s", path)
	return nil
}

// native runs the Go benchmarks of packages on this machine.
func native(ctx context.Context, dir string, packages []string) ([]bench.GoBench, error) {
	if len(packages) == 0 {
		return nil, nil
	}
	logf("running the Go benchmarks of %s", strings.Join(packages, " "))
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-run=^$", "-bench=.", "-benchmem"}, packages...)...)
	cmd.Dir = dir
	output, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("run Go benchmarks: %w\n%s", err, output)
	}
	return bench.ParseGoBench(strings.NewReader(string(output)))
}

func logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}
