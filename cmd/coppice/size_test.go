package main

import "testing"

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "4096": 4096, "512B": 512, "4K": 4096, "4k": 4096, "4KiB": 4096, "4KB": 4000, "10G": 10 << 30, "1TiB": 1 << 40,
		"1.5M": 3 << 19, "2 MiB": 2 << 20, "1P": 1 << 50, "7E": 7 << 60, "0.5K": 512,
	} {
		if got, err := parseSize(text); got != want || err != nil {
			t.Errorf("%q: %d, %v, not %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "K", "-1", "1X", "1KX", "8E", "9223372036854775808", "1..5K", "0.3", "1e3", "99999999999P", "½K", "0x10"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	f.Add("4K")
	f.Add("1.5TiB")
	f.Fuzz(func(t *testing.T, text string) {
		if n, err := parseSize(text); err == nil && n < 0 {
			t.Errorf("%q: %d", text, n)
		}
	})
}

func TestSplitLeaf(t *testing.T) {
	t.Chdir(t.TempDir())
	for leaf, want := range map[string][2]string{
		"/dev/vdb":      {"/dev/vdb", ""},
		"/dev/vdb:web1": {"/dev/vdb", "web1"},
		"/dev/disk/by-path/pci-0000:00:1f.2-ata-1":      {"/dev/disk/by-path/pci-0000:00", "1f.2-ata-1"}, // does not exist here
		"/dev/disk/by-path/pci-0000:00:1f.2-ata-1:web1": {"/dev/disk/by-path/pci-0000:00:1f.2-ata-1", "web1"},
		"a:b/c":  {"a:b/c", ""},
		":layer": {":layer", ""},
		"store:": {"store", ""},
		"/":      {"/", ""},
	} {
		if store, layer := splitLeaf(leaf); store != want[0] || layer != want[1] {
			t.Errorf("%q: %q and %q", leaf, store, layer)
		}
	}
}
