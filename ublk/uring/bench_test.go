package uring

import (
	"testing"
)

func nops(r *Ring, n int) {
	for range n {
		r.SQE().PrepNop()
	}
}

func TestNoAllocations(t *testing.T) {
	for name, single := range map[string]bool{"plain": false, "single": true} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t, Config{SingleIssuer: single})
			f := tempFile(t, make([]byte, 4096))
			buf := offHeap(t, 4096)
			fd := int32(f.Fd())
			got := testing.AllocsPerRun(200, func() {
				nops(r, 3)
				r.SQE().PrepRead(fd, addrOf(buf), 4096, 0)
				s := r.SQE()
				s.PrepWrite(fd, addrOf(buf), 4096, 0, 0)
				s.SetUserData(9)
				if _, err := r.SubmitAndWait(5, 1e9); err != nil {
					t.Fatal(err)
				}
				n := r.Ready()
				for i := range n {
					if r.CQE(i).Res < 0 {
						t.Fatal("request failed")
					}
				}
				r.Advance(n)
			})
			if got != 0 {
				t.Errorf("%v allocations per round", got)
			}
		})
	}
}

func BenchmarkNop(b *testing.B) {
	for name, batch := range map[string]int{"batch1": 1, "batch32": 32} {
		b.Run(name, func(b *testing.B) {
			r := newRing(b, Config{SingleIssuer: true})
			if err := r.RegisterRingFD(); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for i := 0; i < b.N; i += batch {
				nops(r, batch)
				if _, err := r.SubmitAndWait(uint32(batch), -1); err != nil {
					b.Fatal(err)
				}
				r.Advance(r.Ready())
			}
		})
	}
}
