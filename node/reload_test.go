package node_test

import (
	"context"
	"log/slog"
	"testing"

	"coppice/node"
)

func TestReload(t *testing.T) {
	r := newCacheRig(t)
	r.cfg.Level = new(slog.LevelVar)
	d := r.start()
	r.create(r.on("web1", r.refA))
	r.same(0, 0)

	cfg := r.cfg
	cfg.LogLevel, cfg.Lease, cfg.Cache.Memory, cfg.Cache.Readahead = "debug", "2m", ptr(node.Bytes(8*mib)), ptr(node.Bytes(mib))
	check(t, d.Reload(context.Background(), cfg))
	if got := r.cacheStats().Memory.ThresholdBytes; got != 8*mib || r.cfg.Level.Level() != slog.LevelDebug {
		t.Errorf("memory of the cache is %d, level %s", got, r.cfg.Level)
	}
	if !r.log.contains(`"[lease cache.readahead]"`) {
		t.Errorf("the log does not name what waits for the next start:\n%s", r.log)
	}
	r.same(0, mib)

	// What cannot be used changes nothing.
	for _, spoil := range []func(*node.Config){
		func(c *node.Config) { c.LogLevel = "much" },
		func(c *node.Config) { c.Lease = "long" },
		func(c *node.Config) { c.Cache.Memory = ptr(node.Bytes(1)) },
	} {
		bad := cfg
		bad.LogLevel, bad.Cache.Memory = "error", ptr(node.Bytes(16*mib))
		spoil(&bad)
		if err := d.Reload(context.Background(), bad); err == nil || node.HintOf(err) == "" {
			t.Errorf("taken: %v", err)
		}
	}
	if got := r.cacheStats().Memory.ThresholdBytes; got != 8*mib || r.cfg.Level.Level() != slog.LevelDebug {
		t.Errorf("memory of the cache is %d, level %s", got, r.cfg.Level)
	}

	// What the file says nothing about is what the daemon chooses.
	check(t, d.Reload(context.Background(), r.cfg))
	if got := r.cacheStats().Memory.ThresholdBytes; got == 8*mib || r.cfg.Level.Level() != slog.LevelInfo {
		t.Errorf("memory of the cache is %d, level %s", got, r.cfg.Level)
	}
}
