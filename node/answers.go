package node

import (
	"context"
	"fmt"
)

// Answers returns nil if the daemon does its work: it lists its devices to who asks at its socket, and the threads of every device that it serves tell what they do.
// It returns when ctx ends at the latest. It is for watchdogs, once [Config.Ready] has been called.
func (d *Daemon) Answers(ctx context.Context) error {
	if _, err := NewClient(d.cfg.RunDir, d.cfg.Version).List(ctx); err != nil {
		return fmt.Errorf("ask the daemon itself: %w", err)
	}
	for _, v := range d.all() {
		v.mu.RLock()
		disk, live := v.disk, v.state == StateLive
		v.mu.RUnlock()
		if !live || disk == nil {
			continue
		}
		told := make(chan struct{})
		go func() {
			defer close(told)
			_, _, _ = disk.Oldest() // an error is an answer
		}()
		select {
		case <-told:
		case <-ctx.Done():
			return fmt.Errorf("ask the threads of %s: %w", disk.Path(), ctx.Err())
		}
	}
	return nil
}
