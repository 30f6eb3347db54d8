package idxshare

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// countedRanges has a device in memory, and counts questions.
type countedRanges struct {
	*bytes.Reader
	questions int
}

func (c *countedRanges) ReadAt(p []byte, off int64) (int, error) {
	c.questions++
	return c.Reader.ReadAt(p, off)
}

func (c *countedRanges) ReadRanges(p []byte, ranges []ByteRange) error {
	c.questions++
	for _, r := range ranges {
		if _, err := c.Reader.ReadAt(p[:r.Len], r.Off); err != nil {
			return err
		}
		p = p[r.Len:]
	}
	return nil
}

// Whatever is read, planned or not, once or again, is what is there; what was planned takes few questions.
func TestPlannedReads(t *testing.T) {
	rng := rand.New(rand.NewPCG(31, 0))
	device := make([]byte, 12<<20+100)
	for i := range device {
		device[i] = byte(rng.Uint32())
	}
	in := &countedRanges{Reader: bytes.NewReader(device)}
	c := &contentReader{r: in, size: int64(len(device))}
	var plan []ByteRange
	for off := int64(1024); off < c.size; off += 1024 * (1 + rng.Int64N(40)) {
		plan = append(plan, ByteRange{off, min(1024*(1+rng.Int64N(12)), c.size-off)})
	}
	c.plan(plan)
	read := func(off, n int64) {
		t.Helper()
		p := make([]byte, n)
		if _, err := c.ReadAt(p, off); err != nil || !bytes.Equal(p, device[off:off+n]) {
			t.Fatalf("%d bytes at %d are others: %v", n, off, err)
		}
	}
	for _, r := range plan {
		read(r.Off, r.Len)
	}
	if in.questions > len(plan)/4 {
		t.Errorf("%d questions for %d ranges", in.questions, len(plan))
	}
	for range 2000 {
		off := rng.Int64N(c.size)
		read(off, 1+rng.Int64N(min(c.size-off, 30000)))
	}
}
