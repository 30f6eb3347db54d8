package union

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// TestContent reads a sealed layer in pieces, and by what changed, and finds what its device held; a layer that is detached meanwhile is noticed.
func TestContent(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	r := newRig(t, 4, true)
	o := newOracle(r)
	drive(r, o, rng, 600)
	if err := r.sim.Run(); err != nil {
		t.Fatal(err)
	}
	want := r.cut()
	drive(r, o, rng, 200)
	l, err := r.store.OpenSealed("cut")
	if err != nil {
		t.Fatal(err)
	}
	defer l.CloseSealed()
	if _, err := l.Content(nil); !errors.Is(err, ErrOtherRoot) {
		t.Errorf("without the root: %v", err)
	}
	c, err := l.Content(r.base)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, r.size+100)
	if n, err := c.ReadAt(got, 0); int64(n) != r.size || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want) {
		t.Errorf("%d bytes, %v, or not what the device held", n, err)
	}
	if _, err := c.ReadAt(got, 512); err == nil {
		t.Error("a read in the middle of a block is taken")
	}
	patched := make([]byte, r.size)
	copy(patched, r.base.content)
	for x, err := range c.Changed() {
		if err != nil {
			t.Fatal(err)
		}
		clear(patched[x.Off : x.Off+x.Len])
		if x.Zero {
			continue
		}
		if _, err := c.ReadAt(patched[x.Off:x.Off+x.Len], x.Off); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(patched, want) {
		t.Error("the root with what changed is not what the device held")
	}
	if err := r.sim.Run(); err != nil {
		t.Fatal(err)
	}
	if err := r.store.Detach(context.Background(), "cut", r.base, DetachOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(got[:r.size], 0); err != nil || !bytes.Equal(got[:r.size], want) {
		t.Errorf("after a detach: %v, or not what the device held", err)
	}
	var last error
	for _, err := range c.Changed() {
		last = err
	}
	if !errors.Is(last, ErrOtherRoot) {
		t.Errorf("after a detach, what changed ends with %v", last)
	}
}
