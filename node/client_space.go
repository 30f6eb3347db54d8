package node

import (
	"context"
	"net/http"

	"coppice/union"
)

// Set changes a device while it is in use.
func (c *Client) Set(ctx context.Context, name string, r SetRequest) (SetReport, error) {
	var rep SetReport
	return rep, about("set "+name, c.send(ctx, http.MethodPatch, devicePath(name), r, &rep, true))
}

// GrowStore makes a store larger.
func (c *Client) GrowStore(ctx context.Context, r GrowRequest) (union.StoreInfo, error) {
	var info union.StoreInfo
	return info, about("grow "+r.Store, c.send(ctx, http.MethodPost, "stores/grow", r, &info, true))
}
