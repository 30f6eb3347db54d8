package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

// A watchdog hears of a daemon that works, not of one that does not, nor of one whose answer does not come.
func TestWatchdogIsFedWhileTheDaemonWorks(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answers := make(chan error)
	works := func(ctx context.Context) error {
		select {
		case err := <-answers:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	told := make(chan struct{}, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		feed(ctx, slog.New(slog.DiscardHandler), 50*time.Millisecond, works, func() { told <- struct{}{} })
	}()
	for range 3 {
		answers <- nil
		<-told
	}
	for range 3 {
		answers <- errors.New("stuck")
	}
	select {
	case <-told:
		t.Error("fed though the daemon does not work")
	case <-time.After(150 * time.Millisecond): // nor when nothing is answered
	}
	answers <- nil
	<-told
	cancel()
	<-ended
}
