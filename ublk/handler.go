package ublk

import "fmt"

// Op is the kind of a request, with the kernel's numbers
// (UBLK_IO_OP_* in include/uapi/linux/ublk_cmd.h).
type Op uint8

// The requests that a Handler sees. The driver never sends WRITE_SAME, and zoned
// operations only to zoned devices, which this package does not create.
const (
	OpRead        Op = 0
	OpWrite       Op = 1
	OpFlush       Op = 2
	OpDiscard     Op = 3
	OpWriteZeroes Op = 5
)

// String returns the operation's name as tools print it.
func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpDiscard:
		return "discard"
	case OpWriteZeroes:
		return "write-zeroes"
	default:
		return fmt.Sprintf("operation %d", uint8(o))
	}
}

// A Handler implements one block device. It is the only interface between the
// data plane and what a device does with its requests.
//
// All four methods run on the thread of the reactor that serves the queue they
// are about, so calls for one queue never overlap; calls for two queues of one
// device may. None of them may block: work that waits belongs in a goroutine of the
// Handler's own, which comes back through [Request.Post].
type Handler interface {
	// Attach prepares for the requests of q, before the first of them is
	// fetched. It is the place to register files ([Queue.RegisterFile]) and to
	// allocate what each tag needs. An error ends the creation of the device.
	Attach(q *Queue) error

	// Serve begins a request. The Handler owns r, r.Buf included, until it
	// calls [Request.Complete] exactly once, inside Serve or later.
	Serve(r *Request)

	// Resume continues a request: one target I/O that r began has ended, or a
	// [Request.Post] has arrived. The cookie is the one given there. The result is the
	// number of bytes moved, or a negative errno.
	Resume(r *Request, cookie uint16, res int32)

	// Detach ends the service of q: every request is completed, or withheld, none will
	// follow. Files that Attach registered are released by the queue.
	Detach(q *Queue)
}

// A Leaver is a [Handler] whose requests may wait for more than I/O of their own: for a server, for space, for a person. Its methods run on the
// thread that serves the queue.
type Leaver interface {
	Handler

	// Leave is called when q, and with it every queue of the device, is left to a successor, and again where that has to be tried again.
	// Requests that wait for what may take long end by [Request.Withhold], then or soon, and so do those that would begin to.
	Leave(q *Queue)

	// Waits says in a few words what r waits for, which the Handler has.
	Waits(r *Request) string
}
