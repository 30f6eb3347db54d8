// Package docs holds tests that hold the documentation to what the code does.
package docs

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

const modulePath = "coppice/"

// ranks returns the order of the packages in architecture.md's table; the lowest has rank 0.
func ranks(t *testing.T) map[string]int {
	t.Helper()
	page, err := os.ReadFile("architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## Packages\n")
	if !ok {
		t.Fatal("architecture.md has no section Packages")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	order := map[string]int{}
	for _, match := range regexp.MustCompile("(?m)^\\| `([a-z/]+)` \\|").FindAllStringSubmatch(section, -1) {
		order[match[1]] = len(order)
	}
	if len(order) < 5 {
		t.Fatalf("the table of packages has %d rows", len(order))
	}
	return order
}

// rank finds the table's row for a package: its own, or that of a folder above it.
func rank(order map[string]int, pkg string) (row string, n int, ok bool) {
	for row = pkg; ; {
		if n, ok = order[row]; ok {
			return row, n, true
		}
		slash := strings.LastIndex(row, "/")
		if slash < 0 {
			return "", 0, false
		}
		row = row[:slash]
	}
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func listPackages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-tags=vm,long", "-json=ImportPath,Imports", "coppice/...")
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []goPackage
	decoder := json.NewDecoder(strings.NewReader(string(output)))
	for {
		var p goPackage
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// A package imports only packages above it in the table, and stands in the table.
func TestImportsPointOneWay(t *testing.T) {
	order := ranks(t)
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, modulePath)
		row, n, ok := rank(order, name)
		if !ok {
			t.Errorf("package %s is not in architecture.md's table", name)
			continue
		}
		for _, imported := range p.Imports {
			imported, ours := strings.CutPrefix(imported, modulePath)
			if !ours {
				continue
			}
			target, m, ok := rank(order, imported)
			if ok && m > n && target != row {
				t.Errorf("package %s imports %s, which stands below it in architecture.md's table", name, imported)
			}
		}
	}
}

// Every row of the table is a folder with Go code in it.
func TestTableHasNoGhosts(t *testing.T) {
	packages := listPackages(t)
	for row := range ranks(t) {
		found := false
		for _, p := range packages {
			name := strings.TrimPrefix(p.ImportPath, modulePath)
			found = found || name == row || strings.HasPrefix(name, row+"/")
		}
		if !found {
			t.Errorf("architecture.md lists package %s, which does not exist", row)
		}
	}
}
