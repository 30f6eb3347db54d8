package idxshare

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"
)

// Syntax says how a pattern is meant.
type Syntax int

// The syntaxes of patterns.
const (
	Substring Syntax = iota // bytes that are somewhere in the name
	Glob                    // the whole name, with * ? and [a-z], as a shell has them; in a path, * and ? stand for slashes, too
	Regexp                  // a regular expression of Go that matches somewhere in the name
)

// String returns the syntax's name.
func (s Syntax) String() string {
	switch s {
	case Substring:
		return "substring"
	case Glob:
		return "glob"
	case Regexp:
		return "regexp"
	}
	return fmt.Sprintf("syntax-%d", int(s))
}

// matcher tells which names match, and what text every name that matches has in it.
type matcher struct {
	match    func(name []byte) bool
	required *needs // nil: nothing is known
	exact    []byte // what every name that matches has in it, byte by byte; nil: nothing is known
}

// maxPattern is the longest pattern in bytes.
const maxPattern = 4096

// newMatcher understands a pattern. Letters are compared without case as [unicode.SimpleFold] does; then, bytes that are no UTF-8 match only themselves.
func newMatcher(pattern string, how Syntax, ignoreCase bool) (*matcher, error) {
	if len(pattern) > maxPattern {
		return nil, fmt.Errorf("a pattern of %d bytes, and %d is the most: %w", len(pattern), maxPattern, ErrBadQuery)
	}
	switch how {
	case Substring:
		return newSubstring(pattern, ignoreCase), nil
	case Glob:
		return newGlob(pattern, ignoreCase)
	case Regexp:
		return newRegexp(pattern, ignoreCase)
	}
	return nil, fmt.Errorf("patterns of %s: %w", how, ErrBadQuery)
}

func newSubstring(pattern string, ignoreCase bool) *matcher {
	m := &matcher{required: needText([]byte(pattern))}
	if !ignoreCase {
		want := []byte(pattern)
		m.exact = want
		m.match = func(name []byte) bool { return bytes.Contains(name, want) }
		return m
	}
	want := fold(nil, []byte(pattern))
	var buf []byte
	m.match = func(name []byte) bool {
		buf = fold(buf[:0], name)
		return bytes.Contains(buf, want)
	}
	return m
}

func newRegexp(pattern string, ignoreCase bool) (*matcher, error) {
	flags := syntax.Perl
	prefix := ""
	if ignoreCase {
		flags |= syntax.FoldCase
		prefix = "(?i)"
	}
	tree, err := syntax.Parse(pattern, flags)
	if err != nil {
		return nil, fmt.Errorf("pattern %q: %w: %w", pattern, err, ErrBadQuery)
	}
	re, err := regexp.Compile(prefix + pattern)
	if err != nil {
		return nil, fmt.Errorf("pattern %q: %w: %w", pattern, err, ErrBadQuery)
	}
	required := needsOf(tree.Simplify())
	if required == nil {
		return &matcher{match: re.Match}, nil
	}
	var buf []byte
	return &matcher{required: required, match: func(name []byte) bool {
		buf = fold(buf[:0], name)
		return required.in(buf) && re.Match(name)
	}}, nil
}

// needs is what text a name has: this text, all of the parts, or one of them.
type needs struct {
	text  string // folded; nothing else is set then
	any   bool   // one of the parts is enough
	parts []*needs
}

// needText returns the need of bytes that stand in the name, whatever stands beside them. At their ends may be pieces of characters, which the name has whole.
func needText(b []byte) *needs {
	for len(b) > 0 && !utf8.RuneStart(b[0]) {
		b = b[1:]
	}
	for i := len(b) - 1; i >= max(0, len(b)-utf8.UTFMax); i-- {
		if utf8.RuneStart(b[i]) {
			if !utf8.FullRune(b[i:]) {
				b = b[:i]
			}
			break
		}
	}
	return needFolded(string(fold(nil, b)))
}

// needFolded returns the need of a text. One of less than three characters is of no use to a query, and still is compared faster than an expression.
func needFolded(text string) *needs {
	if text == "" {
		return nil
	}
	return &needs{text: text}
}

// in tells whether what is needed stands in a folded text. It is some times faster than an expression.
func (n *needs) in(folded []byte) bool {
	if n == nil {
		return true
	}
	if n.text != "" {
		return bytes.Contains(folded, []byte(n.text))
	}
	for _, p := range n.parts {
		if p.in(folded) == n.any {
			return n.any
		}
	}
	return !n.any
}

// all returns the need of everything.
func all(parts ...*needs) *needs {
	n := &needs{}
	for _, p := range parts {
		if p != nil {
			n.parts = append(n.parts, p)
		}
	}
	switch len(n.parts) {
	case 0:
		return nil
	case 1:
		return n.parts[0]
	}
	// What tells most, and is compared fastest, first.
	slices.SortStableFunc(n.parts, func(a, b *needs) int { return cmp.Compare(len(b.text), len(a.text)) })
	return n
}

// needsOf returns what text is in everything that an expression matches.
func needsOf(re *syntax.Regexp) *needs {
	switch re.Op {
	case syntax.OpLiteral:
		return needLiteral(re.Rune)
	case syntax.OpCapture, syntax.OpPlus:
		return needsOf(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return needsOf(re.Sub[0])
		}
	case syntax.OpConcat:
		var parts []*needs
		var literal []rune
		for _, sub := range re.Sub {
			for sub.Op == syntax.OpCapture {
				sub = sub.Sub[0]
			}
			if sub.Op == syntax.OpLiteral {
				literal = append(literal, sub.Rune...)
				continue
			}
			parts, literal = append(parts, needLiteral(literal), needsOf(sub)), literal[:0]
		}
		return all(append(parts, needLiteral(literal))...)
	case syntax.OpAlternate:
		n := &needs{any: true}
		for _, sub := range re.Sub {
			part := needsOf(sub)
			if part == nil {
				return nil
			}
			n.parts = append(n.parts, part)
		}
		return n
	}
	return nil
}

// needLiteral returns the need of characters. U+FFFD also matches bytes that are no UTF-8, and parts.
func needLiteral(literal []rune) *needs {
	var parts []*needs
	for piece := range strings.SplitSeq(string(literal), string(utf8.RuneError)) {
		parts = append(parts, needFolded(string(fold(nil, []byte(piece)))))
	}
	return all(parts...)
}

// maxTerms is how many trigrams a query asks for at most; more tell little more.
const maxTerms = 24

// query returns what FTS5 is asked for, "" where that would be no help. A document that a name is in matches.
func (n *needs) query() string {
	if n == nil {
		return ""
	}
	terms := 0
	return n.write(&terms)
}

// write returns the query of what can be asked with the terms that are left. What is left out of a conjunction makes more names match.
func (n *needs) write(terms *int) string {
	if n.text != "" {
		return writeText(n.text, terms)
	}
	var parts []string
	for _, p := range n.parts {
		part := p.write(terms)
		if part != "" {
			parts = append(parts, part)
		} else if n.any {
			return ""
		}
	}
	if len(parts) == 0 {
		return ""
	}
	operator := " AND "
	if n.any {
		operator = " OR "
	}
	return "(" + strings.Join(parts, operator) + ")"
}

func writeText(text string, terms *int) string {
	var parts []string
	runes := []rune(text)
	for i := 0; i+3 <= len(runes) && *terms < maxTerms; i++ {
		*terms++
		parts = append(parts, `"`+strings.ReplaceAll(string(runes[i:i+3]), `"`, `""`)+`"`)
	}
	if len(parts) == 0 {
		return ""
	}
	return "(" + strings.Join(parts, " AND ") + ")"
}

// longest returns the longest text without a slash that is needed in any case, "" where there is none of three characters.
func (n *needs) longest() string {
	switch {
	case n == nil || n.any:
		return ""
	case n.text == "":
		best := ""
		for _, p := range n.parts {
			if text := p.longest(); len(text) > len(best) {
				best = text
			}
		}
		return best
	}
	best := ""
	for piece := range strings.SplitSeq(n.text, "/") {
		if len(piece) > len(best) && utf8.RuneCountInString(piece) >= 3 {
			best = piece
		}
	}
	return best
}
