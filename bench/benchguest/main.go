// Command benchguest runs the benchmark's plan on the machine that it is started on, which is
// meant to be a virtual machine that exists for nothing else: it uses the RAM disks
// /dev/ram0 to /dev/ram4 (module brd), a virtio disk, loop devices, the device mapper, null_blk, /dev/nbd0 and ublk. It prints one event per line, see package
// bench.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"coppice/bench"
)

// options are the command line.
type options struct {
	rounds   int
	perJob   time.Duration
	size     int64 // bytes of each device that jobs touch
	disk     string
	subjects string
	jobs     string
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "rounds", 12, "paired `rounds` to run")
	flag.DurationVar(&o.perJob, "per-job", 2*time.Second, "`time` of each fio job")
	flag.Int64Var(&o.size, "size", 512<<20, "`bytes` of each device that jobs touch")
	flag.StringVar(&o.disk, "disk", "/dev/disk/by-id/virtio-bench", "virtio `disk` for jobs that flush; what is on it is lost")
	flag.StringVar(&o.subjects, "subjects", "", "run only subjects whose names match the `pattern`, and what they are compared with")
	flag.StringVar(&o.jobs, "jobs", "", "run only jobs whose names match the `pattern`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "benchguest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	selection, err := bench.Select(o.subjects, o.jobs)
	if err != nil {
		return err
	}
	if err := describe(o); err != nil {
		return err
	}
	l, err := newLab(o.size, o.disk)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := l.Close(); err == nil {
			err = closeErr
		}
	}()
	r := runner{options: o, lab: l, out: os.Stdout}
	if err := r.starting(ctx); err != nil {
		return fmt.Errorf("start fio: %w", err)
	}
	for round := 1; round <= o.rounds; round++ {
		for _, subject := range selection.Round(round) {
			if err := r.subject(ctx, round, subject); err != nil {
				return fmt.Errorf("round %d, %s: %w", round, subject.Name, err)
			}
		}
	}
	// At the end: to switch a tracepoint on and off is what an emulated machine has died of.
	for _, subject := range selection.Plan() {
		if err := r.counts(ctx, subject); err != nil {
			return fmt.Errorf("count system calls of %s: %w", subject.Name, err)
		}
	}
	return bench.Event{Kind: bench.KindDone}.Emit(os.Stdout)
}
