package idxshare

import (
	"database/sql/driver"
	"slices"
	"unicode"
	"unicode/utf8"
)

// invalidBase is where the trigram index has bytes that are no UTF-8: in a private area, one character for each of the 256.
const invalidBase = 0xf700

// text returns what a database has for bytes: a text where they are UTF-8, so that programs show it as one, else a blob.
func text(b []byte) driver.Value {
	switch {
	case len(b) == 0:
		return nil
	case utf8.Valid(b):
		return string(b)
	}
	return b
}

// fold appends what the trigram index has for a name: its characters, of each that differ in case only the same one, and for a byte that is no
// UTF-8 one of the private area.
func fold(dst, name []byte) []byte {
	begin := len(dst)
	dst = slices.Grow(dst, len(name))[:begin+len(name)]
	out := dst[begin:]
	for i, c := range name {
		if c >= utf8.RuneSelf {
			return foldRunes(dst[:begin+i], name[i:])
		}
		out[i] = lower[c]
	}
	return dst
}

// lower are the ASCII characters, letters in lower case.
var lower = func() (table [utf8.RuneSelf]byte) {
	for c := range table {
		table[c] = byte(c)
		if 'A' <= c && c <= 'Z' {
			table[c] += 'a' - 'A'
		}
	}
	return table
}()

func foldRunes(dst, name []byte) []byte {
	for len(name) > 0 {
		if c := name[0]; c < utf8.RuneSelf {
			dst, name = append(dst, lower[c]), name[1:]
			continue
		}
		r, size := utf8.DecodeRune(name)
		if r == utf8.RuneError && size == 1 {
			r = invalidBase + rune(name[0])
		} else {
			r = foldRune(r)
		}
		dst, name = utf8.AppendRune(dst, r), name[size:]
	}
	return dst
}

// foldRune returns the same character for all that [unicode.SimpleFold] takes for one: an ASCII letter in lower case where there is one, else the smallest.
func foldRune(r rune) rune {
	least := r
	for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
		least = min(least, next)
	}
	if 'A' <= least && least <= 'Z' {
		least += 'a' - 'A'
	}
	return least
}
