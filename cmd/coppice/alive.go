package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// feedWatchdog tells systemd's watchdog that the daemon works, until ctx ends, each time that it has found so: systemd kills one that is silent for
// WatchdogSec, and starts it again. It does nothing where no watchdog waits (sd_watchdog_enabled(3)).
func feedWatchdog(ctx context.Context, log *slog.Logger, works func(context.Context) error) {
	within, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("watchdog not understood; it is not fed", "error", err)
		return
	}
	if within == 0 {
		return
	}
	feed(ctx, log, within/4, works, func() { tellSystemd(daemon.SdNotifyWatchdog) })
}

// feed calls tell once every so often, if works says within that time that all is well.
func feed(ctx context.Context, log *slog.Logger, every time.Duration, works func(context.Context) error, tell func()) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		asked, cancel := context.WithTimeout(ctx, every)
		err := works(asked)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Error("THE DAEMON DOES NOT WORK: systemd starts it again if that lasts", "error", err)
			continue
		}
		tell()
	}
}
