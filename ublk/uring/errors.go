package uring

import "errors"

// Errors that callers branch on. Those from the kernel also match the
// [syscall.Errno] they come from.
var (
	// ErrUnavailable says that this kernel has no io_uring, or that it is switched
	// off for this process (sysctl kernel.io_uring_disabled, or a seccomp filter).
	ErrUnavailable = errors.New("io_uring is not available: check sysctl kernel.io_uring_disabled and seccomp filters")

	// ErrClosed is the answer of a closed ring.
	ErrClosed = errors.New("ring is closed")

	// ErrDropped says that the kernel had no memory to keep a completion that did
	// not fit into the completion queue. The ring is of no further use.
	ErrDropped = errors.New("the kernel dropped a completion for lack of memory")
)
