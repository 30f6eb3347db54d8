package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"coppice/bench"
)

// A device is a block device under test.
type device struct {
	path  string
	close func() error
}

// runner does jobs on subjects and prints what they did.
type runner struct {
	options
	lab *lab
	out io.Writer
}

func (o options) wants(name bench.SubjectName) bool {
	return name == bench.Baseline || slices.ContainsFunc(strings.Split(o.subjects, ","), func(prefix string) bool {
		return strings.HasPrefix(string(name), prefix)
	})
}

// subject does all jobs of a subject, on one device or on a fresh one for each.
func (r *runner) subject(ctx context.Context, round int, s bench.Subject) error {
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
		err := r.withDevice(ctx, s.Name, func(d *device) error { return r.job(ctx, d, round, s, job) })
		if err != nil {
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

func (r *runner) job(ctx context.Context, d *device, round int, s bench.Subject, job bench.Job) error {
	event := bench.Event{Kind: bench.KindStart, Round: round, Subject: s.Name, Job: job.Name}
	if err := event.Emit(r.out); err != nil {
		return err
	}
	figure, err := r.fio(ctx, d, job, s.Fresh)
	if err != nil {
		return fmt.Errorf("%s: %w", job.Name, err)
	}
	event.Kind, event.Figure = bench.KindEnd, &figure
	return event.Emit(r.out)
}

func (r *runner) fio(ctx context.Context, d *device, job bench.Job, once bool) (bench.Figure, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return bench.Figure{}, err
	}
	defer os.RemoveAll(dir)
	result := filepath.Join(dir, "fio.json")
	args := append(job.Args(d.path, r.perJob, once, result), "--size="+strconv.FormatInt(r.size, 10))
	served, err := r.lab.ours.served()
	if err != nil {
		return bench.Figure{}, err
	}
	before, err := busyTime()
	if err != nil {
		return bench.Figure{}, err
	}
	words, runErr := exec.CommandContext(ctx, "fio", args...).CombinedOutput()
	after, err := busyTime()
	if err != nil {
		return bench.Figure{}, err
	}
	output, err := os.ReadFile(result)
	if err != nil || runErr != nil {
		return bench.Figure{}, fmt.Errorf("run fio: %w: %s", errors.Join(runErr, err), words)
	}
	figure, err := bench.ParseFio(output)
	if err != nil {
		return bench.Figure{}, err
	}
	figure.CPUPerIOUS = float64((after - before).Microseconds()) / float64(figure.IOs)
	figure.PerEnter, err = r.lab.ours.perEnter(served)
	return figure, err
}
