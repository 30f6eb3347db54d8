package ebpf

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The objects and the Go code that are committed were made from the sources beside them: make generate has been run since these were changed. It needs no compiler.
func TestObjectFitsSource(t *testing.T) {
	text, err := os.ReadFile("c/SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	listed := make(map[string]bool)
	for line := range strings.Lines(string(text)) {
		want, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		if !ok {
			t.Fatalf("line %q", line)
		}
		listed[name] = true
		data, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want {
			t.Errorf("%s has changed since make generate", name)
		}
	}
	for _, pattern := range []string{"c/*.[ch]", "*_bpfe[lb].*"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %q, %v", pattern, files, err)
		}
		for _, file := range files {
			if !listed[file] {
				t.Errorf("%s is not in c/SHA256SUMS: run make generate", file)
			}
		}
	}
}
