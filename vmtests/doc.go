// Package vmtests boots QEMU guests with Debian's 6.12 cloud kernel and runs things in them: the parts of this project
// that need a kernel with ublk, NBD, device mapper and the like, on machines whose own kernel has none of them.
//
// # Running
//
//	go test ./vmtests                                          unit tests of the harness; no VM
//	go test -tags vm ./vmtests -count=1 -v -timeout 60m        every VM test of the repository ("make vm")
//	go test -tags vm ./vmtests -run 'TestPackages/ublk$' -v    the VM tests of one package
//	go run ./vmtests/cmd/vmrun -h                              one command, or one package's tests, in a VM
//
// The build tag vm marks all tests that need a VM. In this package they are the host side: they compile the others, boot
// a VM, run them there and report each as a subtest of its own. Everywhere else such tests live beside the code they
// test and run inside a guest. Which tests must run is read from the sources: one that does not appear in the guest's
// results, or is skipped there, fails.
//
// A VM that cannot be made or booted is a failure, never a skip. Needed programs are installed by apt, images are built
// once and cached under build/vm; both need root. Only one process at a time runs VMs (build/vm/machine.lock): their
// virtual CPUs are pinned to host cores.
//
// # How a guest works
//
// The kernel boots an initramfs that is made anew for each VM: the kernel's modules, the static program
// vmtests/guest as PID 1, and the files of [Config.Files]. PID 1 mounts the kernel's file systems, loads modules, makes
// the Debian userland its root where [Config.Userland] asks for it (read-only disk under a tmpfs overlay) and starts
// the agent, which runs commands for the host over a virtio-serial port (package wire). There is no udev: disks appear as
// /dev/disk/by-id/virtio-NAME by the agent's doing, devices made later have their kernel names only. PATH, HOME, TMPDIR,
// LC_ALL and COPPICE_VM=1 are set for every command.
//
// A guest has no network unless [Config.Network] gives it a card, on QEMU's user network: it then reaches servers on the host's loopback at
// [HostAddr], and nobody reaches it but through the ports of [Config.Forward].
//
// With [Config.System] or [Config.Union], PID 1 makes the disk of a whole system the root and becomes its init; there is no agent then. For a union, it brings the
// network up, starts coppice's daemon, and has it make the disk, of an image on the network and a blank leaf. The daemon stays behind in the initramfs.
//
// With [Config.Own], a system boots by itself, as it would on any machine: with its own kernel and the initramfs that its own tools made ([Build.System]), or from
// the network. The agent is a service in it, and answers when the boot is done. [VM.PowerOff] shuts such a system down, [VM.Kill] cuts its power; a
// machine that is booted with the same disks goes on with what they have. [Config.Until] lets a test see how a boot fails, on the console.
//
// With [Config.Counted], the one virtual CPU's time is what it has executed: an instruction is a nanosecond, on a machine that is quiet and on one that is not. That is for what a
// change costs, where it is less than the noise of all other machines: an instruction takes as long as any other, a miss of the CPU's caches nothing, and nothing runs beside anything. It
// is slow: a second that is busy takes ten.
//
// # Failure model
//
// A command that outlives its time-out gets SIGQUIT (a Go program prints its goroutines), five seconds later SIGKILL;
// before that the agent saves the kernel log with the state of all tasks. A guest that does not answer any more is
// reported with QEMU's command line and the end of its console and killed. The kernel's own BUG, WARNING and Oops lines
// during a command make its result a failure; an Oops ends the guest (oops=panic). QEMU dies with the process that
// started it.
//
// With -artifacts and -outputdir DIR, go test keeps what the consoles of machines that boot by themselves said.
package vmtests
