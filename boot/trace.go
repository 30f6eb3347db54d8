package boot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"coppice/ebpf"
)

// LatencyPins is where programs are pinned that measure the requests of the root, beside those of the node's own daemon.
const LatencyPins = "/sys/fs/bpf/coppice-root"

// bpfFiles is where a bpf file system is mounted; relative, for tests.
const bpfFiles = "sys/fs/bpf"

// record has the boot recorded where that is asked for. A machine of which that is not possible boots as well.
func (s *starter) record(ctx context.Context) {
	if !s.params.Trace {
		return
	}
	if err := s.startTrace(ctx); err != nil {
		s.console.say("this boot is not recorded: %v", err)
	}
}

// startTrace has the kernel record the requests of the device that is made next, from the first one on, with where their data comes from: the root's daemon, which runs, says that to the
// programs that measure how long requests take. Both stay when this process ends.
func (s *starter) startTrace(ctx context.Context) error {
	if err := ebpf.MountPins(filepath.Join(s.root, bpfFiles)); err != nil {
		return err
	}
	marks := LatencyPins
	if err := s.measure(ctx); err != nil { // what is recorded without is of use, too
		s.console.say("it is not recorded where the data comes from: %v", err)
		marks = ""
	}
	r, err := ebpf.StartRecording(ebpf.TraceConfig{RingBytes: s.params.TraceBytes, Marks: marks})
	if err != nil {
		return err
	}
	s.console.say("the requests of the root are recorded: coppice --run-dir %s trace record %s FILE", RunDir, s.params.Name)
	return r.Close()
}

func (s *starter) measure(ctx context.Context) error {
	l, err := ebpf.Load(ebpf.LoadConfig{Pins: LatencyPins})
	if err != nil {
		return err
	}
	if _, err = s.client.Measure(ctx, l.Maps); err != nil {
		err = fmt.Errorf("have the root's daemon say it: %w", err)
	}
	return errors.Join(err, l.Close())
}
