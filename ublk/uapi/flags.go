package uapi

// Device flags (UBLK_F_*): what ADD_DEV asks for, and what GET_FEATURES offers.
const (
	FSupportZeroCopy     uint64 = 1 << 0 // of use since Linux 6.15
	FURingCmdCompInTask  uint64 = 1 << 1
	FNeedGetData         uint64 = 1 << 2
	FUserRecovery        uint64 = 1 << 3 // Linux 6.1
	FUserRecoveryReissue uint64 = 1 << 4
	FUnprivilegedDev     uint64 = 1 << 5 // Linux 6.3
	FCmdIoctlEncode      uint64 = 1 << 6 // Linux 6.4
	FUserCopy            uint64 = 1 << 7 // Linux 6.5
	FZoned               uint64 = 1 << 8 // Linux 6.6
	FUserRecoveryFailIO  uint64 = 1 << 9 // Linux 6.13
	FUpdateSize          uint64 = 1 << 10
	FAutoBufReg          uint64 = 1 << 11
	FQuiesce             uint64 = 1 << 12
	FPerIODaemon         uint64 = 1 << 13 // Linux 6.16, as the three above
	FBufRegOffDaemon     uint64 = 1 << 14 // Linux 6.17
	FBatchIO             uint64 = 1 << 15 // Linux 7.0
	FIntegrity           uint64 = 1 << 16
	FSafeStopDev         uint64 = 1 << 17
	FNoAutoPartScan      uint64 = 1 << 18
	FShmemZC             uint64 = 1 << 19 // Linux 7.1
)

// Device states (UBLK_S_DEV_*).
const (
	StateDead     uint16 = 0
	StateLive     uint16 = 1
	StateQuiesced uint16 = 2
	StateFailIO   uint16 = 3
)

// Limits and offsets.
const (
	MaxQueueDepth = 4096
	MaxQueues     = 4096
	FeaturesLen   = 8
	AutoDevID     = 1<<32 - 1 // ADD_DEV chooses the id
	NoQueue       = 1<<16 - 1 // CtrlCmd.QueueID of commands that are about no queue
	CmdBufOffset  = 0         // of the descriptor areas in the mapping of /dev/ublkcN
)

// Results of I/O commands. Besides, -ENODEV ends a tag.
const (
	IOResOK          int32 = 0
	IOResNeedGetData int32 = 1
)

// Operations, the low 8 bits of [IODesc].OpFlags.
const (
	IOOpRead        = 0
	IOOpWrite       = 1
	IOOpFlush       = 2
	IOOpDiscard     = 3
	IOOpWriteSame   = 4
	IOOpWriteZeroes = 5
	IOOpMask        = 1<<8 - 1
)

// Flags in [IODesc].OpFlags.
const (
	IOFailfastDev       uint32 = 1 << 8
	IOFailfastTransport uint32 = 1 << 9
	IOFailfastDriver    uint32 = 1 << 10
	IOMeta              uint32 = 1 << 11
	IOFUA               uint32 = 1 << 13
	IONoUnmap           uint32 = 1 << 15
	IOSwap              uint32 = 1 << 16
)

// Kinds of parameters, bits of [Params].Types.
const (
	ParamBasic    uint32 = 1 << 0
	ParamDiscard  uint32 = 1 << 1
	ParamDevt     uint32 = 1 << 2
	ParamZoned    uint32 = 1 << 3
	ParamDMAAlign uint32 = 1 << 4 // Linux 6.15
	ParamSegment  uint32 = 1 << 5 // Linux 6.15
)

// Attributes in [ParamsBasic].Attrs. Without AttrVolatileCache the kernel sends neither
// flushes nor FUA writes.
const (
	AttrReadOnly      uint32 = 1 << 0
	AttrRotational    uint32 = 1 << 1
	AttrVolatileCache uint32 = 1 << 2
	AttrFUA           uint32 = 1 << 3
)

// SectorShift turns sectors into bytes: the driver's sectors are 512 bytes whatever the block size.
const SectorShift = 9
