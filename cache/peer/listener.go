package peer

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// boundedListener has a bounded number of connections. Nodes keep theirs for minutes, up to as many as they have requests under way at once: a few dozen nodes that have just read much fill any bound with
// connections on which nothing happens. For a new one the one goes that has been idle for longest. Who had it makes another one when it asks again.
type boundedListener struct {
	net.Listener
	most int

	mu   sync.Mutex // guards what follows
	open int
	idle list.List // of *boundedConn, the one first that has been idle for longest
}

type boundedConn struct {
	net.Conn
	l *boundedListener

	// Guarded by the listener's mu.
	idle   *list.Element // nil while it is not
	closed bool
}

// Accept returns the next connection that there is room for. Those that there is none for are closed.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		bounded, crowded := l.enter(c)
		if crowded != nil {
			_ = crowded.Close()
		}
		if bounded != nil {
			return bounded, nil
		}
		c.Close()
	}
}

// enter takes a connection in, and takes out the one that has to go for it; nil where there is no room.
func (l *boundedListener) enter(c net.Conn) (entered, crowded *boundedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.most {
		oldest := l.idle.Front()
		if oldest == nil {
			return nil, nil
		}
		crowded = oldest.Value.(*boundedConn)
		l.leave(crowded)
	}
	l.open++
	return &boundedConn{Conn: c, l: l}, crowded
}

// leave makes room where a connection was. mu is held.
func (l *boundedListener) leave(c *boundedConn) {
	l.busy(c)
	if !c.closed {
		c.closed = true
		l.open--
	}
}

// busy takes a connection off those that are idle. mu is held.
func (l *boundedListener) busy(c *boundedConn) {
	if c.idle != nil {
		l.idle.Remove(c.idle)
		c.idle = nil
	}
}

// changed is what [http.Server.ConnState] is.
func (l *boundedListener) changed(c net.Conn, state http.ConnState) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	b, ok := c.(*boundedConn)
	if !ok {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy(b)
	if state == http.StateIdle && !b.closed {
		b.idle = l.idle.PushBack(b)
	}
}

// Close closes the connection and makes room for another one.
func (c *boundedConn) Close() error {
	c.l.mu.Lock()
	c.l.leave(c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}
