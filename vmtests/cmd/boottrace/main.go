// Command boottrace boots the Debian root in a VM and writes what it read of its disk until the login prompt, as a trace that package cache/trace
// reads.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"coppice/vmtests"
)

func main() {
	var cfg vmtests.Config
	out := flag.String("o", "", "file to write")
	flag.IntVar(&cfg.CPUs, "cpus", 2, "virtual CPUs")
	flag.IntVar(&cfg.MemMiB, "mem", 2048, "memory in MiB")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: boottrace -o FILE [-cpus N] [-mem MIB]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, cfg, *out)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "boottrace:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cfg vmtests.Config, path string) error {
	build, err := vmtests.NewBuild(func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "boottrace: "+format+"\n", args...)
	})
	if err != nil {
		return err
	}
	t, err := build.TraceBoot(ctx, cfg)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := errors.Join(t.Write(&text), os.WriteFile(path, text.Bytes(), 0o644)); err != nil {
		return err
	}
	const chunk = 64 << 10
	fmt.Printf("%d reads of %d KiB in %.1f s; %d chunks of %d KiB\n", len(t.Reads), t.Bytes()>>10, t.Prompt.Seconds(), len(t.Chunks(chunk)), chunk>>10)
	return nil
}
