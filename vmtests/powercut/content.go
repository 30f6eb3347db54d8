package powercut

import "encoding/binary"

// WordBytes is what sizes of files and ranges are multiples of.
const WordBytes = 8

// Fill gives p the content with the number id from byte off on, a multiple of WordBytes. The first word of every content is its
// number, so that a file tells what it holds; all others are pseudo-random.
func Fill(p []byte, id uint64, off int64) {
	for i := 0; i+WordBytes <= len(p); i += WordBytes {
		binary.LittleEndian.PutUint64(p[i:], word(id, uint64(off)/WordBytes+uint64(i)/WordBytes))
	}
}

func word(id, n uint64) uint64 {
	if n == 0 {
		return id
	}
	x := id*0x9e3779b97f4a7c15 + n // splitmix64
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// Recognise tells which content p begins with, and how many bytes of it are as they should be.
func Recognise(p []byte) (id uint64, valid int64) {
	if len(p) < WordBytes {
		return 0, 0
	}
	id = binary.LittleEndian.Uint64(p)
	n := WordBytes
	for ; n+WordBytes <= len(p) && binary.LittleEndian.Uint64(p[n:]) == word(id, uint64(n)/WordBytes); n += WordBytes {
	}
	return id, int64(n)
}
