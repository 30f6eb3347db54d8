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
	if err := fill(path, size, rootSeed); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(content[:4096], content[4096:8192]) {
		t.Error("neighbouring blocks are equal")
	}
	if content[size-4096+8] != rootSeed || content[size+8] != 0 {
		t.Error("filled too little or too much")
	}
	// One stripe of three, and nothing between them.
	if err := fillPart(path, size, newSeed, 1, 3); err != nil {
		t.Fatal(err)
	}
	if content, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	for i := range int64(size / stripe) {
		want := byte(rootSeed)
		if i%3 == 1 {
			want = newSeed
		}
		if got := content[i*stripe+8]; got != want {
			t.Fatalf("stripe %d has %#x, want %#x", i, got, want)
		}
	}
}
