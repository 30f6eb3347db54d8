package cache

import (
	"context"
	"time"
)

// ReadPast fills p as Read does, and leaves memory, disk and peers as they are: it takes from memory and the disk what they have, and the rest from the
// origin. It is for who reads all of an image once, and would push out what is read again.
func (v *Reader) ReadPast(ctx context.Context, p []byte, off int64) error {
	if err := v.root.check(p, off); err != nil {
		return err
	}
	return v.windows(p, off, func(p []byte, off int64) error { return v.windowPast(ctx, p, off) })
}

func (v *Reader) windowPast(ctx context.Context, p []byte, off int64) error {
	wants, chunks, err := v.missing(ctx, p, off, new(Sources))
	if err != nil {
		return err
	}
	c, shift := v.root.cache, v.root.shift
	from, to := int64(0), int64(0) // bytes of the image that are to be read together
	for i, w := range wants {
		c.curve.request(&chunks[i].Key, accessPast, v.root.chunkBytes(), 0)
		if content := c.disk.Load().get(ctx, chunks[i]); content != nil {
			v.count(FromDisk, Part{1, uint64(copy(w.dst, content[w.skip:]))})
			continue
		}
		at := chunks[i].Index<<shift + int64(w.skip)
		if at != to {
			if err := v.readPast(ctx, p[max(from-off, 0):max(to-off, 0)], from); err != nil {
				return err
			}
			from = at
		}
		to = at + int64(len(w.dst))
	}
	return v.readPast(ctx, p[max(from-off, 0):max(to-off, 0)], from)
}

func (v *Reader) readPast(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	r := v.root
	began := time.Now()
	err := r.ended(r.origin.Read(ctx, p, off))
	o := &r.cache.origin
	o.latency.add(time.Since(began))
	o.reads.Add(1)
	if err != nil {
		o.errors.Add(1)
		return err
	}
	o.bytes.Add(uint64(len(p)))
	v.count(FromOrigin, Part{uint64((off+int64(len(p))-1)>>r.shift - off>>r.shift + 1), uint64(len(p))})
	return nil
}
