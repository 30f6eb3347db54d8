package node

import (
	"context"
	"iter"

	"coppice/union"
)

// ChangedPart is one line of the answer about what a device changed: some extents in order, and in the last one
// the totals.
type ChangedPart struct {
	Extents []union.ChangedExtent `json:"extents,omitempty"`
	Total   *ChangedTotal         `json:"total,omitempty"`
}

// ChangedTotal sums up what a device holds against its root.
type ChangedTotal struct {
	Extents   int   `json:"extents"`
	DataBytes int64 `json:"data_bytes"`
	ZeroBytes int64 `json:"zero_bytes"` // discarded or zeroed
}

func (t *ChangedTotal) add(x union.ChangedExtent) {
	t.Extents++
	if x.Zero {
		t.ZeroBytes += x.Len
	} else {
		t.DataBytes += x.Len
	}
}

// changedPart is how many extents are reported at once.
const changedPart = 1024

// Changed reports the extents of a device that do not come from its root. One that is written to meanwhile is seen region
// by region. It ends early where the device ends, with ctx, and with an error of emit.
func (d *Daemon) Changed(ctx context.Context, name string, emit func(ChangedPart) error) error {
	v, err := d.find(name)
	if err != nil {
		return err
	}
	v.mu.RLock()
	back, state := v.back, v.state
	var layer *union.Layer
	if back != nil {
		layer = back.layer
	}
	v.mu.RUnlock()
	if layer == nil {
		return fail(CodeBusy, "`coppice list` shows it", "device %s is %s", name, state)
	}
	next, stop := iter.Pull2(layer.Changed())
	defer stop()
	var total ChangedTotal
	for ctx.Err() == nil {
		part, more, err := v.nextChanged(back, next)
		if err != nil {
			return err
		}
		for _, x := range part.Extents {
			total.add(x)
		}
		if !more {
			part.Total = &total
		}
		if err := emit(part); err != nil || !more {
			return err
		}
	}
	return ctx.Err()
}

// nextChanged holds the device only for one part: who reads the answer may be slow.
func (v *device) nextChanged(back *backing, next func() (union.ChangedExtent, error, bool)) (part ChangedPart, more bool, err error) {
	v.use.RLock()
	defer v.use.RUnlock()
	v.mu.RLock()
	there := v.back == back
	v.mu.RUnlock()
	if !there {
		return part, false, fail(CodeBusy, "`coppice list` shows it", "the device ended meanwhile")
	}
	for len(part.Extents) < changedPart {
		x, err, ok := next()
		if !ok || err != nil {
			return part, false, err
		}
		part.Extents = append(part.Extents, x)
	}
	return part, true, nil
}
