// Package ublk makes Linux block devices that a process serves: /dev/ublkbN, by the
// kernel's ublk driver.
//
// # Use
//
// [Open] reaches the driver, [NewReactors] makes the pool of threads, and
// [Control.Create] makes a device whose requests a [Handler] answers. [Device.Stop]
// removes it again. A device made with Params.Recoverable outlives its process:
// [Device.Detach] or the death of the process leaves it waiting in the kernel, and
// [Control.Recover] takes it up, with no I/O lost.
//
// # Threads
//
// Control and Device may be used from any goroutine. Handlers run on the threads of
// [Reactors]; their rules are at [Handler]. No method of Control or Device may be
// called from there: most wait for I/O that the same thread would have to serve.
//
// # Known deadlocks
//
// A process that serves a device must not wait for that device anywhere on
// the way of a request: not by a page fault on a file of its file system (lock the memory), not by
// logging to it, not by reclaim (PR_SET_IO_FLUSHER on every thread). A descriptor of
// /dev/ublkcN or /dev/ublkbN that a child process inherits keeps recovery and deletion from ending; all
// are opened close-on-exec. If the process dies while [Control.Create] waits for the
// partition scan of a recoverable device, the scan waits for a successor while it holds the lock that the successor
// needs: only a reboot helps (ublk_ctrl_start_dev, drivers/block/ublk_drv.c, Linux 6.12).
//
// # Kernel
//
// Linux 6.1 is the oldest kernel that can serve, 6.12 the tested one. What newer ones
// offer is found out by [Control.Features] and never needed.
//
// Recovery after a crash under load needs the fix "io_uring: move local task_work in exit cancel loop" (Linux 6.19,
// and the stable releases 6.6, 6.12 and 6.18 of February 2026 and later): without it the kernel can
// spin for ever while it takes down the rings of a dead server, and the device never becomes quiesced.
package ublk
