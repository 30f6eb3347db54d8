package ublk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const sysRoot = "/sys"

const (
	// recoverableTimeout bounds how long the death of a server can go unseen when it held every tag:
	// the driver looks only when a request times out (ublk_timeout, drivers/block/ublk_drv.c,
	// Linux 6.12). Requests of a living server never time out.
	recoverableTimeout = 3 * time.Second

	// minRequests is the least that the kernel accepts (BLKDEV_MIN_RQ, block/blk.h).
	minRequests = 4
)

// queueDir is where the kernel's knobs of a block device are.
func queueDir(root string, id int) string {
	return filepath.Join(root, "block", "ublkb"+strconv.Itoa(id), "queue")
}

// tune sets what the driver has no parameter for, and makes sure that it is set.
func tune(dir string, p *Params) error {
	if err := setScheduler(dir, "none"); err != nil {
		return err
	}
	if !p.Recoverable {
		return nil
	}
	if err := writeKnob(dir, "io_timeout", strconv.FormatInt(recoverableTimeout.Milliseconds(), 10)); err != nil {
		return err
	}
	if p.Depth <= minRequests {
		return nil
	}
	// One tag stays idle for good. When the server dies its command is cancelled, and the kernel
	// knows at once, even if every other tag is busy.
	return writeKnob(dir, "nr_requests", strconv.Itoa(p.Depth-1))
}

// setScheduler turns off a scheduler that the kernel chose (mq-deadline, where that module is loaded).
func setScheduler(dir, want string) error {
	mark := "[" + want + "]"
	have, err := readKnob(dir, "scheduler")
	if err == nil && !strings.Contains(have, mark) {
		if err = writeKnob(dir, "scheduler", want); err == nil {
			have, err = readKnob(dir, "scheduler")
		}
	}
	if err == nil && !strings.Contains(have, mark) && have != want {
		err = fmt.Errorf("set scheduler %s: kernel has %q", want, have)
	}
	return err
}

func readKnob(dir, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// writeKnob leaves a knob alone that has the value already: to write some makes the kernel wait
// for all I/O of the device.
func writeKnob(dir, name, value string) error {
	if have, err := readKnob(dir, name); err == nil && have == value {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", name, value, err)
	}
	return nil
}
