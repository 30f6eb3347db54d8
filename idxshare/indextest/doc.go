// Package indextest changes the files of a mounted file system at random, and tells what is there, by system calls alone or as debugfs does: what tests of
// indexes compare an index with. It knows nothing of indexes and of how a file system lies on a disk.
package indextest
