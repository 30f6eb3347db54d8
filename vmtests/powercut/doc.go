// Package powercut builds the leaf disk of a running system again as power cuts would have left it, and knows what must be on it.
//
// # Recording
//
// A guest (TestRecord, build tag vm) works on a disk whose writes and flushes QEMU records (package logwrites). The disk has
// two partitions: a leaf store, and one for marks. Three devices stand on the store: an ext4, an xfs and one without a file system.
// Before the guest does something to a file or a range, and after it was told that something is durable, it writes an
// [Event] to the second partition with a write of its own. So the recording holds, in one order, what the disk was told and what
// the guest was promised:
//
//	mark "create f07" ─ writes ─ flush ─ writes ─ flush ─ mark "f07 is synced" ─ ...
//
// A promise is only ever marked after the flush that it rests on, so nothing is demanded that was not promised.
//
// # Cuts
//
// An epoch is what lies between two flushes. A power cut in it leaves all that was before the epoch, and any part of its writes, in
// units of 512 bytes, because the disk's cache writes back in any order ([Recording.Cut]). All events up to the epoch's end are held
// against what is found: what was marked as durable must be there, what was begun may be.
//
// QEMU logs a request when it completes, so an epoch's flush may be made to cover a little more than it promised; see package logwrites.
//
// # Judgement
//
// [Files] knows the files of one file system, [Blocks] the blocks of the device without one. Both are fed with events and
// asked whether a state is legal.
package powercut
