package node

import (
	"context"
	"net/http"
)

// AddRoot takes one more replica of a device's root.
func (c *Client) AddRoot(ctx context.Context, name string, r RootRequest) (RootReport, error) {
	return c.changeRoot(ctx, "add root of "+name, http.MethodPost, devicePath(name, "roots"), r)
}

// RemoveRoot takes a replica of a device's root away.
func (c *Client) RemoveRoot(ctx context.Context, name string, r RootRequest) (RootReport, error) {
	return c.changeRoot(ctx, "remove root of "+name, http.MethodDelete, devicePath(name, "roots"), r)
}

// HydrateRoot has a device's root copied to the daemon's machine.
func (c *Client) HydrateRoot(ctx context.Context, name string) (RootReport, error) {
	return c.changeRoot(ctx, "hydrate root of "+name, http.MethodPost, devicePath(name, "roots", "hydrate"), nil)
}

func (c *Client) changeRoot(ctx context.Context, what, method, path string, in any) (RootReport, error) {
	var rep RootReport
	return rep, about(what, c.send(ctx, method, path, in, &rep, true))
}

// ReplicateRoot has a device's root copied, and the copy taken as a replica. To end ctx ends that; what was copied stays.
func (c *Client) ReplicateRoot(ctx context.Context, name string, r ReplicateRequest, progress func(phase string, done, total int64)) (*ReplicateReport, error) {
	var report *ReplicateReport
	err := receive(ctx, c, http.MethodPost, devicePath(name, "roots", "replicate"), r, func(e ReplicateEvent) error {
		if e.Report != nil {
			report = e.Report
			return nil
		}
		progress(e.Phase, e.Done, e.Total)
		return nil
	})
	if err == nil && report == nil {
		err = errCutShort
	}
	return report, about("replicate root of "+name, err)
}
