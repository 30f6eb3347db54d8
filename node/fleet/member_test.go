package fleet_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice/appliance"
	"coppice/cache/trace"
	"coppice/certs"
	"coppice/image"
	"coppice/node"
	"coppice/node/nodetest"
)

var memberFlag = flag.String("member", "", "be a member of a fleet, which this JSON describes")

// memberConfig describes a member of a fleet: a process in a network namespace of its own.
type memberConfig struct {
	Addr string `json:"addr"` // of the process, without a port

	// A node has these.
	Config string `json:"config"` // file of its daemon
	Trace  string `json:"trace"`  // file

	// An appliance has these instead.
	Root string   `json:"root"`
	TLS  []string `json:"tls"` // files of the authority, the certificate and its key
}

// readyLine is what a member says when it is there.
type readyLine struct {
	Namespace string `json:"namespace"` // of its network
}

// bootLine is what a node says when it has booted.
type bootLine struct {
	trace.Tally
	Wall time.Duration `json:"wall"` // in nanoseconds
}

func TestMain(m *testing.M) {
	flag.Parse()
	if *memberFlag == "" {
		os.Exit(m.Run())
	}
	if err := runMember(*memberFlag); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// member is a process of a fleet. Each line that it is sent lets it go on by one step, and it ends with its input.
type member struct {
	memberConfig
	in  *bufio.Reader
	log *slog.Logger
}

func runMember(text string) error {
	signal.Ignore(syscall.SIGPIPE)
	m := member{in: bufio.NewReader(os.Stdin), log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	if err := json.Unmarshal([]byte(text), &m.memberConfig); err != nil {
		return err
	}
	addrs, err := m.in.ReadString('\n') // comes when there is a wire
	if err != nil {
		return nil
	}
	if err := join(m.Addr, strings.Fields(addrs)); err != nil {
		return err
	}
	if m.Root != "" {
		return m.beAppliance()
	}
	return m.beNode()
}

// next waits for a line, and reports whether there was one.
func (m *member) next() bool {
	_, err := m.in.ReadString('\n')
	return err == nil
}

// ready says that the member is there.
func (m *member) ready() error {
	namespace, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	return say(readyLine{namespace})
}

func say(what any) error { return json.NewEncoder(os.Stdout).Encode(what) }

// beAppliance is what coppice serve does.
func (m *member) beAppliance() error {
	files, err := certs.Open(m.TLS[0], m.TLS[1], m.TLS[2])
	if err != nil {
		return err
	}
	ref, err := image.ParseRef(m.Root)
	if err != nil {
		return err
	}
	a, err := appliance.Start(context.Background(), appliance.Options{Listen: m.Addr + ":" + appliancePort, Roots: []image.Ref{ref}, TLS: files, Log: m.log})
	if err != nil {
		return err
	}
	err = m.ready()
	_, inErr := io.Copy(io.Discard, m.in)
	return errors.Join(err, inErr, a.Close())
}

// beNode is what coppice daemon does, above a kernel that is made up, and then boots from the device that it was given, which is the first one.
func (m *member) beNode() error {
	t, err := trace.Load(m.Trace)
	if err != nil {
		return err
	}
	cfg, err := node.ReadConfig(m.Config, false)
	if err != nil {
		return err
	}
	if err := node.SetUpProcess(); err != nil {
		m.log.Info("process not set up as wished; going on", "error", err)
	}
	cfg.Log, cfg.Version = m.log, version
	kernel := nodetest.NewKernel()
	d, err := nodetest.Start(kernel, cfg)
	if err != nil {
		return err
	}
	err = m.ready()
	if err == nil && m.next() {
		disk, began := kernel.Disk(0), time.Now()
		y := t.Replay(func(p []byte, off int64) error {
			_, err := disk.ReadAt(p, off)
			return err
		}, trace.NewDisk(t), nil)
		err = say(bootLine{y, time.Since(began)})
	}
	_, inErr := io.Copy(io.Discard, m.in)
	return errors.Join(err, inErr, d.Stop())
}
