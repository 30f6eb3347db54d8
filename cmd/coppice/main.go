// Command coppice gives a machine writable disks over shared read-only root images: its daemon serves
// them, its other commands talk to the daemon or work on leaf stores. See docs/cli.md.
package main

import (
	"os"
	"path/filepath"

	"coppice/supervise"
)

// version is set by the linker: -ldflags "-X main.version=1.2.3".
var version string

func main() {
	if filepath.Base(os.Args[0]) == "shutdown" && os.Getpid() == 1 { // see supervise.InstallShutdown
		supervise.Shutdown(os.Args[1:], os.Stderr)
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}
