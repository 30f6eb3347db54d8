package union

import (
	"bytes"
	"errors"
	"syscall"
	"testing"
)

// TestRotIsNoticed flips a byte of a block in the leaf: reads of it, whole or in part, and writes of a part of it fail, all
// else goes on, and a check tells where it is. Without verification the byte comes through.
func TestRotIsNoticed(t *testing.T) {
	for _, noVerify := range []bool{false, true} {
		r := newRigOf(t, rigConfig{seed: 1, noVerify: noVerify})
		content := make([]byte, 32<<10)
		fill(content, 4711)
		const at, block = 1 << 20, 3
		if _, err := r.block.WriteAt(content, at); err != nil {
			t.Fatal(err)
		}
		// In the log, behind everything that a flush is known to have covered, the record would count as unflushed.
		if err := r.checkpoint(); err != nil {
			t.Fatal(err)
		}
		var m [1]mapping
		var sum [1]uint32
		if _, ok := r.layer.m.lookup(at>>blockShift+block, m[:], sum[:]); !ok {
			t.Fatal("not loaded")
		}
		off := r.store.sb.slotOffset(m[0].slot())
		r.disk.Bytes()[off+1000] ^= 4

		want := func(err error) {
			t.Helper()
			if noVerify != (err == nil) || err != nil && !errors.Is(err, syscall.EIO) {
				t.Errorf("without verification %v: %v", noVerify, err)
			}
		}
		got := make([]byte, len(content))
		_, err := r.block.ReadAt(got, at)
		want(err)
		if noVerify {
			if i := block<<blockShift + 1000; got[i] != content[i]^4 || !bytes.Equal(got[:i], content[:i]) || !bytes.Equal(got[i+1:], content[i+1:]) {
				t.Error("content differs in more than one byte")
			}
			r.close()
			r.disk.Close()
			continue
		}
		_, err = r.block.ReadAt(got[:sector], at+block<<blockShift+5*sector) // another part of the block
		want(err)
		_, err = r.block.WriteAt(content[:sector], at+block<<blockShift)
		want(err)
		for _, b := range []int64{block - 1, block + 1} {
			if _, err := r.block.ReadAt(got[:blockSize], at+b<<blockShift); err != nil || !bytes.Equal(got[:blockSize], content[b<<blockShift:][:blockSize]) {
				t.Errorf("block %d beside it: %v", b, err)
			}
		}
		if s := r.dev.Stats(); s.ChecksumErrors != 3 || s.Errors != 3 {
			t.Errorf("%d checksum errors and %d errors counted", s.ChecksumErrors, s.Errors)
		}
		rep, err := checkDisk("leaf", r.disk, CheckOptions{})
		if err != nil || len(rep.Problems) != 1 || rep.Problems[0].Structure != "data" || rep.Problems[0].Offset != off || rep.Problems[0].Repairable {
			t.Errorf("check: %+v %v", rep, err)
		}
		if rep, err := checkDisk("leaf", r.disk, CheckOptions{NoData: true}); err != nil || len(rep.Problems) != 0 {
			t.Errorf("check without data: %+v %v", rep, err)
		}
		// Writing all of the block heals it.
		if _, err := r.block.WriteAt(content[:blockSize], at+block<<blockShift); err != nil {
			t.Error(err)
		}
		if _, err := r.block.ReadAt(got, at); err != nil {
			t.Error(err)
		}
		r.shut()
	}
}
