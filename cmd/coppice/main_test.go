//go:build !race

package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"coppice/internal/resident"
)

// brokenVariable makes this test binary one whose daemon dies at once, where it is upgraded to by its own name.
const brokenVariable = "COPPICE_BROKEN_DAEMON"

// Scripts run this test binary as the program.
func TestMain(m *testing.M) {
	exe, _ := os.Readlink(resident.Self)
	broken := strings.HasPrefix(exe, "/memfd:") && !strings.HasPrefix(exe, "/memfd:coppice ")
	if broken && os.Getenv(brokenVariable) != "" && slices.Contains(os.Args, "daemon") {
		os.Exit(3)
	}
	if os.Args[0] == "/shutdown" {
		main()
	}
	testscript.Main(m, map[string]func(){"coppice": main, "@coppice": main})
}
