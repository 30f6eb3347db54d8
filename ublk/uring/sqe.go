package uring

import "unsafe"

// SQE is one submission entry, struct io_uring_sqe. On a ring with
// 128-byte entries the command payload goes on behind it: see [SQE.Cmd80].
type SQE struct {
	Opcode      uint8
	Flags       uint8
	IOPrio      uint16
	FD          int32
	Off         uint64 // offset in bytes; of a command: its number
	Addr        uint64
	Len         uint32
	OpFlags     uint32 // meaning depends on Opcode
	UserData    uint64 // comes back in [CQE].UserData
	BufIndex    uint16
	Personality uint16
	SpliceFDIn  int32
	Addr3       uint64
	pad2        uint64
}

// CQE is one completion, struct io_uring_cqe without its 32-byte extension.
type CQE struct {
	UserData uint64
	Res      int32 // a result ≥ 0, or a negative errno
	Flags    uint32
}

const (
	sqeSize  = 64
	cqeSize  = 16
	cmd16Off = 48
)

// PrepNop prepares an entry that completes with 0.
func (s *SQE) PrepNop() { s.Opcode = OpNop }

// PrepRead prepares a read of n bytes at offset off of fd to the memory at addr.
func (s *SQE) PrepRead(fd int32, addr uintptr, n uint32, off int64) {
	s.prepIO(OpRead, fd, addr, n, off)
}

// PrepWrite prepares a write of the n bytes at addr to offset off of fd. The
// flags are those of pwritev2(2): RWF_DSYNC makes the write durable.
func (s *SQE) PrepWrite(fd int32, addr uintptr, n uint32, off int64, rwFlags uint32) {
	s.prepIO(OpWrite, fd, addr, n, off)
	s.OpFlags = rwFlags
}

// PrepReadFixed is PrepRead into memory within the registered buffer buf.
func (s *SQE) PrepReadFixed(fd int32, addr uintptr, n uint32, off int64, buf uint16) {
	s.prepIO(OpReadFixed, fd, addr, n, off)
	s.BufIndex = buf
}

// PrepWriteFixed is PrepWrite from memory within the registered buffer buf.
func (s *SQE) PrepWriteFixed(fd int32, addr uintptr, n uint32, off int64, rwFlags uint32, buf uint16) {
	s.prepIO(OpWriteFixed, fd, addr, n, off)
	s.OpFlags = rwFlags
	s.BufIndex = buf
}

// PrepFsync prepares fsync(2), or fdatasync(2) where datasync is set.
func (s *SQE) PrepFsync(fd int32, datasync bool) {
	s.Opcode, s.FD = OpFsync, fd
	if datasync {
		s.OpFlags = FsyncDatasync
	}
}

// PrepFallocate prepares fallocate(2) with its mode flags over n bytes at off.
func (s *SQE) PrepFallocate(fd int32, mode uint32, off, n int64) {
	s.Opcode, s.FD, s.Off = OpFallocate, fd, uint64(off)
	s.Addr, s.Len = uint64(n), mode
}

// PrepPollAdd prepares one wait for the poll(2) events of fd. Its result is the
// events that are there.
func (s *SQE) PrepPollAdd(fd int32, events uint16) {
	s.Opcode, s.FD, s.OpFlags = OpPollAdd, fd, uint32(events)
}

// PrepCancel prepares the cancellation of entries: of the first whose user data
// is target, or as the flags [CancelAll] and [CancelAny] say. Its result is the
// number found (with CancelAll), 0, or -ENOENT.
func (s *SQE) PrepCancel(target uint64, flags uint32) {
	s.Opcode, s.FD, s.Addr, s.OpFlags = OpAsyncCancel, -1, target, flags
}

// PrepURingCmd prepares the command cmdOp of the driver behind fd. Its payload is
// written through [SQE.Cmd16] or, on 128-byte entries, [SQE.Cmd80].
func (s *SQE) PrepURingCmd(fd int32, cmdOp uint32) {
	s.Opcode, s.FD, s.Off = OpURingCmd, fd, uint64(cmdOp)
}

func (s *SQE) prepIO(op uint8, fd int32, addr uintptr, n uint32, off int64) {
	s.Opcode, s.FD, s.Off = op, fd, uint64(off)
	s.Addr, s.Len = uint64(addr), n
}

// SetFixedFile says that the entry's descriptor is a slot of the ring's file table.
func (s *SQE) SetFixedFile() { s.Flags |= SQEFixedFile }

// SetUserData sets what comes back with the completion.
func (s *SQE) SetUserData(v uint64) { s.UserData = v }

// Cmd16 is the 16-byte command payload that every entry has.
func (s *SQE) Cmd16() *[16]byte {
	return (*[16]byte)(unsafe.Add(unsafe.Pointer(s), cmd16Off))
}

// Cmd80 is the 80-byte command payload. The entry must come from a ring
// with 128-byte entries; on another one the payload overlaps the next entry.
func (s *SQE) Cmd80() *[80]byte {
	return (*[80]byte)(unsafe.Add(unsafe.Pointer(s), cmd16Off))
}
