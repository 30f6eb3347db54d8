package boot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// LinksLimit is how long RaiseLinks need be waited for: a cable's two ends agree within some seconds, or there is nobody at the other end.
	LinksLimit = 10 * time.Second

	linksPause = 20 * time.Millisecond
	// ipDevice is which of the fields of ip= names an interface (Documentation/admin-guide/nfs/nfsroot.rst, Linux 6.12).
	ipDevice = 5
)

// RaiseLinks switches network interfaces on, that of ip= on the kernel's command line or else all that have a hardware address, and returns when one of them has a carrier,
// or with an error when ctx is done. Interfaces that appear meanwhile count, too. root is the directory in which proc is mounted.
//
// It goes before ipconfig of klibc, which asks a DHCP server as soon as it has switched an interface on, and asks again only ten seconds later. The kernel drops what is sent until its link
// watch has seen the carrier (net/core/link_watch.c, Linux 6.12), so that the first question is lost on an interface that was off.
func RaiseLinks(ctx context.Context, root string) error {
	line, err := readBounded(filepath.Join(root, procCommandLine), maxCommandLine)
	if err != nil {
		return fmt.Errorf("read the kernel's command line: %w", err)
	}
	return links{interfaces: net.Interfaces, raise: raiseLink}.await(ctx, ipInterface(string(line)))
}

// links are the machine's network interfaces.
type links struct {
	interfaces func() ([]net.Interface, error)
	raise      func(name string) error
}

// await raises the interface of a name, "" being all, and waits until one has a carrier.
func (l links) await(ctx context.Context, name string) error {
	raised := map[string]bool{}
	for {
		all, err := l.interfaces()
		if err != nil {
			return fmt.Errorf("list network interfaces: %w", err)
		}
		all = slices.DeleteFunc(all, func(i net.Interface) bool { return len(i.HardwareAddr) == 0 || name != "" && i.Name != name })
		for _, i := range all {
			if i.Flags&net.FlagUp != 0 && i.Flags&net.FlagRunning != 0 {
				return nil
			}
			if !raised[i.Name] && i.Flags&net.FlagUp == 0 {
				if err := l.raise(i.Name); err != nil {
					return fmt.Errorf("switch on network interface %s: %w", i.Name, err)
				}
				raised[i.Name] = true
			}
		}
		select {
		case <-ctx.Done():
			return noCarrier(all, name)
		case <-time.After(linksPause):
		}
	}
}

func noCarrier(all []net.Interface, name string) error {
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	switch {
	case len(all) > 0:
		return fmt.Errorf("no carrier at %s", strings.Join(names, ", "))
	case name != "":
		return fmt.Errorf("there is no network interface %s, which ip= names", name)
	default:
		return errors.New("there is no network interface")
	}
}

// ipInterface is the interface that ip= names, or "". The last ip= counts, as in initramfs-tools.
func ipInterface(line string) (name string) {
	for _, word := range splitCommandLine(line) {
		value, ok := strings.CutPrefix(word, "ip=")
		if !ok {
			continue
		}
		name = ""
		if fields := strings.Split(value, ":"); len(fields) > ipDevice {
			name = fields[ipDevice]
		}
	}
	return name
}

// raiseLink sets IFF_UP (netdevice(7)).
func raiseLink(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr)
	}
	if err != nil {
		return err
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
