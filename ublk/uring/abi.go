package uring

// Opcodes of submission entries (enum io_uring_op).
const (
	OpNop         uint8 = 0
	OpFsync       uint8 = 3
	OpReadFixed   uint8 = 4
	OpWriteFixed  uint8 = 5
	OpPollAdd     uint8 = 6
	OpAsyncCancel uint8 = 14
	OpFallocate   uint8 = 17
	OpRead        uint8 = 22
	OpWrite       uint8 = 23
	OpURingCmd    uint8 = 46
)

// Flags of [SQE].Flags (IOSQE_*).
const (
	SQEFixedFile uint8 = 1 << 0 // FD is a slot of the file table
	SQEDrain     uint8 = 1 << 1 // begin after all earlier entries have ended
	SQELink      uint8 = 1 << 2 // the next entry begins after this one, if it succeeds
	SQEAsync     uint8 = 1 << 4 // go to a worker thread at once
)

// Flags of a ring (IORING_SETUP_*).
const (
	SetupCQSize       uint32 = 1 << 3
	SetupClamp        uint32 = 1 << 4
	SetupSubmitAll    uint32 = 1 << 7
	SetupTaskrunFlag  uint32 = 1 << 9 // Linux 5.19
	SetupSQE128       uint32 = 1 << 10
	SetupCQE32        uint32 = 1 << 11
	SetupSingleIssuer uint32 = 1 << 12 // Linux 6.0
	SetupDeferTaskrun uint32 = 1 << 13 // Linux 6.1
	SetupNoSQArray    uint32 = 1 << 16 // Linux 6.6
)

// Features of a ring (IORING_FEAT_*).
const (
	FeatSingleMmap uint32 = 1 << 0
	FeatNoDrop     uint32 = 1 << 1
	FeatExtArg     uint32 = 1 << 8
)

// Flags of [SQE].OpFlags, by operation.
const (
	FsyncDatasync uint32 = 1 << 0 // IORING_FSYNC_DATASYNC
	CancelAll     uint32 = 1 << 0 // IORING_ASYNC_CANCEL_ALL
	CancelAny     uint32 = 1 << 2 // IORING_ASYNC_CANCEL_ANY
)

const (
	enterGetEvents      = 1 << 0
	enterExtArg         = 1 << 3
	enterRegisteredRing = 1 << 4

	// Bits of the submission queue's flags word (IORING_SQ_*).
	sqCQOverflow = 1 << 1
	sqTaskrun    = 1 << 2

	offSQRing = 0
	offSQEs   = 0x10000000
)

// Operations of io_uring_register.
const (
	regUnregisterBuffers = 1
	regUnregisterFiles   = 3
	regFilesUpdate       = 6
	regProbe             = 8
	regFiles2            = 13
	regBuffers2          = 15
	regBuffersUpdate     = 16
	regIOWQMaxWorkers    = 19
	regRingFDs           = 20
	regUnregisterRingFDs = 21

	rsrcRegisterSparse = 1 << 0
	opSupported        = 1 << 0
	probeOps           = 256
	anyRingSlot        = 1<<32 - 1
)

// sqOffsets is struct io_sqring_offsets.
type sqOffsets struct {
	head, tail, ringMask, ringEntries, flags, dropped, array, resv1 uint32
	userAddr                                                        uint64
}

// cqOffsets is struct io_cqring_offsets.
type cqOffsets struct {
	head, tail, ringMask, ringEntries, overflow, cqes, flags, resv1 uint32
	userAddr                                                        uint64
}

// params is struct io_uring_params.
type params struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	resv                                                                   [3]uint32
	sqOff                                                                  sqOffsets
	cqOff                                                                  cqOffsets
}

// geteventsArg is struct io_uring_getevents_arg.
type geteventsArg struct {
	sigmask     uint64
	sigmaskSize uint32
	minWaitUsec uint32
	ts          uint64
}

// timespec is struct __kernel_timespec.
type timespec struct {
	sec, nsec int64
}

// rsrcRegister is struct io_uring_rsrc_register.
type rsrcRegister struct {
	nr, flags  uint32
	resv2      uint64
	data, tags uint64
}

// rsrcUpdate is struct io_uring_rsrc_update.
type rsrcUpdate struct {
	offset, resv uint32
	data         uint64
}

// rsrcUpdate2 is struct io_uring_rsrc_update2.
type rsrcUpdate2 struct {
	offset, resv uint32
	data, tags   uint64
	nr, resv2    uint32
}

// iovec is struct iovec with the base as a plain address.
type iovec struct {
	base, len uint64
}

// probeOp is struct io_uring_probe_op.
type probeOp struct {
	op, resv uint8
	flags    uint16
	resv2    uint32
}

// probe is struct io_uring_probe with room for every opcode.
type probe struct {
	lastOp, opsLen uint8
	resv           uint16
	resv2          [3]uint32
	ops            [probeOps]probeOp
}
