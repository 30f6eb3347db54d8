package union

import (
	"testing"

	"coppice/ublk"
)

// from is what the device says of one request.
func (r *rig) from(marks [][]uint64, d ublk.Descriptor) Origins {
	r.t.Helper()
	for _, words := range marks {
		clear(words)
	}
	if errno := r.answerTo(d); errno != 0 {
		r.t.Fatalf("%s of %d at %d: %v", d.Op, d.Len, d.Off, errno)
	}
	said := uint64(0)
	for _, words := range marks {
		for _, w := range words {
			said |= w
		}
	}
	return Origins(said)
}

// Each request says all places that its data came from: blocks of the leaf, of sealed layers, of the root in memory and elsewhere, and zeros; and who asks for nothing gets
// nothing.
func TestOrigins(t *testing.T) {
	for _, async := range []bool{false, true} {
		r := newRigOf(t, rigConfig{seed: 4, asyncRoot: async})
		var marks [][]uint64
		watch := func() {
			marks = nil
			for i := range r.queue {
				words := make([]uint64, 8)
				if err := r.block.Queue(i).SetMarks(words); err != nil {
					t.Fatal(err)
				}
				marks = append(marks, words)
			}
		}
		request := func(op ublk.Op, block, n int) ublk.Descriptor {
			return ublk.Descriptor{Op: op, Off: int64(block) * blockSize, Len: int64(n) * blockSize}
		}
		// memBase has in memory what begins at a multiple of five.
		memory, root := FromMemory, FromRoot
		if !async {
			memory = FromRoot
		}
		watch()
		expect := func(what string, d ublk.Descriptor, want Origins) {
			t.Helper()
			if got := r.from(marks, d); got != want {
				t.Errorf("asynchronous root %t: %s: %08b, want %08b", async, what, got, want)
			}
		}
		expect("read of the root", request(ublk.OpRead, 1, 1), root)
		expect("read of what the root has in memory", request(ublk.OpRead, 5, 1), memory)
		expect("read beyond the root", request(ublk.OpRead, rootSize/blockSize+2, 1), FromZeros)
		expect("write", request(ublk.OpWrite, 1, 2), FromLeaf)
		expect("read of the leaf", request(ublk.OpRead, 2, 1), FromLeaf)
		expect("read of leaf and root", request(ublk.OpRead, 2, 2), FromLeaf|root)
		expect("write of a part over the root", ublk.Descriptor{Op: ublk.OpWrite, Off: 11*blockSize + 512, Len: 512}, FromLeaf|root)
		expect("write of a part over the leaf", ublk.Descriptor{Op: ublk.OpWrite, Off: 1*blockSize + 512, Len: 512}, FromLeaf)
		expect("discard", request(ublk.OpDiscard, 2, 1), FromLeaf)
		expect("read of what was discarded", request(ublk.OpRead, 2, 1), FromZeros)
		expect("flush", ublk.Descriptor{Op: ublk.OpFlush}, FromLeaf)
		expect("read of all", request(ublk.OpRead, 1, 5), FromLeaf|FromZeros|root)

		r.sealAs("below")
		expect("read of a sealed layer", request(ublk.OpRead, 1, 1), FromBranch)
		expect("write above it", request(ublk.OpWrite, 12, 1), FromLeaf)
		expect("read of both", request(ublk.OpRead, 11, 2), FromLeaf|FromBranch)
		expect("write of a part over a sealed layer", ublk.Descriptor{Op: ublk.OpWrite, Off: 1*blockSize + 512, Len: 512}, FromLeaf|FromBranch)
		mustFlatten(t, r.store)
		expect("read of both, flattened", request(ublk.OpRead, 11, 2), FromLeaf|FromBranch)

		if err := r.block.Queue(0).SetMarks(make([]uint64, 3)); err == nil {
			t.Error("too few words are taken")
		}
		for i := range r.queue {
			if err := r.block.Queue(i).SetMarks(nil); err != nil {
				t.Error(err)
			}
		}
		expect("read that nobody asks about", request(ublk.OpRead, 1, 1), 0)
		r.end()
	}
}
