package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestParseBusy(t *testing.T) {
	const stat = "cpu  100 20 30 9999 888 4 5 6 700 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n"
	busy, err := parseBusy(stat)
	if err != nil {
		t.Fatal(err)
	}
	if want := 1650 * time.Millisecond; busy != want {
		t.Errorf("busy %v, want %v: guest time is in user time already", busy, want)
	}
	for _, bad := range []string{"", "cpu 1 2", "cpu a b c d e f g h i"} {
		if _, err := parseBusy(bad); err == nil {
			t.Errorf("%q passed", bad)
		}
	}
}

func TestFill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	const size = 3<<20 + 4096
	if err := os.WriteFile(path, make([]byte, size+4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fill(path, size, 0xa5); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(content[:4096], content[4096:8192]) {
		t.Error("neighbouring blocks are equal")
	}
	if content[size-1] == 0 || content[size] != 0 {
		t.Error("filled too little or too much")
	}
}
