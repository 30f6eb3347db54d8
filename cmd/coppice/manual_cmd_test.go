package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// writeManual runs the command and returns the directory that it filled, and the model it was made of.
func writeManual(t *testing.T) (dir string, app *kong.Application) {
	t.Helper()
	dir = t.TempDir()
	var out bytes.Buffer
	if code := run([]string{"manual", dir}, &out, &out); code != exitOK {
		t.Fatalf("exit %d: %s", code, out.String())
	}
	var c cli
	parser, err := newParser(&c, &out, &out, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	return dir, parser.Model
}

// There is a page for each command, with all that is below the command and every flag; groff finds no fault with any.
func TestManualHasEveryCommand(t *testing.T) {
	dir, app := writeManual(t)
	files, err := filepath.Glob(filepath.Join(dir, manualDir, "*.1"))
	if err != nil || len(files) != len(visible(app.Node))+1 {
		t.Fatalf("%d commands, pages %v, %v", len(visible(app.Node)), files, err)
	}
	for _, file := range files {
		cmd := exec.CommandContext(t.Context(), "groff", "-man", "-Tutf8", "-ww", "-z", file)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) != 0 {
			t.Errorf("%s: %v\n%s", filepath.Base(file), err, out)
		}
	}
	for _, leaf := range app.Leaves(true) {
		top := leaf
		for top.Parent.Parent != nil {
			top = top.Parent
		}
		text, err := os.ReadFile(filepath.Join(dir, manualDir, "coppice-"+top.Name+".1"))
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.Contains(string(text), roff(commandPath(leaf))) {
			t.Errorf("%s is not in the page of %s", commandPath(leaf), top.Name)
		}
		for _, f := range leaf.Flags {
			if !strings.Contains(string(text), roff("--"+f.Name)) {
				t.Errorf("--%s of %s is not in the page", f.Name, commandPath(leaf))
			}
		}
	}
}

// Bash completes commands, flags, and names of devices, as it would for a person.
func TestBashCompletes(t *testing.T) {
	dir, _ := writeManual(t)
	bin := t.TempDir()
	fake := "#!/bin/sh\n[ \"$1\" = list ] && printf 'NAME DEVICE\\nweb1 /dev/ublkb0\\nweb2 /dev/ublkb1\\n'\n"
	if err := os.WriteFile(filepath.Join(bin, "coppice"), []byte(fake), 0o755); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string][]string{
		"coppice ver":                {"version"},
		"coppice store gr":           {"grow"},
		"coppice store format --si":  {"--size"},
		"coppice create --r":         {"--run-dir", "--root", "--read-only"},
		"coppice delete web1 --for":  {"--forget"},
		"coppice inspect web":        {"web1", "web2"},
		"coppice create web":         {},
		"coppice -o json set web2 -": {"--help", "--run-dir", "--output", "--quota"},
	} {
		words := strings.Split(line, " ")
		script := fmt.Sprintf(`. "$1"; COMP_WORDS=(%s); COMP_CWORD=%d; _coppice; printf '%%s\n' "${COMPREPLY[@]}"; complete -p coppice`, line, len(words)-1)
		cmd := exec.CommandContext(t.Context(), "bash", "--norc", "-uc", script, "bash", filepath.Join(dir, "usr/share/bash-completion/completions/coppice"))
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		got := strings.Fields(strings.Split(string(out), "complete ")[0])
		if err != nil || !slices.Equal(got, want) || !strings.Contains(string(out), "-F _coppice coppice") {
			t.Errorf("%q: %v, %v\n%s", line, got, err, out)
		}
	}
}

// What zsh and fish get names every command. Neither is at hand to try it.
func TestOtherShellsComplete(t *testing.T) {
	dir, app := writeManual(t)
	zsh, err := os.ReadFile(filepath.Join(dir, "usr/share/zsh/vendor-completions/_coppice"))
	if err != nil || !strings.HasPrefix(string(zsh), "#compdef coppice\n") {
		t.Fatalf("%v\n%s", err, zsh)
	}
	fish, err := os.ReadFile(filepath.Join(dir, "usr/share/fish/vendor_completions.d/coppice.fish"))
	if err != nil {
		t.Fatal(err)
	}
	for _, leaf := range app.Leaves(true) {
		path := strings.TrimPrefix(commandPath(leaf), "coppice ")
		if !strings.Contains(string(zsh), fmt.Sprintf("%q) candidates=", path)) {
			t.Errorf("zsh does not know %s", path)
		}
		if !strings.Contains(string(fish), " -a "+leaf.Name+" -d ") {
			t.Errorf("fish does not know %s", leaf.Name)
		}
	}
	if strings.Contains(string(zsh)+string(fish), "%!") {
		t.Error("a format went wrong")
	}
}
