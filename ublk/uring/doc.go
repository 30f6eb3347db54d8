// Package uring drives io_uring: set-up, submission, completion, registered files
// and buffers, by raw system calls and without cgo. It knows nothing of what the
// requests mean.
//
// # Use
//
// A round is: take entries with [Ring.SQE] and prepare them, hand them over and
// wait with [Ring.SubmitAndWait], look at the [Ring.Ready] completions with
// [Ring.CQE], release them with one [Ring.Advance].
//
// # Threads
//
// A Ring is used by one goroutine at a time; nothing in it locks. A ring made
// with [Config].SingleIssuer belongs to the thread that made it: its goroutine
// calls [runtime.LockOSThread] before [New] and makes every call from then on,
// [Ring.Close] included unless the thread has ended. The kernel answers EEXIST to any other thread.
//
// # Memory
//
// Buffers are given as addresses. They must stay where they are until the
// completion has arrived, so they belong in mapped memory outside the Go heap.
// UserData must never hold a Go pointer. No method on the path from SQE to
// Advance allocates.
//
// # Kernel
//
// Linux 6.1 is the oldest kernel served. What newer ones offer is asked for and
// given up without fuss where it is refused; [Ring.Flags] tells what was granted.
// Numbers and layouts are those of include/uapi/linux/io_uring.h, Linux 6.12.
package uring
