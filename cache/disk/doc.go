// Package disk is the disk tier of the cache: chunks of images by digest in a file, on a block device or partition, or in a region of a
// leaf store. It survives a reboot.
//
// It holds nothing that cannot be fetched again, and is built on that: chunks and index are never flushed while it is open, no order of writes is
// relied on, and a slot whose content is not what the index says is a miss. Power cuts, rot, a full or dying disk, and a disk that
// answers no more cost time and nothing else.
//
// # Verification
//
// The index has 8 bytes of a chunk's digest, and a CRC-32C over its whole digest and its content. Get compares the checksum, so that what a
// power cut or rot left is a miss here and a bad slot is given up at once. That keeps accidents out. It is no proof: the SHA-256 of a chunk is
// compared once, by the caller of Get, as [cache.Tier] says, who then calls Reject where it is not that chunk. Scrubbing computes SHA-256 itself.
//
// # Reads and writes
//
// Put copies the chunk into a bounded queue and returns. One goroutine writes what is queued, in pieces of 128 KiB, each when no read is under way,
// or, where reads never end, one every 20 ms. What the queue has no room for is not kept.
//
// A read takes half a second at most ([Options.ReadTimeout]): it goes to a buffer of its own, on a goroutine of its own, which is left behind
// where the disk does not answer.
//
// # Failure model
//
// A disk that lets a read time out, or fails three in a row, is taken for broken: every Get is a miss at once then, and every Put is
// dropped, until a probe once a second, and later every half minute, reads the header back. A file or device that went away is opened again by
// its path. Where a write fails nothing is written for a while, and reads go on. Both are logged when they begin and when they end.
//
// # Concurrency
//
// A [Disk] is safe for concurrent use. A file or device is locked against other openers, O_EXCL on a block device and a lock on a file. A
// region is its owner's to give out once. The cache must not lie on a device that is served through it.
//
// Lock order: Disk.mu is taken alone. It is held for some microseconds, never while I/O is done.
package disk
