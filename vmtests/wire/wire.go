// Package wire is the protocol between the VM harness on the host and its agent in the guest: one JSON object a
// line over a virtio-serial port. The host sends [Request], the guest answers with [Event]; several runs may be under
// way at once and are told apart by their id.
package wire

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// PortName is the name of the virtio-serial port that carries the protocol (its sysfs attribute "name").
const PortName = "coppice.agent"

// BootFile is where the guest finds its [Boot] description inside the initramfs.
const BootFile = "/harness/boot.json"

// Boot tells the guest what to prepare before it says hello.
type Boot struct {
	Modules  []string `json:"modules,omitempty"`  // loaded in this order, dependencies first
	Userland string   `json:"userland,omitempty"` // serial of the disk that holds the tools; empty: stay in the initramfs
	Disks    []string `json:"disks,omitempty"`    // serials to wait for; linked as /dev/disk/by-id/virtio-SERIAL
	Links    []Link   `json:"links,omitempty"`    // symbolic links to make in the final root
	System   string   `json:"system,omitempty"`   // serial of an ext4 disk: its /sbin/init takes over, and there is no hello
	Union    *Union   `json:"union,omitempty"`    // instead of System: the disk of the system is made in the guest
}

// Union is a disk that coppice makes of an image and a leaf before the system starts. Program and configuration are where coppice looks for them.
type Union struct {
	Address string `json:"address"` // of eth0, as ADDRESS/BITS
	Image   string `json:"image"`   // reference of the root
	Leaf    string `json:"leaf"`    // serial of the disk that becomes the leaf store
}

// Link is one symbolic link in the guest's final root.
type Link struct {
	Path   string `json:"path"`
	Target string `json:"target"`
}

// Request is one message from host to guest. Exactly one of the pointers is set.
type Request struct {
	ID       uint64    `json:"id"`
	Run      *Run      `json:"run,omitempty"`
	Signal   *Signal   `json:"signal,omitempty"`
	Dump     *struct{} `json:"dump,omitempty"`
	Shutdown *struct{} `json:"shutdown,omitempty"`
}

// Run starts a command in its own session. Its standard output and error come back merged.
type Run struct {
	Argv    []string      `json:"argv"`
	Env     []string      `json:"env,omitempty"` // added to the agent's own
	Dir     string        `json:"dir,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"` // 0: none. At its end: state dump, SIGQUIT, five seconds later SIGKILL
}

// Signal is delivered to the process group of an earlier run with the same id.
type Signal struct {
	Number int `json:"number"`
}

// Event is one message from guest to host. Exactly one of the fields beside ID is set.
type Event struct {
	ID     uint64 `json:"id"`
	Hello  *Hello `json:"hello,omitempty"`
	Output []byte `json:"output,omitempty"`
	Exit   *Exit  `json:"exit,omitempty"`
	Dump   string `json:"dump,omitempty"`
	Fatal  string `json:"fatal,omitempty"` // the agent itself cannot go on
}

// Hello is the first event of a guest that is ready for requests.
type Hello struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	Uptime string `json:"uptime"`
}

// Exit ends a run.
type Exit struct {
	Code     int      `json:"code"`             // exit status, -1 when killed by a signal or not started
	Signal   string   `json:"signal,omitempty"` // name of the signal that ended it
	Err      string   `json:"err,omitempty"`    // why it could not be started or waited for
	TimedOut bool     `json:"timed_out,omitempty"`
	Dump     string   `json:"dump,omitempty"`   // kernel log and task states, taken at the time-out
	Faults   []string `json:"faults,omitempty"` // kernel BUG, WARNING and Oops lines that appeared during the run
}

// OK reports a run that ended by itself with status 0 and left no kernel fault.
func (e Exit) OK() bool {
	return e.Code == 0 && e.Err == "" && !e.TimedOut && len(e.Faults) == 0
}

// String describes the end of a run in one line.
func (e Exit) String() string {
	s := fmt.Sprintf("exit status %d", e.Code)
	switch {
	case e.Err != "":
		s = e.Err
	case e.Signal != "":
		s = "killed by " + e.Signal
	}
	if e.TimedOut {
		s += " after the time-out"
	}
	if len(e.Faults) > 0 {
		s += fmt.Sprintf("; kernel: %q", e.Faults)
	}
	return s
}

// Conn sends and receives messages over a byte stream. Send may be called from any goroutine, Receive from one.
type Conn struct {
	mu  sync.Mutex // guards w
	w   io.Writer
	dec *json.Decoder
}

// NewConn makes a connection over rw, which stays the caller's to close.
func NewConn(rw io.ReadWriter) *Conn {
	return &Conn{w: rw, dec: json.NewDecoder(bufio.NewReaderSize(rw, 64<<10))}
}

// Send writes one message.
func (c *Conn) Send(msg any) error {
	line, err := json.Marshal(msg)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive reads the next message into msg. It returns io.EOF when the other side is gone.
func (c *Conn) Receive(msg any) error {
	return c.dec.Decode(msg)
}
