package main

import (
	"bytes"
	"encoding/json"
	"os"
	"runtime/debug"
	"strings"
	"testing"
)

// The document of a program names the program, the compiler's library and every module, each once.
func TestDocument(t *testing.T) {
	info := &debug.BuildInfo{
		GoVersion: "go1.26.0", Path: "example/cmd/prog",
		Deps: []*debug.Module{
			{Path: "example.org/a", Version: "v1.2.3", Sum: "h1:abc"},
			{Path: "example.org/b", Version: "v1.0.0", Replace: &debug.Module{Path: "example.org/fork", Version: "v1.0.1", Sum: "h1:def"}},
		},
		Settings: []debug.BuildSetting{{Key: "GOARCH", Value: "arm64"}},
	}
	doc := describe(info, "4.5.6")
	if c := doc.Metadata.Component; c.Name != "example/cmd/prog" || c.Version != "4.5.6" || c.Properties[0] != (property{"go:build:GOARCH", "arm64"}) {
		t.Errorf("program: %+v", c)
	}
	want := []string{"pkg:golang/std@1.26.0", "pkg:golang/example.org/a@v1.2.3", "pkg:golang/example.org/fork@v1.0.1"}
	if got := doc.Dependencies[0].DependsOn; strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("depends on %v, want %v", got, want)
	}
	if c := doc.Components[2]; c.PURL != want[2] || c.Properties[0].Value != "h1:def" {
		t.Errorf("replaced module: %+v", c)
	}
}

// What is printed of a real program is a document, the same each time; what is no program is refused.
func TestProgram(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	if err := run([]string{self, "1"}, &first); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{self, "1"}, &second); err != nil || first.String() != second.String() {
		t.Errorf("two runs differ, %v", err)
	}
	var doc document
	if err := json.Unmarshal(first.Bytes(), &doc); err != nil || doc.Format != "CycloneDX" || len(doc.Components) == 0 {
		t.Errorf("%v: %+v", err, doc)
	}
	for _, args := range [][]string{{"sbom_test.go", "1"}, {self}, nil} {
		if err := run(args, &first); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
}
