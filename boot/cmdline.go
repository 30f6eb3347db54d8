package boot

import "strings"

// splitCommandLine takes a kernel command line apart as the kernel does (next_arg in lib/cmdline.c, Linux 6.12): words end at white space that
// is not between double quotes, and quotes around a word or around its value are left away.
func splitCommandLine(line string) (words []string) {
	quoted, begin := false, -1
	for i := 0; i <= len(line); i++ {
		switch {
		case i == len(line), !quoted && isSpace(line[i]):
			if begin >= 0 {
				words = append(words, unquoted(line[begin:i]))
			}
			begin = -1
			continue
		case line[i] == '"':
			quoted = !quoted
		}
		if begin < 0 {
			begin = i
		}
	}
	return words
}

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// unquoted takes the quotes off "NAME=VALUE" and NAME="VALUE".
func unquoted(word string) string {
	if inner, ok := strings.CutPrefix(word, `"`); ok {
		return strings.TrimSuffix(inner, `"`)
	}
	name, value, ok := strings.Cut(word, "=")
	if inner, quoted := strings.CutPrefix(value, `"`); ok && quoted {
		return name + "=" + strings.TrimSuffix(inner, `"`)
	}
	return word
}
