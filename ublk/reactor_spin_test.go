package ublk_test

import (
	"testing"
	"time"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// TestSpinEnds demands that a thread which looks for more work sleeps when none comes.
func TestSpinEnds(t *testing.T) {
	rs := newReactors(t, ublk.ReactorConfig{Spin: time.Millisecond})
	closeAtEnd(t, rs)
	f := served(t, rs, ublk.NewNull(), ublktest.FakeConfig{SizeBytes: 1 << 20, Depth: 4})
	enters := func() (n uint64) {
		t.Helper()
		stats, err := rs.Stats()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range stats {
			n += s.Enters + s.Spins
		}
		return n
	}
	for range 100 {
		if err := f.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(20 * time.Millisecond)
	before := enters()
	time.Sleep(100 * time.Millisecond)
	if n := enters() - before; n > 10 {
		t.Errorf("an idle reactor entered the kernel %d times in 100 ms", n)
	}
}
