package image

import (
	"crypto/sha256"
	"math/rand/v2"
	"testing"
)

// BenchmarkVerifyChunk is what a chunk of 64 KiB costs before it is trusted: its digest alone, and with what is unpacked for it. Half of the bytes of the one that is
// compressed are random.
func BenchmarkVerifyChunk(b *testing.B) {
	const size = 64 << 10
	content := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range content {
		if i%64 < 32 {
			content[i] = byte(rng.Uint32())
		}
	}
	want := Digest(sha256.Sum256(content))
	for _, c := range []struct {
		name   string
		stored []byte
	}{{"stored", content}, {"zstd", testEncoder().EncodeAll(content, nil)}} {
		b.Run(c.name, func(b *testing.B) {
			p := make([]byte, size)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if err := unpack(p, c.stored, want); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
