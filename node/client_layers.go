package node

import (
	"context"
	"errors"
	"net/http"
)

// PrepareExport makes ready to seal what a device holds and to write it elsewhere; Export or CancelExport with the token is to
// follow soon.
func (c *Client) PrepareExport(ctx context.Context, name string, r ExportRequest) (PreparedFreeze, error) {
	var p PreparedFreeze
	return p, about("export "+name, c.send(ctx, http.MethodPost, devicePath(name, "export"), r, &p, true))
}

// CancelExport takes a prepared export back.
func (c *Client) CancelExport(ctx context.Context, name, token string) error {
	return about("cancel export of "+name, c.send(ctx, http.MethodDelete, devicePath(name, "export", token), nil, &struct{}{}, true))
}

// Export seals what a device holds and has it written; event is called with what was sealed and then
// with the progress. To end ctx cancels the export.
func (c *Client) Export(ctx context.Context, name, token string, event func(ExportEvent)) (ExportReport, error) {
	var report *ExportReport
	err := receive(ctx, c, http.MethodPost, devicePath(name, "export", token), nil, func(e ExportEvent) error {
		if e.Report != nil {
			report = e.Report
			return nil
		}
		event(e)
		return nil
	})
	if err == nil && report == nil {
		err = errCutShort
	}
	if err != nil {
		return ExportReport{}, about("export "+name, err)
	}
	return *report, nil
}

// errCutShort tells that the daemon ended before its answer did.
var errCutShort = errors.New("the daemon's answer ends too early")

// Changed goes through what a device holds against its root.
func (c *Client) Changed(ctx context.Context, name string, part func(ChangedPart) error) error {
	complete := false
	err := receive(ctx, c, http.MethodGet, devicePath(name, "changed"), nil, func(p ChangedPart) error {
		complete = p.Total != nil
		return part(p)
	})
	if err == nil && !complete {
		err = errCutShort
	}
	return about("changed "+name, err)
}

// RemoveLayer forgets a layer that nothing uses.
func (c *Client) RemoveLayer(ctx context.Context, r LayerRequest) error {
	return about("remove layer "+r.Layer, c.send(ctx, http.MethodDelete, "layers", r, &struct{}{}, true))
}

// Detach has a layer made complete, and follows the progress until it is. To end ctx ends only that. It returns the last
// state.
func (c *Client) Detach(ctx context.Context, r DetachRequest, progress func(DetachStatus)) (DetachStatus, error) {
	var last DetachStatus
	err := receive(ctx, c, http.MethodPost, "detaches", r, func(s DetachStatus) error {
		last = s
		progress(s)
		return nil
	})
	if err == nil && !last.Complete && !r.Background && !r.Stop {
		err = errCutShort
	}
	what := r.Device
	if what == "" {
		what = "layer " + r.Layer
	}
	return last, about("detach "+what, err)
}

// MoveLayer moves a layer to another store. To end ctx cancels that.
func (c *Client) MoveLayer(ctx context.Context, r MoveRequest, progress func(done, total int64)) (*MoveReport, error) {
	var report *MoveReport
	err := receive(ctx, c, http.MethodPost, "layers/move", r, func(e MoveEvent) error {
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
	return report, about("move layer "+r.Layer, err)
}

// Scrub has a store that the daemon has open read all over, and follows the progress until the end. To end ctx ends only that.
func (c *Client) Scrub(ctx context.Context, r ScrubRequest, progress func(ScrubReport)) (ScrubReport, error) {
	var last ScrubReport
	err := receive(ctx, c, http.MethodPost, "scrubs", r, func(rep ScrubReport) error {
		last = rep
		progress(rep)
		return nil
	})
	if err == nil && !last.Complete && !r.Status {
		err = errCutShort
	}
	return last, about("scrub "+r.Store, err)
}
