package ublk

// userData is what comes back with each completion, 64 bits and never a Go pointer:
//
//	63    60 59              44 43          32 31              16 15               0
//	| kind  |   queue's slot   |     tag      |   generation     |      cookie      |
//
// The slot is the queue's number on its reactor. The generation counts the requests of the tag
// modulo 65536, so that a completion cannot be taken for one of a later request.
type userData uint64

type userKind uint8

const (
	kindWake    userKind = 1 // the reactor's eventfd was read
	kindCommand userKind = 2 // a FETCH or COMMIT_AND_FETCH came back: a request, or the end of the tag
	kindTarget  userKind = 3 // target I/O of a request
)

const (
	maxSlots = 1 << 16

	tagShift  = 32
	slotShift = 44
	kindShift = 60
	tagMask   = 1<<12 - 1
)

func packUserData(kind userKind, slot, tag, gen, cookie uint16) userData {
	return userData(kind)<<kindShift | userData(slot)<<slotShift | userData(tag)<<tagShift |
		userData(gen)<<16 | userData(cookie)
}

func (u userData) kind() userKind { return userKind(u >> kindShift) }
func (u userData) slot() uint16   { return uint16(u >> slotShift) }
func (u userData) tag() uint16    { return uint16(u>>tagShift) & tagMask }
func (u userData) gen() uint16    { return uint16(u >> 16) }
func (u userData) cookie() uint16 { return uint16(u) }
