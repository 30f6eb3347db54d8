package uapi

import (
	"testing"
	"unsafe"
)

func TestLayout(t *testing.T) {
	var c CtrlCmd
	var i DevInfo
	var p Params
	var b ParamsBasic
	var d ParamsDiscard
	var v ParamsDevt
	var z ParamsZoned
	var g ParamsSegment
	var e IODesc
	var m IOCmd
	for _, f := range []struct {
		name      string
		got, want uintptr
	}{
		{"ctrl_cmd", unsafe.Sizeof(c), 32},
		{"ctrl_cmd.dev_id", unsafe.Offsetof(c.DevID), 0},
		{"ctrl_cmd.queue_id", unsafe.Offsetof(c.QueueID), 4},
		{"ctrl_cmd.len", unsafe.Offsetof(c.Len), 6},
		{"ctrl_cmd.addr", unsafe.Offsetof(c.Addr), 8},
		{"ctrl_cmd.data", unsafe.Offsetof(c.Data), 16},
		{"ctrl_cmd.dev_path_len", unsafe.Offsetof(c.DevPathLen), 24},
		{"ctrl_cmd.pad", unsafe.Offsetof(c.Pad), 26},
		{"ctrl_cmd.reserved", unsafe.Offsetof(c.Reserved), 28},
		{"dev_info", unsafe.Sizeof(i), 64},
		{"dev_info.nr_hw_queues", unsafe.Offsetof(i.NrHWQueues), 0},
		{"dev_info.queue_depth", unsafe.Offsetof(i.QueueDepth), 2},
		{"dev_info.state", unsafe.Offsetof(i.State), 4},
		{"dev_info.max_io_buf_bytes", unsafe.Offsetof(i.MaxIOBufBytes), 8},
		{"dev_info.dev_id", unsafe.Offsetof(i.DevID), 12},
		{"dev_info.ublksrv_pid", unsafe.Offsetof(i.PID), 16},
		{"dev_info.flags", unsafe.Offsetof(i.Flags), 24},
		{"dev_info.ublksrv_flags", unsafe.Offsetof(i.ServerFlags), 32},
		{"dev_info.owner_uid", unsafe.Offsetof(i.OwnerUID), 40},
		{"dev_info.owner_gid", unsafe.Offsetof(i.OwnerGID), 44},
		{"dev_info.reserved1", unsafe.Offsetof(i.Reserved1), 48},
		{"basic", unsafe.Sizeof(b), 32},
		{"basic.logical_bs_shift", unsafe.Offsetof(b.LogicalBSShift), 4},
		{"basic.physical_bs_shift", unsafe.Offsetof(b.PhysicalBSShift), 5},
		{"basic.io_opt_shift", unsafe.Offsetof(b.IOOptShift), 6},
		{"basic.io_min_shift", unsafe.Offsetof(b.IOMinShift), 7},
		{"basic.max_sectors", unsafe.Offsetof(b.MaxSectors), 8},
		{"basic.chunk_sectors", unsafe.Offsetof(b.ChunkSectors), 12},
		{"basic.dev_sectors", unsafe.Offsetof(b.DevSectors), 16},
		{"basic.virt_boundary_mask", unsafe.Offsetof(b.VirtBoundaryMask), 24},
		{"discard", unsafe.Sizeof(d), 20},
		{"discard.granularity", unsafe.Offsetof(d.Granularity), 4},
		{"discard.max_discard_sectors", unsafe.Offsetof(d.MaxDiscardSectors), 8},
		{"discard.max_write_zeroes_sectors", unsafe.Offsetof(d.MaxWriteZeroesSectors), 12},
		{"discard.max_discard_segments", unsafe.Offsetof(d.MaxSegments), 16},
		{"devt", unsafe.Sizeof(v), 16},
		{"zoned", unsafe.Sizeof(z), 32},
		{"segment", unsafe.Sizeof(g), 16},
		{"segment.max_segment_size", unsafe.Offsetof(g.MaxSegmentSize), 8},
		{"segment.max_segments", unsafe.Offsetof(g.MaxSegments), 12},
		{"params", unsafe.Sizeof(p), 136},
		{"params.types", unsafe.Offsetof(p.Types), 4},
		{"params.basic", unsafe.Offsetof(p.Basic), 8},
		{"params.discard", unsafe.Offsetof(p.Discard), 40},
		{"params.devt", unsafe.Offsetof(p.Devt), 60},
		{"params.zoned", unsafe.Offsetof(p.Zoned), 76},
		{"params.dma", unsafe.Offsetof(p.DMAAlign), 108},
		{"params.seg", unsafe.Offsetof(p.Segment), 120},
		{"io_desc", unsafe.Sizeof(e), 24},
		{"io_desc.nr_sectors", unsafe.Offsetof(e.NrSectors), 4},
		{"io_desc.start_sector", unsafe.Offsetof(e.StartSector), 8},
		{"io_desc.addr", unsafe.Offsetof(e.Addr), 16},
		{"io_cmd", unsafe.Sizeof(m), 16},
		{"io_cmd.tag", unsafe.Offsetof(m.Tag), 2},
		{"io_cmd.result", unsafe.Offsetof(m.Result), 4},
		{"io_cmd.addr", unsafe.Offsetof(m.Addr), 8},
	} {
		if f.got != f.want {
			t.Errorf("%s is %d, want %d", f.name, f.got, f.want)
		}
	}
}

func TestCommandNumbers(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uint32
	}{
		{"GET_QUEUE_AFFINITY", CmdGetQueueAffinity, 0x80207501},
		{"GET_DEV_INFO", CmdGetDevInfo, 0x80207502},
		{"ADD_DEV", CmdAddDev, 0xC0207504},
		{"DEL_DEV", CmdDelDev, 0xC0207505},
		{"START_DEV", CmdStartDev, 0xC0207506},
		{"STOP_DEV", CmdStopDev, 0xC0207507},
		{"SET_PARAMS", CmdSetParams, 0xC0207508},
		{"GET_PARAMS", CmdGetParams, 0x80207509},
		{"START_USER_RECOVERY", CmdStartUserRecovery, 0xC0207510},
		{"END_USER_RECOVERY", CmdEndUserRecovery, 0xC0207511},
		{"GET_DEV_INFO2", CmdGetDevInfo2, 0x80207512},
		{"GET_FEATURES", CmdGetFeatures, 0x80207513},
		{"DEL_DEV_ASYNC", CmdDelDevAsync, 0x80207514},
		{"UPDATE_SIZE", CmdUpdateSize, 0xC0207515},
		{"QUIESCE_DEV", CmdQuiesceDev, 0xC0207516},
		{"TRY_STOP_DEV", CmdTryStopDev, 0xC0207517},
		{"REG_BUF", CmdRegBuf, 0xC0207518},
		{"UNREG_BUF", CmdUnregBuf, 0xC0207519},
		{"FETCH_REQ", IOFetchReq, 0xC0107520},
		{"COMMIT_AND_FETCH_REQ", IOCommitAndFetchReq, 0xC0107521},
		{"NEED_GET_DATA", IONeedGetData, 0xC0107522},
		{"REGISTER_IO_BUF", IORegisterIOBuf, 0xC0107523},
		{"UNREGISTER_IO_BUF", IOUnregisterIOBuf, 0xC0107524},
		{"legacy ADD_DEV", Legacy(CmdAddDev), 0x04},
		{"legacy END_USER_RECOVERY", Legacy(CmdEndUserRecovery), 0x11},
		{"legacy COMMIT_AND_FETCH_REQ", Legacy(IOCommitAndFetchReq), 0x21},
	} {
		if c.got != c.want {
			t.Errorf("%s is %#x, want %#x", c.name, c.got, c.want)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, f := range []struct {
		name      string
		got, want uint64
	}{
		{"SHMEM_ZC", FShmemZC, 0x80000},
		{"features of Linux 6.12", FURingCmdCompInTask | FNeedGetData | FUserRecovery | FUserRecoveryReissue |
			FUnprivilegedDev | FCmdIoctlEncode | FUserCopy | FZoned, 0x1FE},
		{"FUA", uint64(IOFUA), 0x2000},
		{"NOUNMAP", uint64(IONoUnmap), 0x8000},
	} {
		if f.got != f.want {
			t.Errorf("%s is %#x, want %#x", f.name, f.got, f.want)
		}
	}
}

func TestDescArea(t *testing.T) {
	for _, c := range []struct {
		queue, depth int
		off          int64
		size         int
	}{
		{0, 1, 0, 4096},
		{1, 1, 98304, 4096},
		{1, 170, 98304, 4096},
		{2, 171, 196608, 8192},
		{3, 4096, 294912, 98304},
	} {
		if off, size := DescArea(c.queue, c.depth, 4096); off != c.off || size != c.size {
			t.Errorf("queue %d of depth %d: %d bytes at %d, want %d at %d", c.queue, c.depth, size, off, c.size, c.off)
		}
	}
	if off, size := DescArea(1, 128, 65536); off != 131072 || size != 65536 {
		t.Errorf("64 KiB pages: %d bytes at %d", size, off)
	}
}
