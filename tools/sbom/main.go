// Command sbom prints what a Go program is made of, as a CycloneDX 1.6 document (https://cyclonedx.org/docs/1.6/json/).
//
//	sbom PROGRAM VERSION
//
// All that it says is in the program itself, as `go version -m` shows it: one program makes one document, byte for byte.
package main

import (
	"cmp"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: sbom PROGRAM VERSION")
	}
	info, err := buildinfo.ReadFile(args[0])
	if err != nil {
		return fmt.Errorf("read build information: %w", err)
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(describe(info, args[1]))
}

// document has the fields of CycloneDX that are used here.
type document struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

func describe(info *buildinfo.BuildInfo, version string) document {
	program := component{Type: "application", Ref: "coppice", Name: info.Path, Version: version}
	for _, s := range info.Settings {
		program.Properties = append(program.Properties, property{"go:build:" + s.Key, s.Value})
	}
	all := []component{library("std", strings.TrimPrefix(info.GoVersion, "go"), "")}
	for _, m := range info.Deps {
		used := cmp.Or(m.Replace, m)
		all = append(all, library(used.Path, used.Version, used.Sum))
	}
	top := dependency{Ref: program.Ref}
	for _, c := range all {
		top.DependsOn = append(top.DependsOn, c.Ref)
	}
	return document{
		Format: "CycloneDX", Spec: "1.6", Version: 1,
		Metadata: metadata{program}, Components: all, Dependencies: []dependency{top},
	}
}

// library describes a module. Its sum is the digest by which go.sum knows it (https://go.dev/ref/mod#go-sum-files).
func library(path, version, sum string) component {
	purl := "pkg:golang/" + path + "@" + version
	c := component{Type: "library", Ref: purl, Name: path, Version: version, PURL: purl}
	if sum != "" {
		c.Properties = []property{{"go:sum", sum}}
	}
	return c
}
