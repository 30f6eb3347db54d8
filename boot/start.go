package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"coppice/node"
	"coppice/union"
)

const (
	// RunDir is the run directory of the daemon that serves the machine's root.
	RunDir = "/run/coppice-root"
	// rootID makes the root /dev/ublkb0.
	rootID = 0
	// stopTime is how long a daemon without devices may take to end.
	stopTime = 30 * time.Second
)

// Options say how to boot.
type Options struct {
	Given
	// Console is where a person sees what happens.
	Console io.Writer
	// Version is what the program says it is.
	Version string
	// StartDaemon starts the daemon of the run directory, where it does not run yet, and returns when it answers. StopDaemon ends it: one that could not make the
	// device would go on with the configuration that it has read, whatever is corrected meanwhile.
	StartDaemon, StopDaemon func(ctx context.Context) error
}

// starter makes the root device.
type starter struct {
	params  Params
	given   Given
	console *console
	config  node.Config
	root    string // "/", where proc, sys and dev are
	client  *node.Client
	begin   func(ctx context.Context) error
	from    string // what a layer that takes the place of another one stands on; "": the root
	end     func(ctx context.Context) error
}

// Start makes the device that Options ask for and returns it, as it also does where the device is there already. It waits for servers of the root for as
// long as ctx lasts, and fails where a person must do something.
func Start(ctx context.Context, o Options) (node.Device, error) {
	s := &starter{params: o.Params, given: o.Given, console: &console{w: o.Console}, root: "/", client: node.NewClient(RunDir, o.Version), begin: o.StartDaemon, end: o.StopDaemon}
	s.client.Wait = 0
	return s.start(ctx)
}

func (s *starter) start(ctx context.Context) (node.Device, error) {
	if d, err := s.client.Inspect(ctx, s.params.Name); err == nil {
		return d, nil
	}
	if err := s.prepare(); err != nil {
		return node.Device{}, err
	}
	if err := s.loadDriver(ctx); err != nil {
		return node.Device{}, err
	}
	leaf, err := s.findLeaf(ctx)
	if err != nil {
		return node.Device{}, err
	}
	pin, err := s.waitRoot(ctx)
	if err != nil {
		return node.Device{}, err
	}
	if err := s.checkRoot(ctx, leaf, pin); err != nil {
		return node.Device{}, err
	}
	if err := s.formatLeaf(leaf); err != nil {
		return node.Device{}, err
	}
	told := s.params.Leaf.Layer
	s.countBoot(leaf, pin)
	if err := s.begin(ctx); err != nil {
		return node.Device{}, fmt.Errorf("start the root's daemon: %w", err)
	}
	s.record(ctx)
	d, err := s.create(ctx, leaf, pin)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		if err := s.end(ctx); err != nil {
			s.console.say("the root's daemon was not stopped: %v", err)
		}
		s.uncountBoot(leaf, told, err)
		return d, err
	}
	s.console.say("root is %s, layer %s of %s over %s, %s after the kernel started", d.Path, d.Leaf.Layer, s.params.Leaf, d.Root.Path, sinceStart())
	return d, nil
}

// prepare writes the files that the daemon reads.
func (s *starter) prepare() error {
	path := filepath.Join(s.root, node.DefaultConfigPath)
	if text := s.given.values[keyConfig]; text != "" {
		if err := writeFile(path, []byte(text), 0o600); err != nil {
			return fmt.Errorf("write the configuration of credential %s: %w", keyConfig, err)
		}
	}
	var err error
	if s.config, err = node.ReadConfig(path, true); err == nil {
		err = s.config.Validate()
	}
	if err != nil {
		return problem(node.CodeBadRequest, "correct it (its keys are in docs/cli.md, section Files), and make the initramfs again", "%v", err)
	}
	return writeResolvConf(s.root)
}

func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, mode)
}

// create makes the device. Servers of the root may go while it is made, and are waited for then.
func (s *starter) create(ctx context.Context, leaf string, pin union.Pin) (node.Device, error) {
	for {
		d, err := s.createOn(ctx, leaf, pin)
		if err == nil || ctx.Err() != nil {
			return d, err
		}
		code := node.CodeOf(err)
		if code != node.CodeBadRoot && code != node.CodeTimeout {
			return d, err
		}
		if _, raw := s.rawRoot(); raw {
			return d, err
		}
		if _, probeErr := s.probe(ctx); probeErr == nil || !passes(probeErr) {
			return d, err
		}
		s.console.repeat("the root cannot be opened; trying again (%v)", err)
		if pin, err = s.waitRoot(ctx); err != nil {
			return d, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(firstPause):
		}
	}
}

// createOn makes the device on the layer that the policy allows.
func (s *starter) createOn(ctx context.Context, leaf string, pin union.Pin) (node.Device, error) {
	req, err := s.request(leaf)
	if err != nil {
		return node.Device{}, err
	}
	d, err := s.client.Create(ctx, req)
	if node.CodeOf(err) != node.CodeOtherRoot {
		return d, err
	}
	switch s.params.Leaf.Policy {
	case PolicyFresh:
		return s.createFresh(ctx, req, pin)
	case PolicyKeep:
		return s.createKept(ctx, req)
	}
	var e *node.Error
	if errors.As(err, &e) {
		e.Hint = s.otherRootHint()
	}
	return d, err
}

// request asks for the layer that is configured, at the size that it has, if it is there.
func (s *starter) request(leaf string) (node.CreateRequest, error) {
	req := node.CreateRequest{Name: s.params.Name, Store: leaf, Layer: s.params.Leaf.Layer, ID: rootID, SizeBytes: s.params.SizeBytes}
	req.Roots = s.params.Roots
	if s.from != "" {
		_, found, err := layerOf(leaf, req.Layer)
		if err != nil {
			return req, err
		}
		if !found {
			req.From, req.SizeBytes = s.from, 0
			return req, nil
		}
	}
	return req, s.fitSize(&req)
}

// fitSize takes the size of a layer that is there already: it stays what it is.
func (s *starter) fitSize(req *node.CreateRequest) error {
	if s.params.SizeBytes == 0 {
		return nil
	}
	l, found, err := layerOf(req.Store, req.Layer)
	if err != nil || !found {
		return err
	}
	req.SizeBytes = 0
	if l.SizeBytes != s.params.SizeBytes {
		s.console.say("layer %s stays at %d bytes, which it was made with; %s asks for %d", req.Layer, l.SizeBytes, keySize, s.params.SizeBytes)
	}
	return nil
}

// createFresh takes the layer of this root, and makes it where there is none.
func (s *starter) createFresh(ctx context.Context, req node.CreateRequest, pin union.Pin) (node.Device, error) {
	old := req.Layer
	req.Layer, req.SizeBytes = freshLayer(old, pin), s.params.SizeBytes
	if err := s.fitSize(&req); err != nil {
		return node.Device{}, err
	}
	s.console.say("layer %s of leaf disk %s was made for another root, and stays as it is: taking layer %s", old, s.params.Leaf, req.Layer)
	return s.client.Create(ctx, req)
}

// freshLayer names the layer of a root beside another of that name.
func freshLayer(old string, pin union.Pin) string {
	suffix := fmt.Sprintf("-%x", pin.Digest[:6])
	return old[:min(len(old), union.MaxLayerName-len(suffix))] + suffix
}
