package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"

	"coppice/ebpf"
	"coppice/ebpf/boottrace"
	"coppice/node"
)

type readersCmd struct {
	output
	ebpfPins
	Name string `arg:"" help:"Name of the device."`
}

type readersReport struct {
	Device string `json:"device"`
	*ebpf.DiskReaders
}

// Run shows who reads. The daemon says which disk it is; the numbers are the kernel's.
func (c *readersCmd) Run(env *environment) error {
	d, err := env.client().Inspect(env.ctx, c.Name)
	if err != nil {
		return err
	}
	rep, err := readersOf(c.Pins, d)
	if err != nil {
		return explainReaders(fmt.Errorf("show who reads %s: %w", c.Name, err))
	}
	return c.print(env.out, rep, func(w io.Writer) { writeReaders(w, rep) })
}

// explainReaders says what to do about an error with what counts who reads.
func explainReaders(err error) error {
	switch {
	case errors.Is(err, ebpf.ErrNoReaders):
		return &node.Error{Code: node.CodeNotMeasured, Message: err.Error(), Hint: "load them: coppice ebpf load --readers"}
	case errors.Is(err, fs.ErrPermission):
		return &node.Error{Code: node.CodeForbidden, Message: err.Error(), Hint: "run it as root"}
	}
	return err
}

func readersOf(pins string, d node.Device) (readersReport, error) {
	disk := filepath.Base(d.Path)
	id, err := ebpf.DiskIDOf("/sys", disk)
	if err != nil {
		return readersReport{}, err
	}
	r, err := ebpf.OpenReaders(pins)
	if err != nil {
		return readersReport{}, err
	}
	defer func() { _ = r.Close() }()
	all, err := r.Of([]ebpf.DiskID{id})
	if err != nil {
		return readersReport{}, err
	}
	rep := readersReport{d.Name, all[id]}
	if rep.Cached, err = r.Cached("/sys", disk); err != nil {
		return readersReport{}, err
	}
	paths := boottrace.CgroupPaths(cgroupMount)
	for i := range rep.Cgroups {
		rep.Cgroups[i].Path = paths[rep.Cgroups[i].ID]
	}
	return rep, nil
}

func writeReaders(w io.Writer, rep readersReport) {
	if rep.Total.Reads+rep.Total.Writes == 0 {
		fmt.Fprintln(w, "no requests yet")
		return
	}
	heading := []string{"", "READS", "READ", "WRITES", "WRITTEN", "MISSES", "FROM PEERS", "FROM APPLIANCES", "FROM ROOT"}
	show := func(what string, lines [][]string, forgotten ebpf.Did) {
		if forgotten.Reads+forgotten.Writes > 0 {
			lines = append(lines, readersLine("(forgotten: there was no room)", forgotten))
		}
		heading[0] = what
		table(w, heading, lines)
		fmt.Fprintln(w)
	}
	var lines [][]string
	for _, p := range rep.Processes {
		name := "(not known)"
		if p.PID != 0 {
			name = showName(p.Name) + " " + strconv.FormatUint(uint64(p.PID), 10)
		}
		lines = append(lines, readersLine(name, p.Did))
	}
	show("PROCESS", lines, rep.ForgottenProcesses)
	lines = nil
	for _, g := range rep.Cgroups {
		name := showName(g.Path)
		if g.Path == "" {
			name = fmt.Sprintf("(number %d, which is gone)", g.ID)
		}
		lines = append(lines, readersLine(name, g.Did))
	}
	show("CGROUP", lines, rep.ForgottenCgroups)
	fmt.Fprintf(w, "%s\n", showCached(rep))
}

func readersLine(name string, d ebpf.Did) []string {
	misses := uint64(0)
	for _, n := range d.Misses {
		misses += n
	}
	line := []string{name, strconv.FormatUint(d.Reads, 10), showBytes(int64(d.ReadBytes)), strconv.FormatUint(d.Writes, 10), showBytes(int64(d.WriteBytes)), strconv.FormatUint(misses, 10)}
	for _, from := range []string{"peer", "appliance", "root"} {
		line = append(line, showBytes(int64(d.MissBytes[from])))
	}
	return line
}

// showCached says what the page cache has spared the device: programs had so much through it, and the device gave so much to it.
func showCached(rep readersReport) string {
	if rep.Cached == nil {
		return "page cache: not counted here"
	}
	had, gave := rep.Cached.ReadBytes, rep.Total.FilledBytes
	text := fmt.Sprintf("page cache: programs read %s and touched %s, the device gave %s", showBytes(int64(had)), count(rep.Cached.Faults, "mapped page"), showBytes(int64(gave)))
	if had > gave {
		text += fmt.Sprintf("; %s of what they read was in RAM", percent(1-float64(gave)/float64(had)))
	}
	return text
}
