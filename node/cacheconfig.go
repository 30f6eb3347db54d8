package node

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"coppice/cache"
)

// Defaults of the cache.
const (
	// DefaultTracesPath is where it is kept which chunks devices asked for first.
	DefaultTracesPath = "/var/lib/coppice/traces"

	defaultRecord    = 3 * time.Minute
	maxRecord        = time.Hour
	defaultShare     = 50
	defaultReadahead = 4 << 20
	maxReadahead     = 64 << 20
)

// CacheConfig says how the chunks of images are cached on this node, for all its devices. The zero value is complete: memory only.
type CacheConfig struct {
	// Memory is the threshold of the memory tier. nil, and 0, mean an eighth of the machine's memory, at most 2 GiB.
	Memory *Bytes `toml:"memory"`
	// Policy decides which chunk goes when memory is full: see [cache.Policies]. "" means [cache.S3FIFO].
	Policy string `toml:"policy"`
	// Metrics is the address HOST:PORT at which numbers of cache and devices are given to Prometheus, to anybody who can reach it. "" means nowhere.
	Metrics string `toml:"metrics"`
	// Record is how long it is recorded what a new device asks its root for, as [time.ParseDuration] takes it. "" means 3m, "0" not at all.
	Record string `toml:"record"`
	// PrefetchPercent is how much of the memory tier may be filled with what an earlier device asked its root for, when another is made on
	// the same content. nil means 50, 0 that nothing is prefetched.
	PrefetchPercent *int `toml:"prefetch_percent"`
	// Readahead is how far ahead a sequential stream is read at most. nil means 4 MiB, 0 not at all.
	Readahead *Bytes `toml:"readahead"`
	// TracesPath is the directory of what was recorded. "" means [DefaultTracesPath].
	TracesPath string `toml:"traces"`
}

func (c CacheConfig) withDefaults() CacheConfig {
	setDefault(&c.Policy, string(cache.S3FIFO))
	setDefault(&c.Record, defaultRecord.String())
	setDefault(&c.TracesPath, DefaultTracesPath)
	if c.Memory == nil {
		c.Memory = new(Bytes)
	}
	if c.PrefetchPercent == nil {
		c.PrefetchPercent = new(int)
		*c.PrefetchPercent = defaultShare
	}
	if c.Readahead == nil {
		c.Readahead = new(Bytes)
		*c.Readahead = defaultReadahead
	}
	return c
}

func (c CacheConfig) validate() error {
	c = c.withDefaults()
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("cache: "+format, args...))
		}
	}
	check(*c.Memory == 0 || *c.Memory >= cache.MinMemory, "memory = %d bytes is less than %d", *c.Memory, cache.MinMemory)
	check(slices.Contains(cache.Policies(), cache.Policy(c.Policy)), "policy %q is none of %v", c.Policy, cache.Policies())
	check(c.Metrics == "" || validAddress(c.Metrics), "metrics %q is not HOST:PORT, such as 127.0.0.1:9500", c.Metrics)
	record, err := time.ParseDuration(c.Record)
	check(err == nil && record >= 0 && record <= maxRecord, "record %q is not a time such as 3m, up to %s, or 0", c.Record, maxRecord)
	check(*c.PrefetchPercent >= 0 && *c.PrefetchPercent <= 100, "prefetch_percent %d is not between 0 and 100", *c.PrefetchPercent)
	check(*c.Readahead >= 0 && *c.Readahead <= maxReadahead, "readahead of %d bytes is over %d", *c.Readahead, maxReadahead)
	check(filepath.IsAbs(c.TracesPath), "traces %q is not an absolute path", c.TracesPath)
	return errors.Join(errs...)
}

// validAddress tells whether text is HOST:PORT with a number for a port. The host may be left out.
func validAddress(text string) bool {
	_, port, err := net.SplitHostPort(text)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// record is valid where c is.
func (c CacheConfig) record() time.Duration { return durationOr(c.Record, defaultRecord) }
