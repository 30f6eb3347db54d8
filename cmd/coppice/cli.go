package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"strings"
	"syscall"
	"unicode"

	"github.com/alecthomas/kong"

	"coppice/node"
)

// The exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

type cli struct {
	RunDir string `placeholder:"DIR" default:"/run/coppice" env:"COPPICE_RUN_DIR" help:"Run directory of the daemon, where its socket is (${default})."`

	Daemon  daemonCmd  `cmd:"" help:"Serve this machine's devices until stopped."`
	Create  createCmd  `cmd:"" help:"Make a writable device from a root image and a leaf."`
	List    listCmd    `cmd:"" aliases:"ls" help:"List the devices."`
	Inspect inspectCmd `cmd:"" help:"Show all there is to know about a device."`
	Set     setCmd     `cmd:"" help:"Change a device while it is in use."`
	Delete  deleteCmd  `cmd:"" help:"Stop a device that is not in use; its layer stays in the store."`
	Freeze  freezeCmd  `cmd:"" help:"Seal what a live device holds as a layer of its own."`
	Detach  detachCmd  `cmd:"" help:"Make a layer complete, so that it needs neither its root nor other layers."`
	Export  exportCmd  `cmd:"" help:"Write the content of a live device to a file or block device."`
	Changed changedCmd `cmd:"" help:"List what a device holds that is not its root's."`
	Store   storeCmd   `cmd:"" help:"Make and examine leaf stores."`
	Image   imageCmd   `cmd:"" help:"Build, copy and examine root images."`
	CA      caCmd      `cmd:"" name:"ca" help:"Make certificates for nodes and servers of images."`
	Index   indexCmd   `cmd:"" help:"Index the files of root images once, for all nodes, and ask such indexes."`
	Root    rootCmd    `cmd:"" help:"Say where the root of a device is read from, while it is in use."`
	Cache   cacheCmd   `cmd:"" help:"Show, fill and empty the cache of root images."`
	Top     topCmd     `cmd:"" help:"Watch the devices, their roots and stores and the cache, second by second."`
	Latency latencyCmd `cmd:"" help:"Show how long the requests of a device took, by where their data came from."`
	Readers readersCmd `cmd:"" help:"Show which processes and cgroups read and write a device, and what the page cache spares it."`
	EBPF    ebpfCmd    `cmd:"" name:"ebpf" help:"Have requests measured in the kernel, by eBPF programs."`
	Trace   traceCmd   `cmd:"" help:"Record in the kernel what a device is asked for, and have other nodes read that ahead."`
	Serve   serveCmd   `cmd:"" help:"Serve images, and chunks of images from a cache, to other machines."`
	Doctor  doctorCmd  `cmd:"" help:"Tell whether this machine can run Coppice, and what to do where not."`
	Boot    bootCmd    `cmd:"" help:"Bring this machine up on a root device; for the initramfs."`
	Upgrade upgradeCmd `cmd:"" help:"Hand all devices over to another version of this program, while they are in use."`
	Version versionCmd `cmd:"" help:"Show the versions of this program and of the daemon."`

	Supervise    superviseCmd `cmd:"" hidden:"" help:"Keep the daemon of the root file system running; for coppice itself."`
	UpgradeGuard guardCmd     `cmd:"" hidden:"" help:"Come back where a new program does not live; for coppice itself."`
	Manual       manualCmd    `cmd:"" hidden:"" help:"Write pages of the manual and completions of shells; for the package."`
	ThawWatchdog watchdogCmd  `cmd:"" hidden:"" help:"Thaw file systems whose freezer died; for coppice itself."`
}

const description = `Writable disks over shared read-only root images.

A device is /dev/ublkbN: what was written to it is in a layer of a leaf store, the rest comes from its root.

Exit codes: 0 done, 1 failed, 2 wrong usage. Sizes are bytes, or take K, M, G, T, P (or KiB...) for powers of 1024 and KB, MB... for powers of 1000.`

// environment is what commands get to work with.
type environment struct {
	ctx    context.Context
	out    io.Writer
	err    io.Writer
	runDir string
}

func (e *environment) version() string {
	if version != "" {
		return version
	}
	return node.Version()
}

func (e *environment) client() *node.Client { return node.NewClient(e.runDir, e.version()) }

// newParser makes the parser of the command line.
func newParser(c any, out, errOut io.Writer, exit func(int)) (*kong.Kong, error) {
	return kong.New(c, kong.Name("coppice"), kong.Description(description), kong.Writers(out, errOut),
		kong.ConfigureHelp(kong.HelpOptions{Compact: false, WrapUpperBound: 100}),
		kong.Vars{"config": node.DefaultConfigPath, "devices": node.DefaultDevicesPath},
		kong.Exit(exit))
}

// grammar returns a pointer to what the command line is read into: a struct like cli with no other command than the one that the first argument names, because to go through all of
// them takes longer than most of them, and cli itself where it names none.
func grammar(args []string) reflect.Value {
	all := reflect.TypeFor[cli]()
	if len(args) > 0 {
		for i := range all.NumField() {
			f := all.Field(i)
			if _, command := f.Tag.Lookup("cmd"); !command || cmp.Or(f.Tag.Get("name"), commandName(f.Name)) != args[0] {
				continue
			}
			runDir, _ := all.FieldByName("RunDir")
			return reflect.New(reflect.StructOf([]reflect.StructField{runDir, f}))
		}
	}
	return reflect.New(all)
}

// commandName is what kong calls a field's command.
func commandName(field string) string {
	var b strings.Builder
	for i, r := range field {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// run is the whole program: it returns the exit code.
func run(args []string, out, errOut io.Writer) int {
	c := grammar(args)
	exit := -1
	parser, err := newParser(c.Interface(), out, errOut, func(code int) { exit = code })
	if err != nil {
		panic(err) // the struct above is wrong
	}
	k, err := parser.Parse(args)
	if exit >= 0 { // --help has been printed
		return exit
	}
	if err != nil {
		fmt.Fprintf(errOut, "coppice: %s\n  to do: coppice --help, or coppice COMMAND --help\n", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	env := &environment{ctx: ctx, out: out, err: errOut, runDir: c.Elem().FieldByName("RunDir").String()}
	if err := k.Run(env); err != nil {
		return report(errOut, err)
	}
	return exitOK
}

// errSilent fails a command that has printed what is wrong.
var errSilent = errors.New("failed")

// report says on errOut what went wrong and what to do.
func report(errOut io.Writer, err error) int {
	if errors.Is(err, errSilent) {
		return exitFailed
	}
	e := node.Explain(err)
	fmt.Fprintf(errOut, "coppice: %s\n", e.Message)
	if e.Hint != "" {
		fmt.Fprintf(errOut, "  to do: %s\n", e.Hint)
	}
	return exitFailed
}
