//go:build !race

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A guard becomes the daemon that it was started by, with its arguments, when the new program ends, and only where nobody else does, and nobody stopped it.
func TestGuardBecomesDaemon(t *testing.T) {
	for _, c := range []struct {
		restarted bool
		left      string // in the run directory, of the upgrade
		want      bool
	}{
		{want: true},
		{left: `{"id": "attempt", "outcome": "begun"}`, want: true},
		{left: `{"id": "attempt", "outcome": "done"}`, want: true},
		{left: `{"id": "attempt", "outcome": "stopped"}`},
		{left: `{"id": "another", "outcome": "begun"}`},
		{left: `{`, want: true},
		{restarted: true},
	} {
		program := exec.Command("true")
		if err := program.Start(); err != nil {
			t.Fatal(err)
		}
		runDir := t.TempDir()
		if c.left != "" {
			if err := os.WriteFile(filepath.Join(runDir, "upgrade.json"), []byte(c.left), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		args := []string{"--run-dir", runDir, guardCommand}
		if c.restarted {
			args = append(args, "--restarted")
		}
		// The process is there until somebody asks how it ended.
		args = append(args, "attempt", strconv.Itoa(program.Process.Pid), "coppice", "--run-dir", t.TempDir(), "version", "-o", "json")
		out, err := exec.Command("coppice", args...).CombinedOutput()
		if became := strings.Contains(string(out), `"api": "v1"`); err != nil || became != c.want {
			t.Errorf("%+v: %v\n%s", c, err, out)
		}
		if err := program.Wait(); err != nil {
			t.Error(err)
		}
	}
}
