package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"coppice/bench"
	"coppice/vmtests"
)

// Memory of the guest, for RAM disks (of which not all is used), page cache, the daemon's cache and system; and the virtio disk.
const (
	guestMemoryMiB = 10 << 10
	ramDiskKiB     = 2 << 20
	virtioDisk     = "bench=1G"
)

// Programs in the guest.
const (
	guestBinary   = "/usr/local/bin/benchguest"
	coppiceBinary = "/usr/local/bin/coppice"
)

// measure runs the plan in a virtual machine of its own. What was measured before an error is returned, too.
func measure(ctx context.Context, build *vmtests.Build, o options) (_ *bench.Run, err error) {
	selection, err := bench.Select(o.subjects, o.jobs)
	if err != nil {
		return nil, err
	}
	guest, err := build.Binary(ctx, "./bench/benchguest")
	if err != nil {
		return nil, err
	}
	product, err := build.Binary(ctx, "./cmd/coppice")
	if err != nil {
		return nil, err
	}
	disks, remove, err := build.Scratch([]string{virtioDisk})
	if err != nil {
		return nil, err
	}
	defer remove()
	vm, err := build.Boot(ctx, vmtests.Config{
		Name: "bench", CPUs: 2, MemMiB: guestMemoryMiB, Userland: true,
		Modules: []string{"brd rd_nr=5 rd_size=" + strconv.Itoa(ramDiskKiB), "loop", "dm-snapshot", "nbd max_part=0", "null_blk nr_devices=1 gb=1", "ublk_drv"},
		Files:   map[string]string{guestBinary: guest, coppiceBinary: product},
		Disks:   disks,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	perJob := time.Duration(o.seconds * float64(time.Second))
	about := selection.EstimatedRun(o.rounds, perJob)
	limit := 10*time.Minute + 3*about
	logf("guest with kernel %s is up; %d rounds, about %v", vm.Hello().Kernel, o.rounds, about.Round(time.Minute))
	w := &watcher{run: bench.NewRun(waits(vm))}
	exit, err := vm.Run(ctx, vmtests.Job{
		Argv: []string{guestBinary, "-rounds", strconv.Itoa(o.rounds), "-per-job", perJob.String(), "-size", strconv.Itoa(o.sizeMiB << 20), "-subjects", o.subjects, "-jobs", o.jobs},
		// A fault in ublk's own code must not be hidden behind a figure.
		Env: []string{"GOTRACEBACK=all"}, Timeout: limit, Output: w,
	})
	if err != nil {
		return w.run, err
	}
	if !exit.OK() || !w.run.Done {
		return w.run, fmt.Errorf("run benchguest: %s\n%s%s", exit, w.words.Bytes(), exit.Dump)
	}
	return w.run, nil
}

// waits adapts the harness's account of disturbed vCPUs.
func waits(vm *vmtests.VM) func() []time.Duration {
	return func() []time.Duration {
		wait, err := vm.HostWait()
		if err != nil {
			logf("read the wait of the virtual CPUs: %v", err)
		}
		return wait
	}
}

// watcher takes the guest's output: events go to the run, all else is kept for an error message.
type watcher struct {
	run   *bench.Run
	line  []byte
	words bytes.Buffer
}

func (w *watcher) Write(p []byte) (int, error) {
	w.line = append(w.line, p...)
	for {
		end := bytes.IndexByte(w.line, '\n')
		if end < 0 {
			return len(p), nil
		}
		line := string(w.line[:end])
		w.line = w.line[end+1:]
		if err := w.take(line); err != nil {
			return 0, err
		}
	}
}

func (w *watcher) take(line string) error {
	e, ok, err := bench.ParseEvent(line)
	if err != nil {
		return err
	}
	if !ok {
		w.words.WriteString(line + "\n")
		logf("guest: %s", line)
		return nil
	}
	if err := w.run.Add(e, time.Now()); err != nil {
		return err
	}
	if e.Kind == bench.KindEnd {
		s := w.run.Samples[len(w.run.Samples)-1]
		logf("round %2d  %-44s %-22s %9.1f a second, vCPU waited %2.0f %%", e.Round, e.Subject, e.Job, e.Figure.IOPS, s.Wait*100)
	}
	return nil
}
