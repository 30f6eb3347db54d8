package nodetest

import (
	"context"
	"errors"
	"sync"

	"coppice/node"
)

// Daemon is a node daemon that runs in this process over a Kernel.
type Daemon struct {
	*node.Daemon
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // of Run, once ended is closed
	stop   func() error
}

// Start runs a daemon as cfg says on k, and returns when it has taken over the devices of its
// predecessor.
func Start(k *Kernel, cfg node.Config) (*Daemon, error) {
	driver, err := k.NewDriver()
	if err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	cfg.Driver, cfg.Ready = driver, func(string) { close(ready) }
	d, err := node.New(cfg)
	if err != nil {
		return nil, errors.Join(err, driver.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Daemon{Daemon: d, cancel: cancel, ended: make(chan struct{})}
	s.stop = sync.OnceValue(s.shutDown)
	go func() {
		defer close(s.ended)
		s.err = d.Run(ctx)
	}()
	select {
	case <-ready:
		return s, nil
	case <-s.ended:
		return nil, errors.Join(s.err, s.Stop())
	}
}

// Signal asks the daemon to end, as SIGTERM does, without waiting for it.
func (s *Daemon) Signal() { s.cancel() }

// Ended is closed when Run has returned.
func (s *Daemon) Ended() <-chan struct{} { return s.ended }

// Stop ends the daemon.
func (s *Daemon) Stop() error { return s.stop() }

func (s *Daemon) shutDown() error {
	s.cancel()
	<-s.ended
	return s.err
}
