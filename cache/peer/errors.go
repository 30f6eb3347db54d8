package peer

import "errors"

// Causes that callers tell apart. They are wrapped with what was tried.
var (
	ErrBadList    = errors.New("not a list of peers")
	ErrBadRequest = errors.New("not a request for a chunk")
	ErrProtocol   = errors.New("unexpected answer of the peer")
	ErrSilent     = errors.New("the peer is silent")
	ErrSlow       = errors.New("the peer is too slow")
	ErrBusy       = errors.New("the peer has too much to do")
	ErrAside      = errors.New("the peer was put aside")

	errSelf = errors.New("the peer is this node itself")
)
