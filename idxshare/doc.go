// Package idxshare keeps the index of the file systems of a disk: every file with its attributes, every name, and which file each block belongs to.
//
// An index is one SQLite database, which docs/index-format.md describes and the standard sqlite3 program reads. It is computed once for a root
// image and given to all nodes, and so it is small, the same input always makes the same bytes, and it is read where it lies, by ranges, through
// any [io.ReaderAt]. [Create] makes one, [Open] and [OpenReaderAt] read one.
//
// A delta is an index of what a leaf changed: the inodes and directories that are another than in the base. A [View] answers from both.
//
// # Names
//
// A name is bytes. Nothing is decoded, and nothing is lost: one that is no UTF-8 is found by any part of it, as every other.
//
// # Trust
//
// Whoever opens an index that came from elsewhere has verified its bytes, or believes whoever made it in what it says. An index that was made to
// harm does none beyond wrong answers: its schema is compared with the expected one before anything is asked, so that it has no triggers or
// views of its own, what it says is checked for ranges and loops, and work and memory are bounded. Such an index gives an error that wraps [ErrCorrupt].
//
// # Concurrency and failure
//
// A [Writer] belongs to one goroutine. The index appears under its name when it is complete and durable, and otherwise not at all. An [Index] is
// safe for concurrent use; a call that is under way when its context ends returns the context's error. An error of the reader below is returned,
// wrapped, by the call that it hit, and not remembered: the next call reads again.
package idxshare
