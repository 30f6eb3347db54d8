package union

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"coppice/ublk"
)

// busy has requests served while the store does blocking I/O, as they are by reactors beside the background work. With
// flushes, there are so many that the log grows fast.
func (r *rig) busy(o *oracle, rng *rand.Rand, flushes bool) *faultDisk {
	d := &faultDisk{Disk: r.disk, left: -1}
	inside := false
	d.during = func() {
		if inside {
			return
		}
		inside = true
		for range rng.IntN(30) {
			switch {
			case rng.IntN(3) == 0:
				o.submit(r, rng)
			case flushes && rng.IntN(3) == 0:
				o.flush(r)
			}
			r.sim.Step()
			if flushes {
				r.sim.Step()
			}
		}
		for committing(r.store) && r.sim.Step() { // or the call that goes on now would wait for it
		}
		inside = false
	}
	r.store.disk = d
	return d
}

// pump does a round of the background work if it was asked for, and reports whether it was. A round waits for a commit that
// a request leads, so that has to end first.
func (r *rig) pump() bool {
	if committing(r.store) {
		return false
	}
	select {
	case <-r.store.kick:
		r.store.maintain()
		return true
	default:
		return false
	}
}

// idle serves everything, background work included.
func (r *rig) idle() {
	r.t.Helper()
	for r.sim.Step() || r.pump() {
	}
	if err := r.sim.Run(); err != nil {
		r.t.Fatalf("seed %d: %v", r.seed, err)
	}
}

// TestLogWraps takes the ring of the log through several rounds, with requests going on during checkpoints, and ends
// each life of the store in one of three ways. No sequence number is ever used twice.
func TestLogWraps(t *testing.T) {
	t.Parallel()
	for seed := range seeds(4) {
		rng := rand.New(rand.NewPCG(seed, 12))
		r := newRigOf(t, rigConfig{seed: seed, sizeBytes: 1 << 20})
		o := newOracle(r)
		var highest uint64
		n := r.store.sb.LogBlocks
		for life := range 3 {
			start := r.store.sb.LogStart
			if start <= highest || r.store.log.start != start || r.store.log.next < start {
				t.Fatalf("seed %d: log starts at %d (%d), numbers up to %d were used", seed, start, r.store.log.start, highest)
			}
			r.busy(o, rng, false)
			for r.store.log.next < start+5*n/2 {
				for range 8 {
					if rng.IntN(3) == 0 {
						o.flush(r) // each commit takes a block at least
					} else {
						o.submit(r, rng)
					}
					r.sim.Step()
					r.sim.Step()
				}
				r.pump()
			}
			if rng.IntN(2) == 0 {
				r.idle()
			}
			highest = r.store.log.next
			if got := r.store.log.start; got < start+n {
				t.Errorf("seed %d: the log still starts at %d, after %d blocks from %d", seed, got, highest-start, start)
			}
			end := ending(life)
			if seed%2 == 0 {
				end = ending(rng.IntN(3))
			}
			r.next(end, rng)
			o.settleAfter(r, end)
		}
		r.shut()
		if t.Failed() {
			return
		}
	}
}

// TestWritesDuringCheckpoint has no request follow those that were served during a checkpoint: the next one, and the one at
// the end, must not take the run that misses them for complete.
func TestWritesDuringCheckpoint(t *testing.T) {
	for seed := range seeds(16) {
		rng := rand.New(rand.NewPCG(seed, 18))
		r := newRig(t, seed, false)
		o := newOracle(r)
		drive(r, o, rng, 200)
		d := r.busy(o, rng, false)
		serve, at := d.during, rng.IntN(3)
		d.during = func() {
			if at == 0 {
				serve()
				if err := r.sim.Run(); err != nil {
					t.Error(err)
				}
			}
			at--
		}
		if err := r.checkpoint(); err != nil {
			t.Fatal(err)
		}
		if err := r.checkpoint(); err != nil {
			t.Fatal(err)
		}
		exactly := func(s, i int) bool { return i == o.acked[s] }
		if seed%2 == 0 {
			r.close()
		} else {
			r.powerCut(rng)
		}
		r.open()
		o.settle(r, exactly)
		r.shut()
	}
}

// TestFullLogStalls has no checkpoint move the start on: writes wait when the log is full, and all go on when one does.
func TestFullLogStalls(t *testing.T) {
	r := newRig(t, 1, false)
	l := r.store.log
	n := r.store.sb.LogBlocks
	p := bytes.Repeat([]byte{9}, blockSize)
	for l.next+2 < l.start+n {
		if _, err := r.block.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		if err := r.block.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	// One block of room for records is left, at most, and eight requests at a time bring sixteen records each.
	const requests = 40
	ended := 0
	data := make([]byte, 64<<10)
	for i := range requests {
		for b := 0; b < len(data); b += blockSize {
			fill(data[b:b+blockSize], uint64(i)<<8|uint64(b)>>blockShift)
		}
		d := ublk.Descriptor{Op: ublk.OpWrite, Off: int64(i) * 64 << 10, Len: 64 << 10}
		r.block.Submit(d, bytes.Clone(data), func(errno syscall.Errno, _ []byte) {
			if errno != 0 {
				t.Errorf("write %d: %v", i, errno)
			}
			ended++
		})
	}
	for r.sim.Step() {
	}
	if l.next-l.start > n {
		t.Fatalf("the log holds %d blocks of %d", l.next-l.start, n)
	}
	if ended == requests {
		t.Fatal("no write had to wait")
	}
	before := ended
	// A commit alone makes no room.
	if err := r.store.commit(); err != nil {
		t.Fatal(err)
	}
	for r.sim.Step() {
	}
	if ended > before+1 || ended == requests {
		t.Errorf("%d writes went on after a commit", ended-before)
	}
	got := make([]byte, blockSize)
	read := false
	r.block.Submit(ublk.Descriptor{Op: ublk.OpRead, Off: 0, Len: blockSize}, nil, func(errno syscall.Errno, _ []byte) { read = errno == 0 })
	r.idle()
	if ended != requests || !read {
		t.Fatalf("%d of %d writes ended, read %v", ended, requests, read)
	}
	for pass := range 2 {
		for i := range requests {
			for b := range 16 {
				if _, err := r.block.ReadAt(got, int64(i)*64<<10+int64(b)<<blockShift); err != nil {
					t.Fatal(err)
				}
				fill(p, uint64(i)<<8|uint64(b))
				if !bytes.Equal(got, p) {
					t.Fatalf("pass %d: block %d of write %d is lost", pass, b, i)
				}
			}
		}
		if pass == 0 {
			r.abandon()
			r.open()
		}
	}
	r.shut()
}

// TestFullPendingRingStalls has no commit: as many records as the pending ring holds are taken, and no more, and
// they survive the process.
func TestFullPendingRingStalls(t *testing.T) {
	r := newRigOf(t, rigConfig{seed: 1, storeBytes: 512 << 20, sizeBytes: 256 << 20})
	if r.store.sb.LogBlocks <= maxPendingBlocks {
		t.Fatal("the log is no longer than the pending ring")
	}
	const perRequest = 16
	l := r.store.log
	ended := 0
	// Zeros, a block at a time with a gap, make records without data.
	const requests = maxPendingBlocks*recordsPerLog + 5000
	submitted := 0
	var next func()
	next = func() {
		if submitted == requests {
			return
		}
		block := submitted * 2 % (int(r.size) >> blockShift)
		submitted++
		r.block.Submit(ublk.Descriptor{Op: ublk.OpWriteZeroes, Off: int64(block) << blockShift, Len: blockSize}, nil, func(errno syscall.Errno, _ []byte) {
			if errno != 0 {
				t.Fatalf("zeroes: %v", errno)
			}
			ended++
			next()
		})
	}
	for range perRequest {
		next()
	}
	for r.sim.Step() {
	}
	if blocks := l.next - l.durable; blocks > maxPendingBlocks || blocks < maxPendingBlocks-2 || ended == requests {
		t.Fatalf("%d blocks are pending, %d requests of %d ended", blocks, ended, requests)
	}
	taken := l.next
	r.idle()
	if ended != requests {
		t.Fatalf("%d of %d requests ended", ended, requests)
	}
	if l.next <= taken {
		t.Errorf("no record was taken after the ring had been full")
	}
	r.shut()
}

// TestEitherLogCopyIsEnough loses all of one copy of the log after commits by requests and in the background.
func TestEitherLogCopyIsEnough(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 17))
		r := newRig(t, seed, false)
		o := newOracle(r)
		for range 200 {
			o.submit(r, rng)
			r.sim.Step()
			if rng.IntN(20) == 0 {
				r.store.wakeBackground()
				r.pump()
			}
		}
		if err := errors.Join(r.sim.Run(), r.block.Flush()); err != nil {
			t.Fatal(err)
		}
		copy(o.floor, o.acked)
		r.powerCut(rng)
		first := []uint64{r.store.sb.LogA, r.store.sb.LogB}[seed%2]
		lost := r.disk.Bytes()[first<<blockShift:][:r.store.sb.LogBlocks<<blockShift]
		if seed < 4 {
			clear(lost)
		} else {
			fill(lost, seed)
		}
		rep, err := checkDisk("leaf", r.disk, CheckOptions{})
		if err != nil || len(rep.Problems) == 0 {
			t.Errorf("seed %d: check of a store without copy %d: %+v %v", seed, seed%2, rep, err)
		}
		r.open()
		if r.store.recovery.Repaired == 0 || r.store.recovery.LogBlocks < 5 {
			t.Errorf("seed %d: recovery %+v", seed, r.store.recovery)
		}
		o.settle(r, func(s, i int) bool { return i >= o.floor[s] })
		r.check()
		r.close()
		r.disk.Close()
	}
}

// TestRecordsToRepeatAreBounded fills a long log with full blocks: a checkpoint is due before a recovery would take long, though there is much room.
func TestRecordsToRepeatAreBounded(t *testing.T) {
	const blocks = 1 << 14
	l := newModLog([16]byte{1}, blocks, alignedBuffer(blocks<<blockShift), 1)
	r := record{Kind: kindData}
	for range maxReplay {
		l.append(&r)
	}
	if l.nearlyFull() {
		t.Fatalf("a checkpoint is due after %d records", maxReplay)
	}
	l.append(&r)
	if used := l.next - l.start; !l.nearlyFull() || used > blocks/2 {
		t.Fatalf("no checkpoint is due after %d records in %d blocks of %d", maxReplay+1, used, blocks)
	}
	l.start, l.settled = l.next, l.appended
	if l.nearlyFull() {
		t.Fatal("a checkpoint is due right after one")
	}
}

// BenchmarkLogAppend is what a write adds to the log: a record in the ring, and a sealed block once in many. Commits are made by saying so.
func BenchmarkLogAppend(b *testing.B) {
	const blocks = 1024
	l := newModLog(uuid.UUID{1}, blocks, alignedBuffer(blocks<<blockShift), 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	b.ReportAllocs()
	for i := range uint64(b.N) {
		if !l.room(1) {
			l.start, l.written, l.durable = l.next, l.next-1, l.next-1
		}
		l.append(&record{Kind: kindData, Layer: 1, Block: i, Slot: i, CRC: uint32(i)})
	}
	if l.appended != uint64(b.N) {
		b.Errorf("%d records of %d", l.appended, b.N)
	}
}
