package ublk

import (
	"os"
	"unsafe"

	"coppice/ublk/uapi"
)

// A Transport carries the commands of one queue to a driver other than the kernel's, which
// [QueueSource] reaches by itself. ublktest.Fake is one. A Transport speaks the kernel's
// protocol: for each tag one Fetch, later one Commit for each request that came back.
type Transport interface {
	// Bind tells how to wake the reactor, from any thread, when completions are there to reap.
	Bind(wake func())

	// Command takes one command. Its completion carries userData back.
	Command(c Command, userData uint64)

	// Reap moves completions into the slice and returns how many there were.
	Reap(into []Completion) int

	// Ready tells whether Reap would return any.
	Ready() bool
}

// Command asks for the next request of a tag, and unless it is the first one gives the result
// of the last.
type Command struct {
	Fetch  bool // the first command of the tag: no result yet
	Tag    uint16
	Result int32
	Addr   uintptr // of the tag's buffer
}

// Completion is the end of a command: Res is 0 when a request is in the descriptor
// area, -ENODEV when there will be none any more.
type Completion struct {
	UserData uint64
	Res      int32
}

// driver is what a lane sends its commands through: a kernelDriver or a transportDriver.
type driver interface {
	command(c Command, u userData)
}

func newKernelDriver(re *reactor, char *os.File, queue int, legacy bool) (*kernelDriver, error) {
	k := &kernelDriver{re: re, queue: uint16(queue), fetch: uapi.IOFetchReq, commit: uapi.IOCommitAndFetchReq}
	if legacy {
		k.fetch, k.commit = uapi.Legacy(k.fetch), uapi.Legacy(k.commit)
	}
	conn, err := char.SyscallConn()
	if err != nil {
		return nil, err
	}
	return k, conn.Control(func(fd uintptr) { k.fd = int32(fd) })
}

// kernelDriver sends commands as IORING_OP_URING_CMD on /dev/ublkcN.
//
// They name it by descriptor, not by its slot of the file table. Up to Linux 6.12 a ring lets go of
// unregistered files in the order of its requests (io_rsrc_node_ref_zero, io_uring/rsrc.c): a command of an
// idle device, waiting on a slot for as long as the device lives, would keep open every file
// that other devices have given back since, their ublkc among them.
type kernelDriver struct {
	re            *reactor
	fd            int32 // ublkc, which stays open until the queue has ended
	queue         uint16
	fetch, commit uint32
}

func (k *kernelDriver) command(c Command, u userData) {
	op := k.commit
	if c.Fetch {
		op = k.fetch
	}
	s := k.re.sqe()
	s.PrepURingCmd(k.fd, op)
	s.SetUserData(uint64(u))
	*(*uapi.IOCmd)(unsafe.Pointer(s.Cmd16())) = uapi.IOCmd{
		QueueID: k.queue, Tag: c.Tag, Result: c.Result, Addr: uint64(c.Addr),
	}
}

// transportDriver sends commands to a Transport, whose completions the reactor reaps once per batch.
type transportDriver struct{ Transport }

func (t transportDriver) command(c Command, u userData) { t.Command(c, uint64(u)) }

// descriptorAt decodes the request of a tag from the descriptor area, which the driver filled before
// it completed the tag's command.
func descriptorAt(area []byte, tag uint16) Descriptor {
	d := (*uapi.IODesc)(unsafe.Pointer(&area[int(tag)*descSize]))
	start := d.StartSector
	if start > maxSector {
		start = maxSector // beyond any device, and still a number of bytes
	}
	return Descriptor{
		Op:      Op(d.OpFlags & uapi.IOOpMask),
		FUA:     d.OpFlags&uapi.IOFUA != 0,
		NoUnmap: d.OpFlags&uapi.IONoUnmap != 0,
		Meta:    d.OpFlags&uapi.IOMeta != 0,
		Off:     int64(start << uapi.SectorShift),
		Len:     int64(d.NrSectors) << uapi.SectorShift,
	}
}

const (
	descSize  = int(unsafe.Sizeof(uapi.IODesc{}))
	maxSector = 1<<(63-uapi.SectorShift) - 1
)
