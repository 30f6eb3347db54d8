package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"coppice/bench"
)

// A device is a block device under test.
type device struct {
	path   string
	pid    int                    // process that serves it; 0: none but the kernel
	allocs func() (uint64, error) // how many objects that process has allocated; nil: unknown
	close  func() error
}

// runner does jobs on subjects and prints what they did.
type runner struct {
	options
	lab   *lab
	out   io.Writer
	start time.Duration // of CPU that fio takes to start and end
}

// subject does all jobs of a subject, on one device or on a fresh one for each.
func (r *runner) subject(ctx context.Context, round int, s bench.Subject) error {
	if s.Jobs[0].RW == "" {
		return r.creations(ctx, round, s)
	}
	if !s.Fresh {
		return r.withDevice(ctx, s.Name, func(d *device) error {
			for _, job := range s.Jobs {
				if err := r.job(ctx, d, round, s, job); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for _, job := range s.Jobs {
		if err := r.withDevice(ctx, s.Name, func(d *device) error { return r.job(ctx, d, round, s, job) }); err != nil {
			return err
		}
	}
	return nil
}

// counts does all jobs of a subject once more, to count system calls.
func (r *runner) counts(ctx context.Context, s bench.Subject) error {
	if s.Jobs[0].RW == "" {
		return nil
	}
	for _, job := range s.Jobs {
		if err := r.withDevice(ctx, s.Name, func(d *device) error { return r.count(ctx, d, s, job) }); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) withDevice(ctx context.Context, name bench.SubjectName, use func(*device) error) error {
	d, err := r.lab.device(ctx, name)
	if err != nil {
		return fmt.Errorf("make device: %w", err)
	}
	err = use(d)
	if closeErr := d.close(); closeErr != nil {
		err = errors.Join(err, fmt.Errorf("remove device: %w", closeErr))
	}
	return err
}

// timed carries out what a job measures, between the two events that say so.
func (r *runner) timed(round int, s bench.Subject, job bench.Job, measure func() (bench.Figure, error)) error {
	event := bench.Event{Kind: bench.KindStart, Round: round, Subject: s.Name, Job: job.Name}
	if err := event.Emit(r.out); err != nil {
		return err
	}
	figure, err := measure()
	if err != nil {
		return fmt.Errorf("%s: %w", job.Name, err)
	}
	event.Kind, event.Figure = bench.KindEnd, &figure
	return event.Emit(r.out)
}

func (r *runner) job(ctx context.Context, d *device, round int, s bench.Subject, job bench.Job) error {
	return r.timed(round, s, job, func() (figure bench.Figure, err error) {
		allocs, err := d.allocations()
		if err != nil {
			return figure, err
		}
		before, err := busyTime()
		if err != nil {
			return figure, err
		}
		if figure, err = r.fio(ctx, d, job, r.perJob, s.Fresh); err != nil {
			return figure, err
		}
		after, err := busyTime()
		if err != nil {
			return figure, err
		}
		figure.CPUPerIOUS = float64(max(0, after-before-r.start).Microseconds()) / float64(figure.IOs)
		figure.AllocsPerIO, err = allocs(figure.IOs)
		return figure, err
	})
}

// starting measures what it takes to start and end fio: the least of some jobs of few requests.
func (r *runner) starting(ctx context.Context) error {
	return r.withDevice(ctx, bench.Baseline, func(d *device) error {
		for range 5 {
			before, err := busyTime()
			if err != nil {
				return err
			}
			if _, err := r.fio(ctx, d, bench.RandRead1, r.perJob, true, "--number_ios=64"); err != nil {
				return err
			}
			after, err := busyTime()
			if err != nil {
				return err
			}
			if took := after - before; r.start == 0 || took < r.start {
				r.start = took
			}
		}
		return nil
	})
}

// countedTime is how long a pass takes that counts system calls.
const countedTime = 300 * time.Millisecond

// count does a job once more, with the system calls of the device's process counted.
func (r *runner) count(ctx context.Context, d *device, s bench.Subject, job bench.Job) error {
	if d.pid == 0 {
		return nil
	}
	calls, err := countSyscalls(d.pid)
	if err != nil {
		return err
	}
	figure, err := r.fio(ctx, d, job, countedTime, s.Fresh)
	n, countErr := calls()
	if err := errors.Join(err, countErr); err != nil {
		return fmt.Errorf("%s, counting: %w", job.Name, err)
	}
	per := float64(n) / float64(figure.IOs)
	return bench.Event{
		Kind: bench.KindCount, Round: 1, Subject: s.Name, Job: job.Name, Figure: &bench.Figure{IOs: figure.IOs, SyscallsPerIO: &per},
	}.Emit(r.out)
}

// allocations begins to count what the device's process allocates. Asking it allocates too: how much is found out first.
func (d *device) allocations() (since func(requests int64) (*float64, error), err error) {
	if d.allocs == nil {
		return func(int64) (*float64, error) { return nil, nil }, nil
	}
	var at [3]uint64
	for i := range at {
		if at[i], err = d.allocs(); err != nil {
			return nil, err
		}
	}
	return func(requests int64) (*float64, error) {
		now, err := d.allocs()
		if err != nil {
			return nil, err
		}
		n := float64(now-at[2]) - float64(at[2]-at[1])
		per := max(0, n) / float64(requests)
		return &per, nil
	}, nil
}

func (r *runner) fio(ctx context.Context, d *device, job bench.Job, limit time.Duration, once bool, more ...string) (bench.Figure, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return bench.Figure{}, err
	}
	defer os.RemoveAll(dir)
	result := filepath.Join(dir, "fio.json")
	args := append(job.Args(d.path, limit, once, result), "--size="+strconv.FormatInt(r.size, 10))
	args = append(args, more...)
	words, runErr := exec.CommandContext(ctx, "fio", args...).CombinedOutput()
	output, err := os.ReadFile(result)
	if err != nil || runErr != nil {
		return bench.Figure{}, fmt.Errorf("run fio: %w: %s", errors.Join(runErr, err), words)
	}
	return bench.ParseFio(output)
}
