package union

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"coppice/ublk/ublktest"
)

// TestFUAWithoutFlush demands that a FUA write is durable without any flush of the device, in whole blocks and in part, beside
// writes that are not.
func TestFUAWithoutFlush(t *testing.T) {
	for seed := range seeds(4) {
		rng := rand.New(rand.NewPCG(seed, 6))
		r := newRig(t, seed, false)
		if _, err := r.block.WriteAt(bytes.Repeat([]byte{1}, 16<<10), 0); err != nil {
			t.Fatal(err)
		}
		if err := r.block.Flush(); err != nil {
			t.Fatal(err)
		}
		before := r.sim.Count(ublktest.Flush)
		for i := range 50 {
			volatile := bytes.Repeat([]byte{byte(i), 2}, 2048)
			if _, err := r.block.WriteAt(volatile, int64(8+i)<<blockShift); err != nil {
				t.Fatal(err)
			}
			if err := r.block.WriteFUA(bytes.Repeat([]byte{byte(i), 3}, 256), int64(i%8)*512); err != nil {
				t.Fatal(err)
			}
			if err := r.block.WriteFUA(bytes.Repeat([]byte{byte(i), 4}, 2048), 1<<blockShift); err != nil {
				t.Fatal(err)
			}
		}
		if n := r.sim.Count(ublktest.Flush) - before; n != 0 {
			t.Fatalf("seed %d: 100 FUA writes made %d flushes", seed, n)
		}
		r.powerCut(rng)
		r.open()
		got := make([]byte, 8192)
		if _, err := r.block.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		for i := 42; i < 50; i++ {
			if at := i % 8 * 512; !bytes.Equal(got[at:at+512], bytes.Repeat([]byte{byte(i), 3}, 256)) {
				t.Fatalf("seed %d: part of a block written with FUA is lost", seed)
			}
		}
		if !bytes.Equal(got[4096:], bytes.Repeat([]byte{49, 4}, 2048)) {
			t.Fatalf("seed %d: a block written with FUA is lost", seed)
		}
		r.shut()
	}
}
