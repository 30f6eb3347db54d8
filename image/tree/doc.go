// Package tree makes ext4 file systems of directories and tars, for images to be built from.
//
// [Directory] and [Tar] list what there is, and [Open] lists an ext4 file system in the same way. [Make] writes a new file system, and
// [Update] changes an earlier one into what the tree is, so that what did not change keeps its blocks. Both write through mke2fs, debugfs
// and e2fsck of e2fsprogs, in an order that depends on nothing but names, with every time, identifier and seed given, so that equal trees make
// equal bytes. This package's own reader of ext4 then reads the result and compares all of it with the tree: what a tool did not do
// right is an error, never a file system.
//
// Memory is some hundred bytes for each file, and does not depend on how much is in them.
package tree
