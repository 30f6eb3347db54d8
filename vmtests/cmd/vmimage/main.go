// Command vmimage makes the named real root images where they are not there yet, and prints the path of each. The names "system" and
// "system-sysvinit" stand for systems that boot by themselves from a device of coppice's, "system-bare" for one without coppice, and "userland" and "kernel" for the tools
// and the kernel of other guests; "many-files" for a root with 300,000 files.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"coppice/vmtests"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmimage:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, names []string) error {
	build, err := vmtests.NewBuild(func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "vmimage: "+format+"\n", args...)
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		path, err := find(ctx, build, name)
		if err != nil {
			return err
		}
		fmt.Println(path)
	}
	return nil
}

func find(ctx context.Context, build *vmtests.Build, name string) (path string, err error) {
	switch name {
	case "many-files":
		return build.ManyFiles(ctx)
	case "userland":
		return build.Userland(ctx)
	case "kernel":
		kernel, err := build.Kernel(ctx)
		return kernel.Image, err
	case "system-bare":
		system, err := build.System(ctx, "")
		return system.Image, err
	}
	kind, ok := map[string]vmtests.Kind{"system": vmtests.Systemd, "system-sysvinit": vmtests.SysVinit}[name]
	if !ok {
		return build.Image(ctx, name)
	}
	deb, err := build.Package(ctx)
	if err != nil {
		return "", err
	}
	system, err := build.SystemOf(ctx, kind, deb)
	return system.Image, err
}
