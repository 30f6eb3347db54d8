package main

import "testing"

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
