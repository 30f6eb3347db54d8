package idxshare

import (
	"fmt"
	"slices"
	"unicode/utf8"
)

// globToken is a piece of a pattern: a run of anything, any character, or one of some.
type globToken struct {
	star   bool
	any    bool
	not    bool
	ranges [][2]rune
}

// newGlob understands a pattern with * ? [a-z] [!a-z] and \. A bracket that is not closed stands for itself, as in a shell.
func newGlob(pattern string, ignoreCase bool) (*matcher, error) {
	chars := characters(nil, []byte(pattern), ignoreCase)
	var tokens []globToken
	var literal []byte // what stands together, as the index has it
	var parts []*needs
	flush := func() {
		parts = append(parts, needText(literal))
		literal = nil
	}
	for i := 0; i < len(chars); i++ {
		switch chars[i] {
		case '*':
			flush()
			if len(tokens) == 0 || !tokens[len(tokens)-1].star {
				tokens = append(tokens, globToken{star: true})
			}
			continue
		case '?':
			flush()
			tokens = append(tokens, globToken{any: true})
			continue
		case '[':
			if set, end, ok := globSet(chars, i+1); ok {
				flush()
				tokens = append(tokens, set)
				i = end
				continue
			}
		case '\\':
			if i++; i == len(chars) {
				return nil, fmt.Errorf("pattern %q ends with a backslash: %w", pattern, ErrBadQuery)
			}
		}
		literal = appendCharacter(literal, chars[i])
		tokens = append(tokens, globToken{ranges: [][2]rune{{chars[i], chars[i]}}})
	}
	flush()
	var buf []rune
	return &matcher{required: all(parts...), match: func(name []byte) bool {
		buf = characters(buf[:0], name, ignoreCase)
		return globMatch(tokens, buf)
	}}, nil
}

// globSet reads what stands between brackets, and returns where the closing one is.
func globSet(chars []rune, at int) (set globToken, end int, ok bool) {
	if at < len(chars) && (chars[at] == '!' || chars[at] == '^') {
		set.not = true
		at++
	}
	for first := at; at < len(chars); at++ {
		if chars[at] == ']' && at > first {
			return set, at, true
		}
		low := chars[at]
		if low == '\\' && at+1 < len(chars) {
			at++
			low = chars[at]
		}
		high := low
		if at+2 < len(chars) && chars[at+1] == '-' && chars[at+2] != ']' {
			at += 2
			high = chars[at]
		}
		set.ranges = append(set.ranges, [2]rune{low, high})
	}
	return globToken{}, 0, false
}

// characters appends those of a name; a byte that is no UTF-8 is its negative.
func characters(dst []rune, name []byte, ignoreCase bool) []rune {
	for len(name) > 0 {
		r, size := utf8.DecodeRune(name)
		switch {
		case r == utf8.RuneError && size == 1:
			r = -rune(name[0])
		case ignoreCase:
			r = foldRune(r)
		}
		dst, name = append(dst, r), name[size:]
	}
	return dst
}

func appendCharacter(b []byte, r rune) []byte {
	if r < 0 {
		return append(b, byte(-r))
	}
	return utf8.AppendRune(b, r)
}

func (g *globToken) matches(r rune) bool {
	return g.any || g.not != slices.ContainsFunc(g.ranges, func(between [2]rune) bool { return between[0] <= r && r <= between[1] })
}

// globMatch goes back to the last star only, which is enough: what an earlier one could take more, the last can take as well.
func globMatch(tokens []globToken, name []rune) bool {
	t, n := 0, 0
	star, from := -1, 0
	for n < len(name) {
		switch {
		case t < len(tokens) && tokens[t].star:
			star, from = t, n
			t++
		case t < len(tokens) && tokens[t].matches(name[n]):
			t++
			n++
		case star >= 0:
			from++
			t, n = star+1, from
		default:
			return false
		}
	}
	for t < len(tokens) && tokens[t].star {
		t++
	}
	return t == len(tokens)
}
