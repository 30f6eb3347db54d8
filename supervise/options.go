package supervise

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

// Options say what is supervised. The zero value lacks RunDir and Args.
type Options struct {
	// RunDir is the run directory of the daemon, an absolute path, by convention in /run.
	RunDir string
	// Args are the arguments of coppice after --run-dir RunDir, such as {"daemon", "--config", "/etc/coppice/root.toml"}.
	Args []string
	// Files are files and directories, absolute paths, that the daemon finds copies of at the same paths. What does not exist
	// is left out, symbolic links are followed, and together they may have 32 MiB.
	Files []string
	// Binds are directories, absolute paths, that the daemon sees as they are now, without what is mounted below them, beside /dev,
	// /proc, /run and /sys: such as a mounted share that roots are read from. They stay in use for ever.
	Binds []string
	// Env are variables for the daemon, as KEY=VALUE; it gets none of the caller's but PATH and those that begin with COPPICE_ or GO.
	Env []string
	// Program is the path of the program. "" means that of this process.
	Program string
	// Log is the path of what both write their logs to. "" means /dev/kmsg.
	Log string
}

// Where things are in Start's child.
const (
	logPath      = "/dev/kmsg"
	name         = "@coppice"
	settingsFile = 3
	statusFile   = 4
	programFile  = 5
)

func (o Options) validate() error {
	var errs []error
	paths := slices.Concat([]string{o.RunDir}, o.Files, o.Binds)
	for _, p := range paths {
		if !filepath.IsAbs(p) {
			errs = append(errs, fmt.Errorf("%q is not an absolute path", p))
		}
	}
	if len(o.Args) == 0 {
		errs = append(errs, errors.New("no arguments for the daemon"))
	}
	return errors.Join(errs...)
}
