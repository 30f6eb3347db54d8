// Command benchnative runs the Go benchmarks of what a request goes through, on this machine and without the kernel's driver: all of them in each of
// some rounds, so that what is compared was measured next to each other. It keeps their output for benchstat and writes a page with the goals that hold natively. It is
// what `make bench-native` calls.
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice/bench"
)

// suite is a package with the benchmarks of it that are run, and for how long. What is told by CPU time has a number of requests, so that
// a machine that is busy does not leave too few of them for what it costs to begin.
type suite struct{ pkg, pattern, time string }

// suites are the parts of the path of a request: ring, reactor, sector map, log, leaf, cache, and the chunks of an image.
var suites = []suite{
	{"ublk/uring", ".", "300ms"}, {"ublk", "Serve|Post", "200ms"}, {"union", "4K$", "30000x"}, {"union", "128K", "6000x"}, {"union", "Lookup|Set$|Log|Slots", "300ms"},
	{"cache", "Hit", "300ms"}, {"image", "VerifyChunk", "300ms"},
}

// options are the command line.
type options struct {
	count   int
	time    string
	version string
	out     string
	keep    string
	only    string
}

func main() {
	var o options
	flag.IntVar(&o.count, "count", 10, "`rounds`; ten are needed for a verdict")
	flag.StringVar(&o.time, "time", "", "`time` of each benchmark in a round, as -benchtime takes it; default: as each needs it")
	flag.StringVar(&o.version, "version", "unknown", "`commit` to put into the page")
	flag.StringVar(&o.out, "out", "", "page to write to this `file`; default docs/benchmarks/native-DATE.md")
	flag.StringVar(&o.keep, "keep", "build/bench/native.txt", "`file` for what the benchmarks print, for benchstat")
	flag.StringVar(&o.only, "only", "", "run only suites whose package and benchmarks, as in union.Lookup, match this `pattern`; goals of others stay unresolved")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "benchnative:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	suites, err := chosen(o.only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "benchnative-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.MkdirAll(filepath.Dir(o.keep), 0o755); err != nil {
		return err
	}
	keep, err := os.Create(o.keep)
	if err != nil {
		return err
	}
	defer keep.Close()
	for _, s := range suites {
		if _, err := output(ctx, "", "go", "test", "-c", "-o", filepath.Join(dir, name(s)), "./"+s.pkg); err != nil {
			return err
		}
	}
	n := bench.Native{Date: time.Now().UTC().Format(time.DateOnly), Commit: o.version, Machine: machine()}
	for round := range o.count {
		order := slices.Clone(suites)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		var all bytes.Buffer
		for _, s := range order {
			text, err := output(ctx, s.pkg, filepath.Join(dir, name(s)), "-test.run=^$", "-test.bench="+s.pattern, "-test.benchmem", "-test.benchtime="+cmp.Or(o.time, s.time))
			if err != nil {
				return err
			}
			all.Write(text)
		}
		lines, err := bench.ParseGoBench(io.TeeReader(&all, keep))
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "benchnative: round %d of %d, %d benchmarks\n", round+1, o.count, len(lines))
		n.Rounds = append(n.Rounds, lines)
	}
	if o.out == "" {
		o.out = filepath.Join("docs", "benchmarks", "native-"+n.Date+".md")
	}
	page, err := os.Create(o.out)
	if err != nil {
		return err
	}
	if err := errors.Join(n.Write(io.MultiWriter(page, os.Stdout)), page.Close()); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "benchnative: written to %s; benchstat %s has the spread\n", o.out, o.keep)
	return nil
}

// chosen are the suites that a pattern matches.
func chosen(only string) ([]suite, error) {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return nil, fmt.Errorf("pattern of suites: %w", err)
	}
	list := slices.DeleteFunc(slices.Clone(suites), func(s suite) bool { return !pattern.MatchString(s.pkg + "." + s.pattern) })
	if len(list) == 0 {
		return nil, fmt.Errorf("pattern of suites: %q matches none", only)
	}
	return list, nil
}

// name is the file of a suite's benchmarks.
func name(s suite) string { return strings.ReplaceAll(s.pkg, "/", "_") + ".test" }

// output runs a program in a directory and returns what it prints.
func output(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	text, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("run %s %s: %w\n%s", program, strings.Join(args, " "), err, text)
	}
	return text, nil
}

// machine says what the figures are from, without a name.
func machine() string {
	kernel := "unknown"
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		kernel, _, _ = strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	}
	return fmt.Sprintf("%d CPUs (%s), Linux %s, %s", runtime.NumCPU(), processor(), kernel, runtime.Version())
}

// processor is the model of the first CPU, or its architecture.
func processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				return strings.TrimSpace(value)
			}
		}
	}
	return runtime.GOARCH
}
