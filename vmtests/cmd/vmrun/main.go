// Command vmrun runs a command, or the VM tests of a package, in a guest and streams their output. Its exit status is the
// command's own; 1 where the VM failed, 2 for bad usage.
package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"coppice/vmtests"
)

type options struct {
	config   vmtests.Config
	scratch  []string
	packages []string
	debian   string
	pattern  string
	tags     []string
	coppice  bool
	limit    time.Duration
}

func main() {
	opts, command := parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status, err := run(ctx, opts, command)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmrun:", err)
		status = 1
	}
	os.Exit(status)
}

func parse() (*options, []string) {
	o := &options{config: vmtests.Config{Name: "run", Files: map[string]string{}}}
	flag.Usage = usage
	flag.IntVar(&o.config.CPUs, "cpus", 2, "virtual CPUs")
	flag.IntVar(&o.config.MemMiB, "mem", 2048, "memory in MiB")
	flag.BoolVar(&o.config.Userland, "userland", true, "run in the Debian userland (fio, nbdkit, dmsetup ...); false: bare initramfs")
	flag.StringVar(&o.config.KernelArgs, "append", "", "more words for the kernel command line")
	flag.BoolVar(&o.config.Counted, "counted", false, "one virtual CPU whose time is the instructions that it has executed, 1 ns each")
	flag.BoolVar(&o.coppice, "coppice", true, "build cmd/coppice and put it into /usr/local/bin")
	flag.DurationVar(&o.limit, "timeout", 10*time.Minute, "time limit of the command or of each package")
	flag.StringVar(&o.pattern, "run", "", "with -test: only tests that match this pattern")
	flag.Func("module", "kernel module to load, with options after a space (repeatable); ublk_drv is always loaded", func(s string) error {
		o.config.Modules = append(o.config.Modules, s)
		return nil
	})
	flag.Func("file", "GUEST=HOST: copy a file or directory into the guest (repeatable)", func(s string) error {
		guest, host, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("want GUEST=HOST")
		}
		o.config.Files[guest] = host
		return nil
	})
	flag.Func("disk", "NAME=PATH[,snapshot][,ro][,cache=MODE][,log=PATH]: disk /dev/disk/by-id/virtio-NAME (repeatable)", func(s string) error {
		d, err := parseDisk(s)
		o.config.Disks = append(o.config.Disks, d)
		return err
	})
	flag.Func("scratch", "NAME=SIZE: empty disk that is dropped in the end, e.g. leaf=4G (repeatable)", func(s string) error {
		o.scratch = append(o.scratch, s)
		return nil
	})
	flag.Func("test", "package whose VM tests to run, e.g. ./ublk (repeatable); no command then", func(s string) error {
		o.packages = append(o.packages, s)
		return nil
	})
	flag.Func("tags", "with -test: another build tag, beside vm, e.g. long (repeatable)", func(s string) error {
		o.tags = append(o.tags, s)
		return nil
	})
	flag.StringVar(&o.debian, "image", "", "attach real root images by name, comma-separated: debian, gpt, xfs, repo; as read-only disks of that name")
	flag.Parse()
	if (len(o.packages) == 0) == (flag.NArg() == 0) {
		fmt.Fprintln(os.Stderr, "vmrun: give a command, or packages with -test")
		os.Exit(2)
	}
	o.config.Modules = append([]string{"ublk_drv"}, o.config.Modules...)
	return o, flag.Args()
}

func usage() {
	fmt.Fprintf(flag.CommandLine.Output(), "usage: vmrun [flags] -- COMMAND [ARG...]\n       vmrun [flags] -test ./PACKAGE [-run PATTERN]\n")
	flag.PrintDefaults()
}

func parseDisk(spec string) (vmtests.Disk, error) {
	name, rest, ok := strings.Cut(spec, "=")
	words := strings.Split(rest, ",")
	if !ok || words[0] == "" {
		return vmtests.Disk{}, fmt.Errorf("want NAME=PATH")
	}
	d := vmtests.Disk{Name: name, Path: words[0]}
	for _, w := range words[1:] {
		switch {
		case w == "snapshot":
			d.Snapshot = true
		case w == "ro":
			d.ReadOnly = true
		case strings.HasPrefix(w, "cache="):
			d.Cache = w[len("cache="):]
		case strings.HasPrefix(w, "log="):
			d.WriteLog = w[len("log="):]
		default:
			return d, fmt.Errorf("unknown word %q", w)
		}
	}
	return d, nil
}

// run boots the VM and returns the exit status of what ran in it.
func run(ctx context.Context, o *options, command []string) (status int, err error) {
	build, err := vmtests.NewBuild(func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "vmrun: "+format+"\n", args...)
	})
	if err != nil {
		return 0, err
	}
	tests, err := prepare(ctx, build, o)
	if err != nil {
		return 0, err
	}
	scratch, cleanup, err := build.Scratch(o.scratch)
	if err != nil {
		return 0, err
	}
	defer cleanup()
	o.config.Disks = append(o.config.Disks, scratch...)
	start := time.Now()
	vm, err := build.Boot(ctx, o.config)
	if err != nil {
		return 0, err
	}
	defer func() {
		if closeErr := vm.Close(); err == nil {
			err = closeErr
		}
	}()
	fmt.Fprintf(os.Stderr, "vmrun: Linux %s, %d CPUs, up in %.1f s\n", vm.Hello().Kernel, vm.Hello().CPUs, time.Since(start).Seconds())
	if len(tests) > 0 {
		return runTests(ctx, vm, tests, o.limit)
	}
	exit, err := vm.Run(ctx, vmtests.Job{Argv: command, Timeout: o.limit, Output: os.Stdout})
	if err != nil {
		return 0, err
	}
	if !exit.OK() {
		fmt.Fprintf(os.Stderr, "vmrun: %s\n%s", exit, exit.Dump)
	}
	if exit.Code == 0 && !exit.OK() {
		return 1, nil
	}
	return max(exit.Code, -exit.Code), nil
}

// prepare builds what goes into the guest.
func prepare(ctx context.Context, build *vmtests.Build, o *options) ([]*vmtests.GuestTests, error) {
	var tests []*vmtests.GuestTests
	for _, pkg := range o.packages {
		g, err := build.GuestTests(ctx, pkg, o.tags...)
		if err != nil {
			return nil, err
		}
		if err := g.Select(o.pattern); err != nil {
			return nil, err
		}
		maps.Copy(o.config.Files, g.Files())
		tests = append(tests, g)
	}
	if o.coppice {
		binary, err := build.Binary(ctx, "./cmd/coppice")
		if err != nil {
			return nil, err
		}
		o.config.Files["/usr/local/bin/coppice"] = binary
	}
	if o.debian != "" {
		for name := range strings.SplitSeq(o.debian, ",") {
			disk, err := build.ImageDisk(ctx, name)
			if err != nil {
				return nil, err
			}
			o.config.Disks = append(o.config.Disks, disk)
		}
	}
	return tests, nil
}

func runTests(ctx context.Context, vm *vmtests.VM, tests []*vmtests.GuestTests, limit time.Duration) (int, error) {
	status := 0
	for _, g := range tests {
		results, problem, err := vm.RunTests(ctx, g, limit, os.Stdout)
		if err != nil {
			return 0, err
		}
		if problem != "" {
			fmt.Fprintln(os.Stderr, problem)
			status = 1
		}
		for _, r := range results {
			if r.Outcome != "pass" {
				fmt.Fprintf(os.Stderr, "vmrun: %s %s: %q, want pass\n", g.Package, r.Name, r.Outcome)
				status = 1
			}
		}
	}
	return status, nil
}
