// Package ext4 reads ext2, ext3 and ext4 file systems from their blocks: no mount, no privilege, and never a write.
//
// [Open] reads a superblock and its group descriptors, and replays in memory a journal that the last mount left. [FS.Scan] goes over the inodes, [FS.ReadDir], [FS.Extents],
// [FS.XAttrs], [FS.Content] and [FS.Readlink] read what one has, and [FS.Place] tells what a block is for.
//
// # What is read
//
// All that mke2fs 1.47 makes: blocks of 1 to 64 KiB, inodes of 128 bytes and more, files mapped by extents or by pointers, 64-bit block numbers, flexible and meta block groups, sparse superblocks of both kinds,
// clusters, groups and inodes that were never initialised, hashed and large directories, content and directories in the inode, extended attributes in the inode, in a block and in inodes of
// their own, and journals with checksums of all three formats, revocations and escapes. Names of encrypted directories are as they are stored; encrypted content and targets are an error that
// matches [ErrEncrypted]. What is folded in case, under a quota or sealed by verity reads as everything else.
//
// An incompatible feature of another kind is refused by its name. So are a journal on another device, one with asynchronous commits, and one with fast commits that would have to be replayed: after a mount, or
// e2fsck, such a file system is read.
//
// # Trust
//
// Where a file system has checksums (metadata_csum, uninit_bg), those of the superblock, descriptors, inodes, extent blocks, directory blocks, attribute blocks and the journal are compared before anything in them is
// believed; a wrong one is a [CorruptError] that names structure and block. Bitmaps are not read. A file system without checksums, or one that was made to harm, gives wrong answers at worst: all numbers are
// held against the size of the file system, and that against the device's; no map is followed deeper than it may be or farther than there are blocks; memory is bounded by the constants of this package and by what
// one file's map holds. Calls over the tree of names are the caller's: directories may form loops there.
//
// # Concurrency and failure
//
// An [FS] is safe for concurrent use. A call ends with the error of the reader, wrapped, or with the cause of its context; nothing is remembered, and the next call reads again.
//
// # Why not another module
//
// github.com/diskfs/go-diskfs 1.9.4, whose partition tables idxshare uses, has a reader of ext4. Tried on images of mke2fs and of a kernel's crash, it reads Debian's root as mke2fs makes it by default, and beyond that falls short:
//
//	without metadata_csum (ext2, ext3, uninit_bg)  refused: "invalid checksum type 0, only valid is 1"
//	names of 248 bytes and more                    panic, slice bounds out of range
//	content of sparse files                        panic, makeslice: len out of range
//	inline_data                                    panic, nil pointer

//	journal that is to be replayed                 not replayed: the state before the crash
//	extents, physical places, inode by number      not in its interface, nor a scan by inode tables
//
// # Sources
//
// The kernel's Documentation/filesystems/ext4, fs/ext4/ext4.h and include/linux/jbd2.h of Linux 6.12, and lib/ext2fs/ext2_fs.h of e2fsprogs 1.47, for layouts and limits.
package ext4
