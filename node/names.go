package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// namesName is the directory of a run directory in which udev finds what the devices are called: its file ublkbN says COPPICE_NAME=NAME. The rule
// that makes /dev/coppice/by-name/NAME of it is systemd/root/usr/lib/udev/rules.d/90-coppice.rules.
const namesName = "udev"

// udevNames has one file for each kernel device of the daemon. A file is there before the kernel tells udev of the device.
type udevNames struct{ dir string }

func (n udevNames) path(id int) string { return filepath.Join(n.dir, fmt.Sprintf("ublkb%d", id)) }

// set says what device id is called.
func (n udevNames) set(id int, name string) error {
	if err := writeAtomically(n.path(id), []byte("COPPICE_NAME="+name+"\n")); err != nil {
		return fmt.Errorf("name device %d for udev: %w", id, err)
	}
	return nil
}

// clear forgets a name; none there is no error.
func (n udevNames) clear(id int) error {
	err := os.Remove(n.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// keep makes the directory say what ids does, and no more: what a killed daemon was about to make is dropped.
func (n udevNames) keep(ids map[int]string) error {
	entries, err := os.ReadDir(n.dir)
	if err != nil {
		return fmt.Errorf("read names for udev: %w", err)
	}
	var errs []error
	for _, e := range entries {
		var id int
		_, err := fmt.Sscanf(e.Name(), "ublkb%d", &id)
		if err != nil || ids[id] == "" || strings.HasPrefix(e.Name(), tempPrefix) {
			errs = append(errs, os.Remove(filepath.Join(n.dir, e.Name())))
		}
	}
	for id, name := range ids {
		errs = append(errs, n.set(id, name))
	}
	return errors.Join(errs...)
}
