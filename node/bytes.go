package node

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a number of bytes on the command line or in the configuration: "4096", "4K", "10G", "1TiB", "1.5T", "2MB". As
// with coreutils, K and KiB are 1024, KB is 1000.
type Bytes int64

// UnmarshalText parses a size.
func (b *Bytes) UnmarshalText(text []byte) error {
	n, err := ParseBytes(string(text))
	*b = Bytes(n)
	return err
}

// ParseBytes parses a size. It is never negative.
func ParseBytes(text string) (int64, error) {
	bad := func(why string) (int64, error) {
		return 0, fmt.Errorf("size %q: %s; write 4096, 4K, 10G or 1TiB", text, why)
	}
	end := strings.IndexFunc(text, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end < 0 {
		end = len(text)
	}
	factor, err := unitFactor(strings.TrimSpace(text[end:]))
	if err != nil {
		return bad(err.Error())
	}
	if n, err := strconv.ParseInt(text[:end], 10, 64); err == nil {
		if n > math.MaxInt64/factor {
			return bad("too large")
		}
		return n * factor, nil
	}
	f, err := strconv.ParseFloat(text[:end], 64)
	if err != nil {
		return bad("not a number of bytes")
	}
	if f *= float64(factor); f >= math.MaxInt64 {
		return bad("too large")
	}
	if f != math.Trunc(f) {
		return bad("not a whole number of bytes")
	}
	return int64(f), nil
}

// unitFactor knows "", B, and K to E alone, with B and with iB.
func unitFactor(unit string) (int64, error) {
	u := strings.ToUpper(unit)
	if u == "" || u == "B" {
		return 1, nil
	}
	power := strings.IndexByte("KMGTPE", u[0]) + 1
	base := int64(1024)
	switch u[1:] {
	case "", "IB":
	case "B":
		base = 1000
	default:
		power = 0
	}
	if power == 0 {
		return 0, errors.New("unknown unit " + strconv.Quote(unit))
	}
	factor := int64(1)
	for range power {
		factor *= base
	}
	return factor, nil
}
