// Command vmimage makes the named real root images where they are not there yet, and prints the path of each.
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
		disk, err := build.ImageDisk(ctx, name)
		if err != nil {
			return err
		}
		fmt.Println(disk.Path)
	}
	return nil
}
