//go:build !race

package main

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// A guard becomes the daemon that it was started by, with its arguments, when the new program ends, and only where nobody else does.
func TestGuardBecomesDaemon(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		program := exec.Command("true")
		if err := program.Start(); err != nil {
			t.Fatal(err)
		}
		args := []string{"--run-dir", t.TempDir(), guardCommand}
		if restarted {
			args = append(args, "--restarted")
		}
		// The process is there until somebody asks how it ended.
		args = append(args, "attempt", strconv.Itoa(program.Process.Pid), "coppice", "--run-dir", t.TempDir(), "version", "-o", "json")
		out, err := exec.Command("coppice", args...).CombinedOutput()
		if became := strings.Contains(string(out), `"api": "v1"`); err != nil || became == restarted {
			t.Errorf("restarted by others %v: %v\n%s", restarted, err, out)
		}
		if err := program.Wait(); err != nil {
			t.Error(err)
		}
	}
}
