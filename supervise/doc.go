// Package supervise runs the daemon that serves the root file system so that nothing of that file system, and nobody's death
// but the power's, can stop it.
//
// # Processes
//
// [Start], in the initramfs, leaves a supervisor, and that one a daemon. Both have the program in a sealed file in memory, their
// memory locked, threads of which the kernel knows that disks depend on them, and a name that begins with '@', by which
// systemd spares them (https://systemd.io/ROOT_STORAGE_DAEMONS). Each is the first of a session of its own, and says what it has to
// say to the kernel's log.
//
// # Files
//
// They have a mount namespace of their own, made before the root is mounted and closed to mounts of others; its root is a small
// tmpfs, with /dev, /proc, /run and /sys and copies of the files that the daemon needs. So nothing of the served root is
// mounted or open in it, and the initramfs can be deleted under it.
//
// # Death
//
// A daemon that dies is started again at once; after some deaths within seconds there are pauses, [Options] has no say in
// that. A daemon of a new program, see `coppice upgrade`, that dies soon is followed by the old one. A supervisor that dies leaves the
// daemon as it is, which says so. SIGTERM, SIGINT and SIGHUP end neither: what has its root on the device could not
// even be ended in order then. [Stop] ends both.
package supervise
