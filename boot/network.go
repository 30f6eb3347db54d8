package boot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// lease is what the initramfs has set up an interface with.
type lease struct {
	Device     string
	NameServer []string
	Domain     string
	DHCP       bool
}

const maxLease = 64 << 10

// readLeases returns what was set up by ipconfig of klibc, which writes it to /run/net-INTERFACE.conf as lines of a shell, and by systemd-networkd, which writes
// its DHCP leases to /run/systemd/netif/leases/INDEX. The module for dracut writes files like the former for whatever has an address, and then those count.
func readLeases(root string) ([]lease, error) {
	var all []lease
	for _, from := range []struct {
		pattern string
		device  func(path string, l lease) string
	}{
		{"run/net-*.conf", func(_ string, l lease) string { return l.Device }},
		{"run/systemd/netif/leases/*", func(path string, _ lease) string { return interfaceOf(root, filepath.Base(path)) }},
	} {
		files, err := filepath.Glob(filepath.Join(root, from.pattern))
		if err != nil {
			return nil, err
		}
		slices.Sort(files)
		for _, path := range files {
			data, err := readBounded(path, maxLease)
			if err != nil {
				return nil, fmt.Errorf("read what the network was set up with: %w", err)
			}
			l := parseLease(data)
			l.Device = from.device(path, l)
			known := slices.ContainsFunc(all, func(other lease) bool { return other.Device == l.Device })
			if !known && validInterface(l.Device) {
				all = append(all, l)
			}
		}
	}
	return all, nil
}

// interfaceOf returns the name of the interface with an index, or "".
func interfaceOf(root, index string) string {
	files, _ := filepath.Glob(filepath.Join(root, "sys/class/net/*/ifindex")) // it fails on bad patterns alone
	for _, path := range files {
		if data, err := readBounded(path, 64); err == nil && strings.TrimSpace(string(data)) == index {
			return filepath.Base(filepath.Dir(path))
		}
	}
	return ""
}

// parseLease reads lines NAME='VALUE' of the one, and NAME=VALUE of the other.
func parseLease(data []byte) (l lease) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		value = strings.Trim(value, `'"`)
		switch {
		case name == "DEVICE":
			l.Device = value
		case strings.HasPrefix(name, "IPV4DNS") && value != "" && value != "0.0.0.0":
			l.NameServer = append(l.NameServer, value)
		case name == "DNSDOMAIN":
			l.Domain = value
		case name == "DNS":
			l.NameServer = append(l.NameServer, strings.Fields(value)...)
		case name == "DOMAINNAME":
			l.Domain = value
		case name == "PROTO":
			l.DHCP = value == "dhcp"
		case name == "SERVER_ADDRESS":
			l.DHCP = true
		}
	}
	return l
}

// validInterface refuses what would not be one word in the files that are written for others.
func validInterface(name string) bool {
	return name != "" && len(name) < 16 && !strings.ContainsAny(name, "/ \t\n\r*?[]!%\"'\\")
}

// writeResolvConf lets names be resolved, where the initramfs has no resolv.conf(5) yet.
func writeResolvConf(root string) error {
	path := filepath.Join(root, "etc/resolv.conf")
	if data, err := os.ReadFile(path); err == nil && len(bytes.TrimSpace(data)) > 0 {
		return nil
	}
	leases, err := readLeases(root)
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, l := range leases {
		if l.Domain != "" && !strings.ContainsAny(l.Domain, " \t\n") {
			fmt.Fprintf(&b, "search %s\n", l.Domain)
		}
		for _, server := range l.NameServer {
			fmt.Fprintf(&b, "nameserver %s\n", server)
		}
	}
	if b.Len() == 0 {
		return nil
	}
	if err := writeFile(path, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("let names be resolved: %w", err)
	}
	return nil
}

// keepNetwork leaves word in /run, for the programs that manage networks in the system that is to come, that the interfaces of the root are not to be
// taken down: a machine whose root is behind an interface does not outlive it for long.
//
//   - systemd-networkd goes on with the address that is there, renews its lease, and keeps it when it is stopped (KeepConfiguration=, systemd.network(5)).
//     It identifies itself by the MAC address, as ipconfig does, so that the server gives it the same address.
//   - ifupdown does not touch the interface, neither when it starts nor when it is stopped (EXCLUDE_INTERFACES=, ifup(8) --read-environment), nor when the interface
//     is plugged in (the instance of ifup@.service is masked).
//   - NetworkManager does not manage it (unmanaged-devices=, NetworkManager.conf(5)).
func keepNetwork(root string) error {
	leases, err := readLeases(root)
	if err != nil || len(leases) == 0 {
		return err
	}
	var names []string
	var errs []error
	for _, l := range leases {
		names = append(names, l.Device)
		errs = append(errs, writeFile(filepath.Join(root, "run/systemd/network/05-coppice-"+l.Device+".network"), []byte(networkdFile(l)), 0o644),
			mask(filepath.Join(root, "run/systemd/system/ifup@"+l.Device+".service")))
	}
	dropIn := "# Written by coppice: the root file system is behind these interfaces.\n[Service]\nEnvironment=\"EXCLUDE_INTERFACES=" + strings.Join(names, " ") + "\"\n"
	manager := "# Written by coppice: the root file system is behind these interfaces.\n[keyfile]\nunmanaged-devices=interface-name:" + strings.Join(names, ";interface-name:") + "\n"
	errs = append(errs, writeFile(filepath.Join(root, "run/systemd/system/networking.service.d/50-coppice.conf"), []byte(dropIn), 0o644),
		writeFile(filepath.Join(root, "run/NetworkManager/conf.d/50-coppice.conf"), []byte(manager), 0o644))
	return errors.Join(errs...)
}

func networkdFile(l lease) string {
	text := "# Written by coppice: the root file system is behind this interface.\n[Match]\nName=" + l.Device + "\n\n[Network]\nKeepConfiguration=yes\n"
	if l.DHCP {
		return text + "DHCP=ipv4\n\n[DHCPv4]\nClientIdentifier=mac\n"
	}
	for _, server := range l.NameServer {
		text += "DNS=" + server + "\n"
	}
	return text
}

// mask keeps systemd from starting a unit. One that is masked already stays so.
func mask(unit string) error {
	if err := os.MkdirAll(filepath.Dir(unit), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(os.DevNull, unit); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}
