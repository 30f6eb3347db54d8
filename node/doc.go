// Package node is the daemon of one machine: it owns the kernel's ublk devices, the
// leaf stores behind them and the Unix socket through which they are managed.
//
// # Contract
//
// [New] takes the run directory for itself (one daemon each), [Daemon.Run] serves
// until its context ends and then leaves every device in a state that the next
// daemon continues from. A device exists in three places, and the daemon keeps
// them in step: the kernel (/dev/ublkbN), the run directory
// (devices/NAME.json) and its own memory.
//
// What a record in the run directory says is decided before the kernel is
// touched, and corrected after:
//
//	creating  the device was never reported to anyone: the next daemon removes
//	          what the kernel has of it
//	active    the next daemon takes the quiesced device up again, or makes it
//	          anew with the same number where the kernel has none
//	deleting  the deletion was not reported: the next daemon continues to serve
//	          it if the kernel still has the device, else forgets it
//
// # Stopping
//
// An idle device is flushed, stopped and removed from the kernel; its record stays.
// A device in use is left quiesced: its I/O waits in the kernel, nothing fails,
// and the next daemon answers it. A device in use that cannot be left so (a
// kernel without recovery) keeps the daemon waiting until it is released. A
// second signal changes nothing.
//
// # Freezing and exporting
//
// A freeze has two steps, so that nothing slow happens while the client holds file systems frozen: the first waits for what
// the store is doing and keeps more of it away, the second seals. The first expires by itself ([FreezeLimit]). An export
// is such a freeze, of a layer that is merged again when its content is written, or by the next
// daemon. The device is served all the while, in a state of its own that keeps other operations away. Between the steps no
// device's lock is needed: who inspects a device holds it while he waits for the store.
//
// # Concurrency
//
// One operation at a time runs on a device; a second one is refused with
// [CodeBusy]. Operations on different devices run at once. The locks of the table of devices
// and of a device are never held together, and neither while the kernel is asked for anything. A
// device's lock is held for reading while its statistics are taken, so that what they come from
// is not closed meanwhile. Each leaf store has a lock of its own that is held while it is opened or closed.
//
// # What to beware of
//
// A daemon whose root image, leaf file or log lies on a device that it serves itself waits
// for itself. Roots and leaves on its own devices are refused; the rest
// is the administrator's to avoid.
package node
