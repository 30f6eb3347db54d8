// Package boot brings a machine up on a device of Coppice: it runs in the initramfs.
//
// # What happens
//
// [Read] finds out what is wanted, from the kernel's command line and from credentials. [Start] loads the driver, waits for the leaf disk and
// for the servers of the root, starts the root's own daemon and makes /dev/ublkb0, which the initramfs then mounts as any other disk.
// [Mounted] runs when that is done, before the system's own init: it grows the file system, gives the node its personality, and leaves word
// that the network is to stay as it is.
//
// # What may go wrong
//
// What comes back by itself is waited for without end, and said on the console once a minute: servers that do not answer. What a person must
// mend ends Start with an error that says what is wrong and what to do: the initramfs then gives a shell, or restarts the machine as panic=
// says. No disk is formatted without consent, and none that holds anything: see [Leaf].
//
// Nothing here is for concurrent use.
package boot
