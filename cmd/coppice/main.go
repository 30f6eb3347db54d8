// Command coppice gives a machine writable disks over shared read-only root images: its daemon serves
// them, its other commands talk to the daemon or work on leaf stores. See docs/cli.md.
package main

import "os"

// version is set by the linker: -ldflags "-X main.version=1.2.3".
var version string

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}
