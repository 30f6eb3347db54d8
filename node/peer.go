package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// peer is the process at the other end of a connection, as the kernel knew it when
// it connected (SO_PEERCRED, unix(7)).
type peer struct {
	pid int32
	uid uint32
}

// mayChange tells whether the peer may create and delete devices: root may, and the user
// that the daemon itself runs as, who owns all that it has anyway.
func (p peer) mayChange() bool {
	return p.uid == 0 || int(p.uid) == os.Geteuid()
}

type peerKey struct{}

func withPeer(ctx context.Context, c net.Conn) context.Context {
	pc, ok := c.(*peerConn)
	if !ok {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, pc.peer)
}

// peerOf returns the peer of a request's connection.
func peerOf(ctx context.Context) (peer, bool) {
	p, ok := ctx.Value(peerKey{}).(peer)
	return p, ok
}

// peerListener asks for the credentials of each connection and bounds
// how many one user may hold open.
type peerListener struct {
	net.Listener
	perUser int

	mu   sync.Mutex
	open map[uint32]int // by uid
}

func newPeerListener(l net.Listener, perUser int) *peerListener {
	return &peerListener{Listener: l, perUser: perUser, open: make(map[uint32]int)}
}

// Accept returns the next connection whose peer is known and within the bound;
// others are closed at once.
func (l *peerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		p, err := credentials(c)
		if err != nil || !l.admit(p.uid) {
			_ = c.Close()
			continue
		}
		return &peerConn{Conn: c, peer: p, leave: sync.OnceFunc(func() { l.release(p.uid) })}, nil
	}
}

func (l *peerListener) admit(uid uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[uid] >= l.perUser {
		return false
	}
	l.open[uid]++
	return true
}

func (l *peerListener) release(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[uid]--; l.open[uid] <= 0 {
		delete(l.open, uid)
	}
}

type peerConn struct {
	net.Conn
	peer  peer
	leave func()
}

// Close closes the connection and gives its place back.
func (c *peerConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

func credentials(c net.Conn) (peer, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return peer{}, errors.New("read peer credentials: not a unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, credErr); err != nil {
		return peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	return peer{pid: cred.Pid, uid: cred.Uid}, nil
}
