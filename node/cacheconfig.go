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
	cachepeer "coppice/cache/peer"
)

// Defaults of the cache.
const (
	// DefaultTracesPath is where it is kept which chunks devices asked for first.
	DefaultTracesPath = "/var/lib/coppice/traces"

	defaultCachePatience = 600 * time.Millisecond
	minCachePatience     = 100 * time.Millisecond
	maxCachePatience     = time.Minute

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
	// Disk is a file or block device for chunks beside memory, which survives restarts and is the cache's alone. "" means none. DiskSize is the size of
	// the file, which is made where there is none; nil leaves it as it is.
	Disk     string `toml:"disk"`
	DiskSize *Bytes `toml:"disk_size"`
	// Peers is a file with the URLs of nodes that share their caches, one a line, read again when it changes: see [cachepeer.ParseList]. Self is the one of this node
	// in it, "" where it only takes.
	Peers string `toml:"peers"`
	Self  string `toml:"self"`
	// Listen is HOST:PORT at which peers are given chunks. "" means that none are.
	Listen string `toml:"listen"`
	// Appliances are URLs that are asked for what peers do not have, before the origin.
	Appliances []string `toml:"appliances"`
	// Patience is how long peers together, and appliances together, may take for a chunk before the next tier is asked, and what decides how long one of them may be
	// silent, as [time.ParseDuration] takes it. "" means 600ms.
	Patience string `toml:"patience"`
	// CA is the path of the certificate of the authority that peers and appliances have theirs of, TLSCert and TLSKey those of this node's own, all in
	// PEM. They are read again when they change.
	CA      string `toml:"ca"`
	TLSCert string `toml:"tls_cert"`
	TLSKey  string `toml:"tls_key"`
	// Insecure gives chunks to and takes them from whoever is there, without TLS.
	Insecure bool `toml:"insecure"`
	// Record is how long it is recorded what a new device asks its root for, as [time.ParseDuration] takes it. "" means 3m, "0" not at all.
	Record string `toml:"record"`
	// PrefetchPercent is how much of the memory tier may be filled with what an earlier device asked its root for, when another is made on
	// the same content. nil means 50, 0 that nothing is prefetched.
	PrefetchPercent *int `toml:"prefetch_percent"`
	// AttachedTraces has the trace that is attached to an image prefetched where no device of this node has been on the content yet. nil means true.
	AttachedTraces *bool `toml:"attached_traces"`
	// Readahead is how far ahead a sequential stream is read at most. nil means 4 MiB, 0 not at all.
	Readahead *Bytes `toml:"readahead"`
	// TracesPath is the directory of what was recorded. "" means [DefaultTracesPath].
	TracesPath string `toml:"traces"`
}

func (c CacheConfig) withDefaults() CacheConfig {
	setDefault(&c.Policy, string(cache.S3FIFO))
	setDefault(&c.Record, defaultRecord.String())
	setDefault(&c.Patience, defaultCachePatience.String())
	setDefault(&c.TracesPath, DefaultTracesPath)
	if c.Memory == nil {
		c.Memory = new(Bytes)
	}
	if c.PrefetchPercent == nil {
		c.PrefetchPercent = new(int)
		*c.PrefetchPercent = defaultShare
	}
	if c.AttachedTraces == nil {
		c.AttachedTraces = new(bool)
		*c.AttachedTraces = true
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
	check(c.Listen == "" || validAddress(c.Listen), "listen %q is not HOST:PORT, such as :8441", c.Listen)
	check(c.DiskSize == nil || c.Disk != "", "disk_size without disk")
	check((c.TLSCert == "") == (c.TLSKey == ""), "tls_cert and tls_key belong together")
	speaks := c.Listen != "" || c.Peers != "" || len(c.Appliances) > 0
	check(!speaks || c.Insecure || c.CA != "" && c.TLSCert != "", "peers, listen and appliances need ca, tls_cert and tls_key: see coppice ca init and issue")
	check(c.Self == "" || c.Peers != "", "self without peers")
	for _, url := range append([]string{c.Self}, c.Appliances...) {
		_, err := cachepeer.ParseURL(url, c.Insecure)
		check(url == "" || err == nil, "%w", err)
	}
	for name, path := range map[string]string{"disk": c.Disk, "peers": c.Peers, "ca": c.CA, "tls_cert": c.TLSCert, "tls_key": c.TLSKey} {
		check(path == "" || filepath.IsAbs(path), "%s %q is not an absolute path", name, path)
	}
	patience, err := time.ParseDuration(c.Patience)
	check(err == nil && patience >= minCachePatience && patience <= maxCachePatience, "patience %q is not a time from %s to %s, such as 2s",
		c.Patience, minCachePatience, maxCachePatience)
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

// patience and record are valid where c is.
func (c CacheConfig) patience() time.Duration { return durationOr(c.Patience, defaultCachePatience) }

// silence is how long one who is asked for a chunk may say nothing.
func (c CacheConfig) silence() time.Duration { return c.patience() / 12 * 5 }

// tierTime is how long a tier of others may take at most: they end by themselves before that.
func (c CacheConfig) tierTime() time.Duration { return c.patience() / 6 * 7 }

func (c CacheConfig) record() time.Duration { return durationOr(c.Record, defaultRecord) }
