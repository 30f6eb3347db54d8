package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	coppiceBinary = "/usr/local/bin/coppice"
	deviceName    = "bench"
)

// allocatedMetric is how many objects the daemon has allocated.
const allocatedMetric = "coppice_heap_allocated_objects_total"

// daemon is the product, as it is in daily use.
type daemon struct {
	cmd    *exec.Cmd
	runDir string
	url    string // of its metrics
	log    *os.File
	ended  chan error
}

// startDaemon starts a daemon whose cache has room for all of an image of that size, and waits until it answers.
func startDaemon(verify bool, imageBytes int64) (*daemon, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	if err != nil {
		return nil, fmt.Errorf("find free port: %w", err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	dir := filepath.Join(runDir, "verify-"+strconv.FormatBool(verify))
	config := dir + ".toml" // the directory is the daemon's alone
	text := fmt.Sprintf("run_dir = %q\nmetrics = %q\nverify_leaf = %t\n[cache]\nmemory = \"%dM\"\n", dir, address, verify, imageBytes*5/4>>20)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	d := &daemon{cmd: exec.Command(coppiceBinary, "daemon", "--config", config), runDir: dir, url: "http://" + address + "/metrics", ended: make(chan error, 1)}
	if d.log, err = os.Create(dir + ".log"); err != nil {
		return nil, err
	}
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start daemon: %w", err)
	}
	go func() { d.ended <- d.cmd.Wait() }()
	var last error
	if err := await(func() bool { last = d.run("list"); return last == nil || len(d.ended) > 0 }); err != nil || last != nil {
		return nil, errors.Join(fmt.Errorf("wait for the daemon: %w", errors.Join(err, last)), d.stop())
	}
	return d, nil
}

// stop ends the daemon, whose devices have been deleted.
func (d *daemon) stop() error {
	_ = d.cmd.Process.Signal(unix.SIGTERM)
	defer d.log.Close()
	select {
	case err := <-d.ended:
		return d.said(err)
	case <-time.After(30 * time.Second):
		return d.said(errors.New("the daemon does not end"))
	}
}

// said adds the daemon's log to an error.
func (d *daemon) said(err error) error {
	if err == nil {
		return nil
	}
	text, _ := os.ReadFile(d.log.Name())
	return fmt.Errorf("%w; its log:\n%s", err, text)
}

// run runs one of the tool's commands on this daemon.
func (d *daemon) run(args ...string) error { return command(coppiceBinary, d.args(args...)...) }

func (d *daemon) args(args ...string) []string { return append(args, "--run-dir", d.runDir) }

// create formats the leaf and makes a device over a root, at the same places as the command line does.
func (d *daemon) create(root, leaf string) (*device, error) {
	if err := command(coppiceBinary, "store", "format", "--force", leaf); err != nil {
		return nil, err
	}
	return d.createOn(deviceName, root, leaf)
}

// createOn makes a device on a store that is formatted.
func (d *daemon) createOn(name, root, leaf string) (*device, error) {
	text, err := output(coppiceBinary, d.args("create", name, "--root", root, "--leaf", leaf, "-o", "json")...)
	if err != nil {
		return nil, d.said(err)
	}
	var made struct {
		Path string `json:"path"`
	}
	if err := json.Unmarshal([]byte(text), &made); err != nil || made.Path == "" {
		return nil, fmt.Errorf("read what create printed: %w: %s", err, text)
	}
	return &device{path: made.Path, pid: d.cmd.Process.Pid, allocs: d.allocated, close: func() error {
		if err := d.run("delete", name); err != nil {
			return d.said(err)
		}
		return nil
	}}, nil
}

// allocated is how many objects the daemon has allocated since it was started, those that asking takes included.
func (d *daemon) allocated() (uint64, error) {
	answer, err := http.Get(d.url)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), allocatedMetric+" "); ok {
			v, err := strconv.ParseFloat(text, 64)
			return uint64(v), err
		}
	}
	return 0, fmt.Errorf("read metrics: no %s", allocatedMetric)
}
