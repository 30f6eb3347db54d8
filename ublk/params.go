package ublk

import (
	"errors"
	"fmt"
	"math/bits"
	"unsafe"

	"coppice/ublk/uapi"
)

const (
	defaultQueues    = 1
	defaultBlockSize = 512
	defaultPhysSize  = 4096
	maxSizeBytes     = 1 << 62

	// The largest discard and write-zeroes request in sectors: what a bio can carry, cut to
	// whole blocks of 4 KiB.
	maxDiscardSectors = (1<<32 - 1) >> uapi.SectorShift &^ 7
)

// AutoID lets the kernel choose the lowest free id.
const AutoID = -1

// Params is what a device is to be, and, from [Device.Params], what the kernel made of it.
type Params struct {
	ID int // N of /dev/ublkbN, or [AutoID]

	SizeBytes     int64 // a multiple of BlockSize, above 0
	BlockSize     int   // logical: 512 or 4096; 0 means 512
	PhysBlockSize int   // what the device does best: a power of two from BlockSize to 4096; 0 means 4096
	MaxIOBytes    int   // largest READ or WRITE: a multiple of 4096 up to 32 MiB; 0 means 512 KiB
	Queues        int   // 1 to 4096, cut to the number of CPUs; 0 means 1
	Depth         int   // requests in flight per queue, 1 to 4096; 0 means 128

	ReadOnly bool // the kernel refuses writes
	Discard  bool // DISCARD and WRITE_ZEROES are sent, not written out as zeros by the kernel

	// Recoverable devices outlive their server. On kernels without FeaturePerIODaemon (before
	// 6.16) they get one queue, because there the death of a server between the start of two queues
	// makes recovery crash the kernel (ublk_queue_reinit, drivers/block/ublk_drv.c, Linux 6.12).
	Recoverable bool

	// ServerData is the server's own: the driver keeps it and gives it back in [Info].
	ServerData uint64
}

func (p *Params) setDefaults() error {
	for _, d := range []struct {
		value *int
		unset int
	}{
		{&p.BlockSize, defaultBlockSize}, {&p.PhysBlockSize, defaultPhysSize}, {&p.MaxIOBytes, defaultMaxIO},
		{&p.Queues, defaultQueues}, {&p.Depth, defaultDepth},
	} {
		if *d.value == 0 {
			*d.value = d.unset
		}
	}
	return p.validate()
}

func (p *Params) validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(p.ID >= AutoID && p.ID < 1<<20, "id %d is not within 0 to %d", p.ID, 1<<20-1)
	check(p.BlockSize == 512 || p.BlockSize == 4096, "block size %d is neither 512 nor 4096", p.BlockSize)
	check(p.PhysBlockSize >= p.BlockSize && p.PhysBlockSize <= 4096 && p.PhysBlockSize&(p.PhysBlockSize-1) == 0,
		"physical block size %d is not a power of two from %d to 4096", p.PhysBlockSize, p.BlockSize)
	check(p.SizeBytes > 0 && p.SizeBytes <= maxSizeBytes && p.SizeBytes%512 == 0 && (p.BlockSize <= 0 || p.SizeBytes%int64(p.BlockSize) == 0),
		"size of %d bytes is not a positive multiple of the block size %d", p.SizeBytes, p.BlockSize)
	check(p.MaxIOBytes >= 4096 && p.MaxIOBytes <= maxMaxIO && p.MaxIOBytes%4096 == 0,
		"largest I/O of %d bytes is not a multiple of 4096 up to %d", p.MaxIOBytes, maxMaxIO)
	check(p.Queues >= 1 && p.Queues <= uapi.MaxQueues, "%d queues are not within 1 to %d", p.Queues, uapi.MaxQueues)
	check(p.Depth >= 1 && p.Depth <= uapi.MaxQueueDepth, "depth %d is not within 1 to %d", p.Depth, uapi.MaxQueueDepth)
	return errors.Join(errs...)
}

// devInfo is what ADD_DEV is asked for.
func (p *Params) devInfo(have Features) uapi.DevInfo {
	info := uapi.DevInfo{
		NrHWQueues:    uint16(p.Queues),
		QueueDepth:    uint16(p.Depth),
		MaxIOBufBytes: uint32(p.MaxIOBytes),
		DevID:         uapi.AutoDevID,
		ServerFlags:   p.ServerData,
	}
	if p.ID != AutoID {
		info.DevID = uint32(p.ID)
	}
	if p.Recoverable {
		info.Flags = uapi.FUserRecovery | uapi.FUserRecoveryReissue | uint64(have&FeatureQuiesce)
		if !have.Has(FeaturePerIODaemon) {
			info.NrHWQueues = 1
		}
	}
	return info
}

// driverParams is what SET_PARAMS is given. A volatile cache is always advertised: without it
// the kernel would send neither flushes nor FUA writes.
func (p *Params) driverParams() uapi.Params {
	u := uapi.Params{
		Len:   uint32(unsafe.Sizeof(uapi.Params{})),
		Types: uapi.ParamBasic,
		Basic: uapi.ParamsBasic{
			Attrs:           uapi.AttrVolatileCache | uapi.AttrFUA,
			LogicalBSShift:  shift(p.BlockSize),
			PhysicalBSShift: shift(p.PhysBlockSize),
			IOOptShift:      shift(p.PhysBlockSize),
			IOMinShift:      shift(p.PhysBlockSize),
			MaxSectors:      uint32(p.MaxIOBytes >> uapi.SectorShift),
			DevSectors:      uint64(p.SizeBytes >> uapi.SectorShift),
		},
	}
	if p.ReadOnly {
		u.Basic.Attrs |= uapi.AttrReadOnly
	}
	if p.Discard {
		u.Types |= uapi.ParamDiscard
		u.Discard = uapi.ParamsDiscard{
			Granularity:           uint32(p.PhysBlockSize),
			MaxDiscardSectors:     maxDiscardSectors,
			MaxWriteZeroesSectors: maxDiscardSectors,
			MaxSegments:           1,
		}
	}
	return u
}

// paramsFrom is what the kernel made of a device.
func paramsFrom(info *Info, u *uapi.Params) Params {
	return Params{
		ID:            info.ID,
		SizeBytes:     int64(u.Basic.DevSectors << uapi.SectorShift),
		BlockSize:     1 << u.Basic.LogicalBSShift,
		PhysBlockSize: 1 << u.Basic.PhysicalBSShift,
		MaxIOBytes:    min(info.MaxIOBytes, int(u.Basic.MaxSectors)<<uapi.SectorShift),
		Queues:        info.Queues,
		Depth:         info.Depth,
		ReadOnly:      u.Basic.Attrs&uapi.AttrReadOnly != 0,
		Discard:       u.Types&uapi.ParamDiscard != 0,
		Recoverable:   info.Flags.Has(FeatureRecovery),
		ServerData:    info.ServerData,
	}
}

func shift(n int) uint8 { return uint8(bits.TrailingZeros(uint(n))) }
