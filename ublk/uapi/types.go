package uapi

import "unsafe"

// CtrlCmd is struct ublksrv_ctrl_cmd, the payload of a control command's 128-byte entry.
type CtrlCmd struct {
	DevID      uint32
	QueueID    uint16 // NoQueue unless the command is about a queue
	Len        uint16 // of the memory at Addr, in bytes
	Addr       uint64
	Data       uint64 // what the command takes inline
	DevPathLen uint16 // of the path in front of what Addr points to; for unprivileged devices
	Pad        uint16
	Reserved   uint32
}

// DevInfo is struct ublksrv_ctrl_dev_info.
type DevInfo struct {
	NrHWQueues    uint16
	QueueDepth    uint16
	State         uint16
	Pad0          uint16
	MaxIOBufBytes uint32
	DevID         uint32
	PID           int32 // ublksrv_pid
	Pad1          uint32
	Flags         uint64
	ServerFlags   uint64 // ublksrv_flags: the server's own, kept by the driver
	OwnerUID      uint32
	OwnerGID      uint32
	Reserved1     uint64
	Reserved2     uint64
}

// ParamsBasic is struct ublk_param_basic.
type ParamsBasic struct {
	Attrs            uint32
	LogicalBSShift   uint8
	PhysicalBSShift  uint8
	IOOptShift       uint8
	IOMinShift       uint8
	MaxSectors       uint32
	ChunkSectors     uint32
	DevSectors       uint64
	VirtBoundaryMask uint64
}

// ParamsDiscard is struct ublk_param_discard.
type ParamsDiscard struct {
	Alignment             uint32
	Granularity           uint32
	MaxDiscardSectors     uint32
	MaxWriteZeroesSectors uint32
	MaxSegments           uint16
	Reserved0             uint16
}

// ParamsDevt is struct ublk_param_devt, which the kernel fills.
type ParamsDevt struct {
	CharMajor, CharMinor uint32
	DiskMajor, DiskMinor uint32
}

// ParamsZoned is struct ublk_param_zoned.
type ParamsZoned struct {
	MaxOpenZones         uint32
	MaxActiveZones       uint32
	MaxZoneAppendSectors uint32
	Reserved             [20]uint8
}

// ParamsDMAAlign is struct ublk_param_dma_align.
type ParamsDMAAlign struct {
	Alignment uint32
	Pad       [4]uint8
}

// ParamsSegment is struct ublk_param_segment.
type ParamsSegment struct {
	SegBoundaryMask uint64
	MaxSegmentSize  uint32
	MaxSegments     uint16
	Pad             [2]uint8
}

// Params is struct ublk_params as of Linux 6.15. The kernel copies as much of it as it knows; newer
// ones add fields behind it.
type Params struct {
	Len      uint32
	Types    uint32 // Param* bits: which parts are set
	Basic    ParamsBasic
	Discard  ParamsDiscard
	Devt     ParamsDevt
	Zoned    ParamsZoned
	DMAAlign ParamsDMAAlign
	Segment  ParamsSegment
}

// IODesc is struct ublksrv_io_desc, one request in a queue's descriptor area.
type IODesc struct {
	OpFlags     uint32
	NrSectors   uint32
	StartSector uint64
	Addr        uint64
}

// IOCmd is struct ublksrv_io_cmd, the payload of an I/O command; it fits a 64-byte entry.
type IOCmd struct {
	QueueID uint16
	Tag     uint16
	Result  int32  // of the request that is committed
	Addr    uint64 // of the tag's buffer
}

// DescArea tells where in the mapping of /dev/ublkcN the descriptors of a queue lie, in bytes. The
// distance between two queues does not depend on their depth (ublk_ch_mmap, drivers/block/ublk_drv.c, Linux 6.12).
func DescArea(queue, depth, pageSize int) (off int64, size int) {
	one := int(unsafe.Sizeof(IODesc{}))
	stride := roundUp(MaxQueueDepth*one, pageSize)
	return CmdBufOffset + int64(queue)*int64(stride), roundUp(depth*one, pageSize)
}

func roundUp(n, to int) int { return (n + to - 1) / to * to }
