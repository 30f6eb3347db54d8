package vmtests

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGoneTellsWhy(t *testing.T) {
	tests := []struct {
		console  string
		emulator bool
		want     string
	}{
		{"[ 1.0] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\n[ 1.0] Kernel panic - not syncing\n", true, "stale breakpoint"},
		{"[ 1.0] Oops: 0000 [#1] PREEMPT SMP NOPTI\n[ 1.0] Kernel panic - not syncing\n", false, "kernel panic"},
		{"", false, "guest is gone"},
	}
	for _, tt := range tests {
		vm := &VM{dir: t.TempDir()}
		if err := os.WriteFile(filepath.Join(vm.dir, "console"), []byte(tt.console), 0o644); err != nil {
			t.Fatal(err)
		}
		cause := errors.New("the cause")
		err := vm.gone(cause)
		if !errors.Is(err, ErrGuestGone) || errors.Is(err, ErrEmulator) != tt.emulator || !errors.Is(err, cause) {
			t.Errorf("console %q: %v", tt.console, err)
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("console %q: %v lacks %q", tt.console, err, tt.want)
		}
	}
}
