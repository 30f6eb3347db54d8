package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// nbdDevice is the one that servers of NBD are attached to, one at a time.
const nbdDevice = "nbd0"

// newQemu presents a qcow2 overlay, made on the block device store, over the raw disk root.
func newQemu(root, store string, size int64) (*device, error) {
	if err := wipe(store); err != nil {
		return nil, err
	}
	if err := command("qemu-img", "create", "-q", "-f", "qcow2", "-b", root, "-F", "raw", store, strconv.FormatInt(size, 10)); err != nil {
		return nil, err
	}
	server := exec.Command("qemu-nbd", "--connect=/dev/"+nbdDevice, "--format=qcow2", "--cache=none", "--aio=native", "--verbose", store)
	return nbdServed(server, nil, func() error { return command("qemu-nbd", "--disconnect", "/dev/"+nbdDevice) })
}

// newNbdkit presents the raw disk root with its cow filter, which keeps what is written in a file that is deleted already.
func newNbdkit(root string, size int64) (*device, error) {
	const socket = "/run/coppice-bench-nbdkit"
	server := exec.Command("nbdkit", "--foreground", "--unix="+socket, "--filter=truncate", "--filter=cow", "file", root,
		"cow-block-size=4096", "truncate="+strconv.FormatInt(size, 10))
	server.Env = append(os.Environ(), "TMPDIR=/dev/shm")
	attach := func() error {
		if err := await(func() bool { _, err := os.Stat(socket); return err == nil }); err != nil {
			return fmt.Errorf("wait for nbdkit: %w", err)
		}
		return command("nbd-client", "-unix", socket, "/dev/"+nbdDevice, "-b", "4096")
	}
	d, err := nbdServed(server, attach, func() error { return command("nbd-client", "-d", "/dev/"+nbdDevice) })
	_ = os.Remove(socket)
	return d, err
}

// nbdServed starts a server, attaches the device to it unless the server does so itself, and waits until it has a size. Closing detaches it and ends
// the server.
func nbdServed(server *exec.Cmd, attach, detach func() error) (_ *device, err error) {
	var words strings.Builder
	server.Stdout, server.Stderr = &words, &words
	if err := server.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", server.Args[0], err)
	}
	ended := make(chan struct{})
	go func() { _ = server.Wait(); close(ended) }()
	end := func() error {
		_ = server.Process.Signal(unix.SIGTERM)
		select {
		case <-ended:
			return nil
		case <-time.After(10 * time.Second):
			return fmt.Errorf("%s does not end", server.Args[0])
		}
	}
	if attach != nil {
		err = attach()
	}
	if err == nil {
		gone := false
		err = await(func() bool {
			select {
			case <-ended:
				gone = true
			default:
			}
			return gone || nbdSize() > 0
		})
		if gone {
			err = fmt.Errorf("it has ended")
		}
	}
	if err != nil {
		_ = end()
		return nil, fmt.Errorf("attach %s: %w\n%s", server.Args[0], err, words.String())
	}
	return &device{path: "/dev/" + nbdDevice, pid: server.Process.Pid, close: func() error {
		if err := detach(); err != nil {
			return err
		}
		if err := end(); err != nil {
			return err
		}
		return await(func() bool { return nbdSize() == 0 })
	}}, nil
}

// nbdSize returns the size of the NBD device in sectors, 0 where nothing is attached.
func nbdSize() int64 {
	text, err := os.ReadFile("/sys/block/" + nbdDevice + "/size")
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// await waits until ready says so.
func await(ready func() bool) error {
	for deadline := time.Now().Add(20 * time.Second); !ready(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready after 20 s")
		}
	}
	return nil
}

// wipe makes a store look empty to whoever looks at its first blocks.
func wipe(store string) error { return fill(store, 1<<20, 0) }

// command runs a program, whose words are part of the error.
func command(name string, args ...string) error {
	_, err := output(name, args...)
	return err
}

// output is command for a program that prints something.
func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "DM_DISABLE_UDEV=1") // there is none to wait for
	var words, printed strings.Builder
	cmd.Stdout, cmd.Stderr = &printed, &words
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s %s: %w: %s%s", name, strings.Join(args, " "), err, words.String(), printed.String())
	}
	return strings.TrimSpace(printed.String()), nil
}
