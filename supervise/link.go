package supervise

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"coppice/internal/resident"
)

// linkVariable has the number of a descriptor, the daemon's end of a socket to its supervisor.
const linkVariable = "COPPICE_SUPERVISOR_FD"

// What a daemon says on the link, one in each message.
const (
	sayReady  = "ready"   // with its program as a descriptor
	sayFailed = "failed " // and why
)

// maxMessage is how much of one message is said.
const maxMessage = 4 << 10

// Link is the daemon's end of the socket to its supervisor. The nil Link is of a daemon that has none.
type Link struct {
	file *os.File
	gone chan struct{}
}

// OpenLink returns the link of this process, or nil where nobody supervises it. Programs that it executes do not get it.
func OpenLink() (*Link, error) {
	text, ok := os.LookupEnv(linkVariable)
	if !ok {
		return nil, nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("find supervisor: %s=%q is not a number", linkVariable, text)
	}
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("find supervisor: descriptor %d is not its socket", fd)
	}
	unix.CloseOnExec(fd)
	l := &Link{os.NewFile(uintptr(fd), "supervisor"), make(chan struct{})}
	go l.watch()
	return l, nil
}

// watch closes gone when the supervisor has ended; it never says anything.
func (l *Link) watch() {
	defer close(l.gone)
	for {
		n, _, err := unix.Recvfrom(int(l.file.Fd()), make([]byte, 1), 0)
		if errors.Is(err, unix.EINTR) || n > 0 {
			continue
		}
		return
	}
}

// Gone is closed when the supervisor has ended. That of a nil Link is nil.
func (l *Link) Gone() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.gone
}

// Ready says that the daemon serves, and which program it is: the next one will be of the same.
func (l *Link) Ready() error {
	if l == nil {
		return nil
	}
	program, err := os.Open(resident.Self)
	if err != nil {
		return fmt.Errorf("tell supervisor: %w", err)
	}
	defer func() { _ = program.Close() }()
	return l.say(sayReady, unix.UnixRights(int(program.Fd())))
}

// Failed says why the daemon is about to end.
func (l *Link) Failed(why string) error {
	if l == nil {
		return nil
	}
	return l.say(sayFailed+why, nil)
}

func (l *Link) say(text string, rights []byte) error {
	err := unix.Sendmsg(int(l.file.Fd()), []byte(text[:min(len(text), maxMessage)]), rights, nil, unix.MSG_NOSIGNAL)
	if err != nil {
		return fmt.Errorf("tell supervisor: %w", err)
	}
	return nil
}

// KeepForExec has the next program that this process executes inherit the link, or not again. What it
// inherits is found by [OpenLink].
func (l *Link) KeepForExec(keep bool) error {
	if l == nil {
		return nil
	}
	flags := unix.FD_CLOEXEC
	if keep {
		flags = 0
	}
	if _, err := unix.FcntlInt(l.file.Fd(), unix.F_SETFD, flags); err != nil {
		return fmt.Errorf("keep link to supervisor: %w", err)
	}
	return nil
}

// message is what came from a daemon.
type message struct {
	text    string
	program *os.File // nil: none
}

// receive waits for a message; at the end of the daemon it returns an error.
func receive(link *os.File) (message, error) {
	text, rights := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	for {
		n, rightsLen, _, _, err := unix.Recvmsg(int(link.Fd()), text, rights, unix.MSG_CMSG_CLOEXEC)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return message{}, err
		case n == 0:
			return message{}, errors.New("the daemon has closed its end")
		}
		m := message{text: string(text[:n])}
		if rightsLen > 0 {
			m.program, err = fileFrom(rights[:rightsLen])
		}
		return m, err
	}
}

func fileFrom(rights []byte) (*os.File, error) {
	all, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(all) != 1 {
		return nil, fmt.Errorf("read control message: %d of them: %w", len(all), err)
	}
	fds, err := unix.ParseUnixRights(&all[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("read descriptors: %d of them: %w", len(fds), err)
	}
	return os.NewFile(uintptr(fds[0]), "program"), nil
}

// newLink returns the supervisor's end and the daemon's.
func newLink() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "daemon"), os.NewFile(uintptr(fds[1]), "supervisor"), nil
}
