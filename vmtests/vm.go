package vmtests

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"coppice/vmtests/wire"
)

// Config describes a VM. The zero value of every field but Name is useful.
type Config struct {
	Name       string            // shown in the process list and in messages
	CPUs       int               // default 2
	MemMiB     int               // default 2048
	Disks      []Disk            //
	Modules    []string          // kernel modules to load before the agent answers; options may follow the name
	Files      map[string]string // path in the guest → file or directory on the host; copied into the initramfs
	Userland   bool              // run in the Debian userland with its tools; false: a bare initramfs
	System     string            // name of the ext4 disk whose system boots, until its login prompt; there is no agent then: only Close, Kill and Report are of use
	Union      *Union            // instead of System: the system's disk is one that coppice makes in the guest; there is a Network then, and it is set up
	Own        *OwnKernel        // a system boots by itself, and the agent is one of its services; Modules, Files and Userland mean nothing then
	Until      string            // with Own: Boot returns when the console has this text, and VM.Greet waits for the agent
	Network    bool              // a network card eth0, not set up, on a network of QEMU's own; see [HostAddr]
	Forward    map[int]int       // with Network: TCP port of this machine's loopback → port of the guest
	KernelArgs string            // appended to the kernel command line
	Terminal   string            // Unix socket of this machine that the console connects to, for who types at it; "": nobody does
	Consoles   string            // directory that gets what the console said when the VM is gone, in a file of its own; "": nobody needs it then
	Counted    bool              // one virtual CPU, emulated, on which time is what it has executed: 1 ns an instruction while it is busy, whatever else the host does
	QEMUArgs   []string          // more arguments of QEMU, such as "-smbios" or "-fw_cfg" and their values
}

// OwnKernel is what a machine starts that has not the kernel and the initramfs of the harness.
type OwnKernel struct {
	Image, Initrd string            // files on this machine
	Files         map[string]string // path in the initramfs → file on this machine, beside what Initrd has
	Netboot       string            // instead of both: URL of the script that the firmware (iPXE) gets by the network's DHCP and follows; KernelArgs are in it then
}

// Union is a disk of an image and a leaf. The guest has /usr/local/bin/coppice and what that needs in Files, starts its daemon in the initramfs, and makes the
// disk before anything of the system runs.
type Union struct {
	Image string // reference as the guest reaches it
	Leaf  string // name of the disk that becomes the leaf store, whatever is on it
}

// boots tells whether a whole system boots, and nobody answers.
func (c Config) boots() bool { return c.System != "" || c.Union != nil }

// VM is a running guest. Its methods may be called from any goroutine. Close it in the end.
type VM struct {
	cmd     *exec.Cmd
	dir     string
	kept    string       // where the console stays, "" being nowhere
	own     bool         // the system has booted by itself
	port    net.Listener // where QEMU reaches the harness for the agent; nil: QEMU was not started
	greeted chan greeting
	conn    *wire.Conn // nil: the agent has not said hello
	hello   wire.Hello
	exited  chan struct{} // closed when QEMU has ended
	unlock  func()
	close   sync.Once

	mu   sync.Mutex // guards the fields below
	next uint64
	runs map[uint64]chan wire.Event // a nil map: the agent is gone
}

// bootLimit is how long it may take until the agent answers, and systemLimit until a whole system asks for a login.
const (
	bootLimit   = 3 * time.Minute
	systemLimit = 10 * time.Minute
)

// userlandDisk is the serial of the tools image.
const userlandDisk = "userland"

// Boot makes what is missing, starts a VM and waits until its agent answers. All VMs of one process share the machine's
// cores; other processes wait until the last of them is closed.
func (b *Build) Boot(ctx context.Context, cfg Config) (*VM, error) {
	cfg.CPUs, cfg.MemMiB = cmp.Or(cfg.CPUs, 2), cmp.Or(cfg.MemMiB, 2048)
	if cfg.Counted {
		cfg.CPUs = 1
	}
	if err := b.need(ctx, "qemu-system-x86_64"); err != nil {
		return nil, err
	}
	kernel, err := b.Kernel(ctx)
	if err != nil {
		return nil, err
	}
	if cfg.Userland {
		image, err := b.Userland(ctx)
		if err != nil {
			return nil, err
		}
		cfg.Disks = append(slices.Clip(cfg.Disks), Disk{Name: userlandDisk, Path: image, ReadOnly: true})
	}
	accel := TCG
	if !cfg.Counted {
		if accel, err = b.accel(ctx, kernel); err != nil {
			return nil, err
		}
	}
	const attempts = 3
	for n := 1; ; n++ {
		vm, err := b.start(ctx, cfg, kernel, accel)
		if err == nil || accel != TCG || n == attempts || !errors.Is(err, ErrEmulator) {
			return vm, err
		}
		b.log("booting VM %s again: %v", cfg.Name, ErrEmulator)
	}
}

// start runs QEMU and waits for the agent's hello.
func (b *Build) start(ctx context.Context, cfg Config, kernel Kernel, accel Accel) (*VM, error) {
	guest, err := b.Binary(ctx, "./vmtests/guest")
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "coppice-vm-")
	if err != nil {
		return nil, err
	}
	vm := &VM{
		dir: dir, own: cfg.Own != nil, greeted: make(chan greeting, 1), exited: make(chan struct{}),
		runs: make(map[uint64]chan wire.Event), next: 1,
	}
	if initrd := filepath.Join(dir, "initrd"); vm.own {
		err = cfg.Own.writeInitrd(initrd)
	} else {
		err = writeInitrd(initrd, cfg, kernel, guest)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write initramfs: %w", err), os.RemoveAll(dir))
	}
	unlock, place, err := acquireMachine(filepath.Join(b.dir, "machine.lock"))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	vm.unlock = unlock
	if cfg.Consoles != "" {
		vm.kept = filepath.Join(cfg.Consoles, fmt.Sprintf("%s-%s.console", cfg.Name, time.Now().Format("150405.000")))
	}
	if err := vm.launch(ctx, qemuArgs(cfg, kernel, accel, dir), cfg, place); err != nil {
		err = fmt.Errorf("boot VM %s: %w", cfg.Name, vm.gone(err))
		return nil, errors.Join(err, vm.Kill())
	}
	return vm, nil
}

// launch starts QEMU, pins its CPU threads to the cores from the given one on, and waits for the agent.
func (vm *VM) launch(ctx context.Context, args []string, cfg Config, core int) error {
	var err error
	if vm.port, err = net.Listen("unix", filepath.Join(vm.dir, "agent")); err != nil {
		return fmt.Errorf("listen for agent: %w", err)
	}
	go func() { vm.greeted <- greet(vm.port) }() // ends when QEMU is gone and the port is closed
	vm.cmd = exec.Command("qemu-system-x86_64", args...)
	var stderr strings.Builder
	vm.cmd.Stderr = &stderr
	vm.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := startFromLastingThread(vm.cmd); err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	go func() {
		_ = vm.cmd.Wait()
		close(vm.exited)
	}()
	if err := pinCPUs(vm.cmd.Process.Pid, cfg.CPUs, core); err != nil {
		return errors.Join(err, errors.New(stderr.String()))
	}
	limit := bootLimit
	if cfg.boots() || vm.own {
		limit = systemLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	switch {
	case cfg.boots():
		err = vm.prompted(ctx)
	case cfg.Until != "":
		err = vm.Says(ctx, cfg.Until)
	default:
		err = vm.Greet(ctx)
	}
	if said := stderr.String(); err != nil && vm.ended() {
		err = fmt.Errorf("%w: QEMU: %s %s", err, vm.cmd.ProcessState, said)
	}
	return err
}

// ended tells whether QEMU has.
func (vm *VM) ended() bool {
	select {
	case <-vm.exited:
		return true
	default:
		return false
	}
}

// prompted waits until the console asks for a login. Until then the guest speaks only where it cannot boot the system, and then it is gone.
func (vm *VM) prompted(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case g := <-vm.greeted:
			vm.greeted <- g // for Kill
			cancel(g.err)
		case <-ctx.Done():
		}
	}()
	if err := vm.Says(ctx, "login: "); err != nil {
		return err
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.runs = nil // there is nobody who runs commands
	return nil
}

// gaveUp are texts on the console of a system that will never boot.
var gaveUp = []string{"(initramfs)", "You are in emergency mode", "Kernel panic"}

// Says waits until the console has a text, which it may have already. A system that has given up says nothing more.
func (vm *VM) Says(ctx context.Context, text string) error { return vm.says(ctx, text, gaveUp) }

// says is Says with other signs that the text will not come.
func (vm *VM) says(ctx context.Context, text string, signs []string) error {
	for {
		console := vm.console()
		if strings.Contains(console, text) {
			return nil
		}
		for _, sign := range signs {
			if strings.Contains(console, sign) {
				return fmt.Errorf("wait for %q on the console: it says %q", text, sign)
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-vm.exited:
			return fmt.Errorf("wait for %q on the console: %w", text, ErrGuestGone)
		case <-ctx.Done():
			return fmt.Errorf("wait for %q on the console: %w", text, context.Cause(ctx))
		}
	}
}

// greeting is the begin of an agent's connection.
type greeting struct {
	stream net.Conn // nil: there is none
	conn   *wire.Conn
	hello  wire.Hello
	err    error
}

// greet accepts QEMU's connection and reads the agent's first event.
func greet(port net.Listener) greeting {
	stream, err := port.Accept()
	if err != nil {
		return greeting{err: fmt.Errorf("accept agent: %w", err)}
	}
	g := greeting{stream: stream, conn: wire.NewConn(stream)}
	var first wire.Event
	switch err := g.conn.Receive(&first); {
	case err != nil:
		g.err = fmt.Errorf("receive hello: %w", err)
	case first.Hello == nil:
		g.err = fmt.Errorf("prepare guest: %s", first.Fatal)
	default:
		g.hello = *first.Hello
	}
	return g
}

// Greet waits until the agent answers. Boot has done so, unless there was a text to wait for. It may be called once.
func (vm *VM) Greet(ctx context.Context) error {
	select {
	case g := <-vm.greeted:
		vm.greeted <- g // for Kill
		if g.err != nil {
			return g.err
		}
		vm.conn, vm.hello = g.conn, g.hello
		go vm.receive()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for agent: %w", ctx.Err())
	}
}

// receive hands events to the runs they belong to until the agent is gone.
func (vm *VM) receive() {
	for {
		var ev wire.Event
		err := vm.conn.Receive(&ev)
		vm.mu.Lock()
		if err != nil {
			for _, ch := range vm.runs {
				close(ch)
			}
			vm.runs = nil
			vm.mu.Unlock()
			return
		}
		ch := vm.runs[ev.ID]
		vm.mu.Unlock()
		if ch != nil {
			ch <- ev
		}
	}
}

// Hello is what the guest said about itself when it came up.
func (vm *VM) Hello() wire.Hello { return vm.hello }

// writeInitrd concatenates the kernel's modules with this VM's own archive: kernels unpack one after the other.
func writeInitrd(path string, cfg Config, kernel Kernel, guest string) error {
	boot := wire.Boot{System: cfg.System, Modules: append([]string{"virtio_blk", "configfs"}, cfg.Modules...)}
	if cfg.Network {
		boot.Modules = append(boot.Modules, "virtio_net")
	}
	if u := cfg.Union; u != nil {
		boot.Modules = append(boot.Modules, "ublk_drv")
		boot.Union = &wire.Union{Address: GuestAddr, Image: u.Image, Leaf: u.Leaf}
	}
	for _, d := range cfg.Disks {
		boot.Disks = append(boot.Disks, d.Name)
	}
	if cfg.Userland {
		boot.Userland = userlandDisk
	}
	for inGuest := range cfg.Files {
		boot.Links = append(boot.Links, wire.Link{Path: inGuest, Target: harnessPath(inGuest)})
	}
	text, err := json.Marshal(boot)
	if err != nil {
		return err
	}
	err = writeArchive(path, func(w *cpioWriter) error {
		return errors.Join(w.file("init", guest), w.bytes(wire.BootFile[1:], 0o644, text), addFiles(w, cfg.Files))
	})
	if err != nil {
		return err
	}
	return appendFile(path, kernel.Modules)
}

// writeInitrd puts more files before the system's own initramfs, which the kernel unpacks after them.
func (k *OwnKernel) writeInitrd(path string) error {
	if k.Netboot != "" {
		return nil
	}
	err := writeArchive(path, func(w *cpioWriter) error {
		for _, inside := range slices.Sorted(maps.Keys(k.Files)) {
			if err := w.file(strings.TrimPrefix(inside, "/"), k.Files[inside]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return appendFile(path, k.Initrd)
}

// harnessPath is where a file for the guest lies in the initramfs; the guest links it to where it is wanted.
func harnessPath(inGuest string) string { return "/harness/files" + filepath.Clean("/"+inGuest) }

func addFiles(w *cpioWriter, files map[string]string) error {
	for inGuest, onHost := range files {
		name := harnessPath(inGuest)[1:]
		if err := w.dir(filepath.Dir(name)); err != nil {
			return err
		}
		if err := w.addTree(onHost, name); err != nil {
			return fmt.Errorf("add %s: %w", onHost, err)
		}
	}
	return nil
}

func appendFile(path, other string) error {
	dst, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	src, err := os.Open(other)
	if err != nil {
		return errors.Join(err, dst.Close())
	}
	defer src.Close()
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
