//go:build vm

package scenarios

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// Generic netlink of the kernel's NBD client (include/uapi/linux/nbd-netlink.h, include/uapi/linux/genetlink.h,
// Linux 6.12).
const (
	genlIDCtrl       = 0x10
	ctrlGetFamily    = 3
	ctrlAttrFamilyID = 1
	ctrlAttrName     = 2

	nbdCmdConnect     = 1
	nbdCmdDisconnect  = 2
	nbdCmdReconfigure = 3

	nbdAttrIndex       = 1
	nbdAttrSizeBytes   = 2
	nbdAttrBlockSize   = 3
	nbdAttrTimeout     = 4
	nbdAttrServerFlags = 5
	nbdAttrSockets     = 7
	nbdAttrDeadTimeout = 8
	nbdSockItem        = 1
	nbdSockFD          = 1
)

// nbdClient keeps /dev/nbd0 connected. Where the connection is lost the kernel holds new requests for a minute, and sends those
// that had no answer again after two seconds.
type nbdClient struct {
	t      *testing.T
	port   int
	family uint16
}

// attachNBD connects /dev/nbd0 to a server; it is disconnected with the test.
func attachNBD(t *testing.T, port int) *nbdClient {
	t.Helper()
	c := &nbdClient{t: t, port: port}
	family, err := nbdFamily()
	if err != nil {
		t.Fatal(err)
	}
	c.family = family
	if err := c.configure(nbdCmdConnect); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := genl(c.family, nbdCmdDisconnect, attr32(nbdAttrIndex, 0)); err != nil {
			t.Errorf("disconnect nbd: %v", err)
		}
	})
	return c
}

// reconnect gives the kernel a new connection in place of the lost one.
func (c *nbdClient) reconnect() {
	if err := c.configure(nbdCmdReconfigure); err != nil {
		c.t.Error(err)
	}
}

func (c *nbdClient) configure(cmd uint8) error {
	sock, size, flags, err := dialNBD(c.port)
	if err != nil {
		return fmt.Errorf("dial nbd server: %w", err)
	}
	defer sock.Close() // the kernel has its own reference
	sockets := nested(nbdAttrSockets, nested(nbdSockItem, attr32(nbdSockFD, uint32(sock.Fd()))))
	attrs := [][]byte{attr32(nbdAttrIndex, 0), sockets, attr64(nbdAttrDeadTimeout, 60), attr64(nbdAttrTimeout, 2)}
	if cmd == nbdCmdConnect {
		attrs = append(attrs, attr64(nbdAttrSizeBytes, size), attr64(nbdAttrBlockSize, 512), attr64(nbdAttrServerFlags, uint64(flags)))
	}
	if _, err := genl(c.family, cmd, attrs...); err != nil {
		return fmt.Errorf("configure nbd (command %d): %w", cmd, err)
	}
	return nil
}

// dialNBD opens a connection and does the fixed newstyle handshake for the default export
// (the NBD project's doc/proto.md).
func dialNBD(port int) (sock *os.File, size uint64, flags uint16, err error) {
	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return nil, 0, 0, err
	}
	defer conn.Close()
	greeting := make([]byte, 18)
	if _, err := io.ReadFull(conn, greeting); err != nil {
		return nil, 0, 0, err
	}
	const fixedNoZeroes, exportName = 3, 1
	hello := binary.BigEndian.AppendUint32(nil, fixedNoZeroes)
	hello = append(hello, "IHAVEOPT"...)
	hello = binary.BigEndian.AppendUint32(hello, exportName)
	hello = binary.BigEndian.AppendUint32(hello, 0) // length of the empty name
	if _, err := conn.Write(hello); err != nil {
		return nil, 0, 0, err
	}
	export := make([]byte, 10)
	if _, err := io.ReadFull(conn, export); err != nil {
		return nil, 0, 0, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, 0, 0, fmt.Errorf("connection is a %T", conn)
	}
	sock, err = tcp.File()
	return sock, binary.BigEndian.Uint64(export), binary.BigEndian.Uint16(export[8:]), err
}

func nbdFamily() (uint16, error) {
	reply, err := genl(genlIDCtrl, ctrlGetFamily, attr(ctrlAttrName, []byte("nbd\x00")))
	if err != nil {
		return 0, fmt.Errorf("look up netlink family of nbd: %w", err)
	}
	for rest := reply; len(rest) >= 4; {
		n := int(binary.NativeEndian.Uint16(rest))
		if n < 4 || n > len(rest) {
			break
		}
		if binary.NativeEndian.Uint16(rest[2:]) == ctrlAttrFamilyID {
			return binary.NativeEndian.Uint16(rest[4:]), nil
		}
		rest = rest[min(len(rest), (n+3)&^3):]
	}
	return 0, fmt.Errorf("look up netlink family of nbd: no id in the reply")
}

func attr(kind uint16, value []byte) []byte {
	p := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	p = append(binary.NativeEndian.AppendUint16(p, kind), value...)
	return append(p, make([]byte, -len(p)&3)...)
}

func attr32(kind uint16, v uint32) []byte {
	return attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}
func attr64(kind uint16, v uint64) []byte {
	return attr(kind, binary.NativeEndian.AppendUint64(nil, v))
}
func nested(kind uint16, value []byte) []byte {
	return attr(kind|unix.NLA_F_NESTED, value)
}

// genl sends one generic netlink request and returns the attributes of the first reply.
func genl(family uint16, cmd uint8, attrs ...[]byte) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	body := append([]byte{cmd, 1, 0, 0}, slices.Concat(attrs...)...)
	msg := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, family)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	msg = append(msg, make([]byte, 8)...) // sequence number and port: the kernel's choice
	if err := unix.Sendto(fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var reply []byte
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return nil, err
		}
		for rest := buf[:n]; len(rest) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(rest))
			if size < unix.NLMSG_HDRLEN || size > len(rest) {
				return nil, fmt.Errorf("read netlink reply: message of %d bytes", size)
			}
			if binary.NativeEndian.Uint16(rest[4:]) == unix.NLMSG_ERROR {
				code := int32(binary.NativeEndian.Uint32(rest[unix.NLMSG_HDRLEN:]))
				if code != 0 {
					return nil, unix.Errno(-code)
				}
				return reply, nil
			}
			reply = slices.Clone(rest[unix.NLMSG_HDRLEN+4 : size])
			rest = rest[min(len(rest), (size+3)&^3):]
		}
	}
}
