package uapi

import "unsafe"

// Bare command numbers. The driver took them alone up to Linux 6.3; since then it wants them
// ioctl-encoded, and takes bare ones only when built with CONFIG_BLKDEV_UBLK_LEGACY_OPCODES.
const (
	NrGetQueueAffinity  = 0x01
	NrGetDevInfo        = 0x02
	NrAddDev            = 0x04
	NrDelDev            = 0x05
	NrStartDev          = 0x06
	NrStopDev           = 0x07
	NrSetParams         = 0x08
	NrGetParams         = 0x09
	NrStartUserRecovery = 0x10
	NrEndUserRecovery   = 0x11
	NrGetDevInfo2       = 0x12 // Linux 6.3
	NrGetFeatures       = 0x13 // Linux 6.5
	NrDelDevAsync       = 0x14 // Linux 6.7
	NrUpdateSize        = 0x15 // Linux 6.16
	NrQuiesceDev        = 0x16 // Linux 6.16
	NrTryStopDev        = 0x17 // Linux 7.0
	NrRegBuf            = 0x18 // Linux 7.1
	NrUnregBuf          = 0x19 // Linux 7.1

	NrIOFetchReq          = 0x20
	NrIOCommitAndFetchReq = 0x21
	NrIONeedGetData       = 0x22
	NrIORegisterIOBuf     = 0x23 // Linux 6.15
	NrIOUnregisterIOBuf   = 0x24 // Linux 6.15
)

// Parts of an ioctl number (include/uapi/asm-generic/ioctl.h).
const (
	iocWrite     = 1
	iocRead      = 2
	iocTypeShift = 8
	iocSizeShift = 16
	iocDirShift  = 30
	iocType      = 'u'
	iocNrMask    = 1<<iocTypeShift - 1

	ctrlR  = iocRead<<iocDirShift | uint32(unsafe.Sizeof(CtrlCmd{}))<<iocSizeShift | iocType<<iocTypeShift
	ctrlWR = ctrlR | iocWrite<<iocDirShift
	ioWR   = (iocRead|iocWrite)<<iocDirShift | uint32(unsafe.Sizeof(IOCmd{}))<<iocSizeShift | iocType<<iocTypeShift
)

// Control commands, sent to /dev/ublk-control with a [CtrlCmd].
const (
	CmdGetQueueAffinity  uint32 = ctrlR | NrGetQueueAffinity
	CmdGetDevInfo        uint32 = ctrlR | NrGetDevInfo
	CmdAddDev            uint32 = ctrlWR | NrAddDev
	CmdDelDev            uint32 = ctrlWR | NrDelDev
	CmdStartDev          uint32 = ctrlWR | NrStartDev
	CmdStopDev           uint32 = ctrlWR | NrStopDev
	CmdSetParams         uint32 = ctrlWR | NrSetParams
	CmdGetParams         uint32 = ctrlR | NrGetParams
	CmdStartUserRecovery uint32 = ctrlWR | NrStartUserRecovery
	CmdEndUserRecovery   uint32 = ctrlWR | NrEndUserRecovery
	CmdGetDevInfo2       uint32 = ctrlR | NrGetDevInfo2
	CmdGetFeatures       uint32 = ctrlR | NrGetFeatures
	CmdDelDevAsync       uint32 = ctrlR | NrDelDevAsync
	CmdUpdateSize        uint32 = ctrlWR | NrUpdateSize
	CmdQuiesceDev        uint32 = ctrlWR | NrQuiesceDev
	CmdTryStopDev        uint32 = ctrlWR | NrTryStopDev
	CmdRegBuf            uint32 = ctrlWR | NrRegBuf
	CmdUnregBuf          uint32 = ctrlWR | NrUnregBuf
)

// I/O commands, sent to /dev/ublkcN with an [IOCmd].
const (
	IOFetchReq          uint32 = ioWR | NrIOFetchReq
	IOCommitAndFetchReq uint32 = ioWR | NrIOCommitAndFetchReq
	IONeedGetData       uint32 = ioWR | NrIONeedGetData
	IORegisterIOBuf     uint32 = ioWR | NrIORegisterIOBuf
	IOUnregisterIOBuf   uint32 = ioWR | NrIOUnregisterIOBuf
)

// Legacy returns the bare number of an encoded command.
func Legacy(cmd uint32) uint32 { return cmd & iocNrMask }
