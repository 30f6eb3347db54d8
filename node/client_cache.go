package node

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"coppice/cache"
	"coppice/cache/prefetch"
)

// CacheStats reports on the cache of the daemon's machine.
func (c *Client) CacheStats(ctx context.Context) (CacheReport, error) {
	var rep CacheReport
	return rep, about("ask for the cache", c.send(ctx, http.MethodGet, "cache", nil, &rep, true))
}

// CacheCurve reports what the memory tier misses, and would miss with other thresholds.
func (c *Client) CacheCurve(ctx context.Context) (cache.Curve, error) {
	var v cache.Curve
	return v, about("ask for the curve of the cache", c.send(ctx, http.MethodGet, "cache/curve", nil, &v, true))
}

// DropCache has the daemon forget what is cached.
func (c *Client) DropCache(ctx context.Context, r CacheDropRequest) (CacheReport, error) {
	var rep CacheReport
	return rep, about("drop cache", c.send(ctx, http.MethodPost, "cache/drop", r, &rep, true))
}

// SetCache changes the cache while it is in use.
func (c *Client) SetCache(ctx context.Context, r CacheSetRequest) (CacheReport, error) {
	var rep CacheReport
	return rep, about("set cache", c.send(ctx, http.MethodPatch, "cache", r, &rep, true))
}

// WarmCache has the root of a device brought into the cache. To end ctx ends that; what has come stays.
func (c *Client) WarmCache(ctx context.Context, name string, r CacheWarmRequest, progress func(done, total int64)) (CacheWarmReport, error) {
	var report *CacheWarmReport
	err := receive(ctx, c, http.MethodPost, devicePath(name, "warm"), r, func(e CacheWarmEvent) error {
		if e.Report != nil {
			report = e.Report
			return nil
		}
		progress(e.Done, e.Total)
		return nil
	})
	if err == nil && report == nil {
		err = errCutShort
	}
	if err != nil {
		return CacheWarmReport{}, about("warm cache with the root of "+name, err)
	}
	return *report, nil
}

// CacheTrace returns the list of what a device has asked its root for first, as a file has it.
func (c *Client) CacheTrace(ctx context.Context, name string) ([]byte, error) {
	data, err := c.cacheTrace(ctx, name)
	return data, about("get trace of "+name, err)
}

func (c *Client) cacheTrace(ctx context.Context, name string) ([]byte, error) {
	resp, err := c.request(ctx, http.MethodGet, devicePath(name, "trace"), nil, true)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, decodeAnswer(resp, nil)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, prefetch.MaxTraceBytes))
	if err != nil {
		return nil, fmt.Errorf("read the daemon's answer: %w", err)
	}
	return data, nil
}
