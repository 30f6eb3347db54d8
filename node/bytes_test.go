package node

import "testing"

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "512B": 512, "4K": 4096, "4k": 4096, "4KiB": 4096, "4KB": 4000, "10G": 10 << 30, "1TiB": 1 << 40,
		"1.5M": 3 << 19, "2 MiB": 2 << 20, "1P": 1 << 50, "7E": 7 << 60, "0.5K": 512,
	} {
		if got, err := ParseBytes(text); got != want || err != nil {
			t.Errorf("%q: %d, %v, not %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "K", "-1", "1X", "1KX", "8E", "9223372036854775808", "1..5K", "0.3", "1e3", "99999999999P", "½K", "0x10"} {
		if got, err := ParseBytes(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func FuzzParseBytes(f *testing.F) {
	f.Add("4K")
	f.Add("1.5TiB")
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := ParseBytes(text); err == nil && n < 0 {
			t.Errorf("%q: %d", text, n)
		}
	})
}
