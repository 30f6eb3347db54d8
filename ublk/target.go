package ublk

import "os"

// A Target executes what the requests of a [Queue] ask for. There are two: the
// reactor that serves queues of the kernel (or of ublktest.Fake), and the
// deterministic simulator ublktest.Sim, over which a Handler is tested without any
// kernel at all.
//
// A Target ends each Read, Write, Fsync and Post with exactly one [Queue.Resume].
// Except for Post, its methods are called on the one thread that serves the
// queue, and return at once.
type Target interface {
	// RegisterFile makes f usable by the requests of q. The same *os.File gives the
	// same File as long as some queue of this Target holds it. The caller keeps f open
	// until q has released its files.
	RegisterFile(q *Queue, f *os.File) (File, error)

	// ReleaseFiles gives back what q has registered.
	ReleaseFiles(q *Queue)

	// Read fills p from byte off of f.
	Read(r *Request, f File, p []byte, off int64, cookie uint16)

	// Write stores p at byte off of f; with dsync set the data is durable when the
	// write has ended.
	Write(r *Request, f File, p []byte, off int64, dsync bool, cookie uint16)

	// Fsync makes durable every write to f that had ended before it was called.
	Fsync(r *Request, f File, cookie uint16)

	// Post queues r for Resume. It is called from any thread; [Request.Posted]
	// holds what to resume with.
	Post(r *Request)

	// Commit ends r with the result that the driver is to get: bytes moved for
	// reads and writes, 0 for the rest, or a negative errno. The tag may be served
	// again from then on.
	Commit(r *Request, result int32)

	// Now returns a monotonic clock in nanoseconds, read once per batch.
	Now() int64
}

// File names a registered file of the [Target] that serves a queue. It is valid
// only there: each queue registers its own.
type File int32
