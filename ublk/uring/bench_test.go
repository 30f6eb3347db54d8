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

// BenchmarkRead4K reads a file whose pages are in memory, into one buffer each.
func BenchmarkRead4K(b *testing.B) {
	for name, batch := range map[string]int{"batch1": 1, "batch32": 32} {
		b.Run(name, func(b *testing.B) {
			r := newRing(b, Config{SingleIssuer: true})
			if err := r.RegisterRingFD(); err != nil {
				b.Fatal(err)
			}
			f := tempFile(b, make([]byte, 32*4096))
			bufs := offHeap(b, 32*4096)
			fd := int32(f.Fd())
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += batch {
				for k := range batch {
					r.SQE().PrepRead(fd, addrOf(bufs)+uintptr(k*4096), 4096, int64(k*4096))
				}
				if _, err := r.SubmitAndWait(uint32(batch), -1); err != nil {
					b.Fatal(err)
				}
				n := r.Ready()
				for k := range n {
					if r.CQE(k).Res != 4096 {
						b.Fatalf("read of 4096 bytes: %d", r.CQE(k).Res)
					}
				}
				r.Advance(n)
			}
		})
	}
}
