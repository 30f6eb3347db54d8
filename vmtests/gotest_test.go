package vmtests

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestNeedsVM(t *testing.T) {
	tests := []struct {
		constraint string
		more       []string
		want       bool
	}{
		{"//go:build vm\n\n", nil, true},
		{"// Words before.\n\n//go:build linux && vm\n\n", nil, true},
		{"//go:build vm && !long\n\n", nil, true},
		{"//go:build vm && long\n\n", nil, false},
		{"//go:build vm && long\n\n", []string{"long"}, true},
		{"//go:build !vm\n\n", nil, false},
		{"//go:build linux\n\n", nil, false},
		{"//go:build vm || linux\n\n", nil, false},
		{"", nil, false},
	}
	for _, tt := range tests {
		if got := needsVM([]byte(tt.constraint+"package p\n"), tt.more); got != tt.want {
			t.Errorf("%q with %v: %v, want %v", tt.constraint, tt.more, got, tt.want)
		}
	}
}

func TestTaggedTests(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a_test.go": "//go:build vm\n\npackage p\n\nfunc TestB(t *testing.T) {}\nfunc TestA(t *testing.T) {}\n" +
			"func TestMain(m *testing.M) {}\nfunc testHelper(t *testing.T) {}\nfunc (x T) TestMethod(t *testing.T) {}\nfunc BenchmarkX(b *testing.B) {}\n",
		"b_test.go": "package p\n\nfunc TestUnit(t *testing.T) {}\n",
		"c.go":      "//go:build vm\n\npackage p\n\nfunc TestNot(t *testing.T) {}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := taggedTests(dir, nil)
	if want := []string{"TestB", "TestA"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("tests %v, error %v, want %v", got, err, want)
	}
}

func TestSelect(t *testing.T) {
	g := &GuestTests{Package: "./p", Names: []string{"TestOne", "TestTwo", "TestThree"}}
	if err := g.Drop("Three"); err != nil || !slices.Equal(g.Names, []string{"TestOne", "TestTwo"}) {
		t.Errorf("left %v, error %v", g.Names, err)
	}
	if err := g.Select("Two"); err != nil || !slices.Equal(g.Names, []string{"TestTwo"}) {
		t.Errorf("selected %v, error %v", g.Names, err)
	}
	if err := g.Select("One"); err == nil {
		t.Error("an empty selection was accepted")
	}
}

func TestResultsFromEvents(t *testing.T) {
	events := `{"Action":"start"}
{"Action":"run","Test":"TestA"}
{"Action":"output","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"run","Test":"TestA/x"}
{"Action":"output","Test":"TestA/x","Output":"    a_test.go:1: seen\n"}
{"Action":"fail","Test":"TestA/x","Elapsed":0.5}
{"Action":"fail","Test":"TestA","Elapsed":1.5}
{"Action":"run","Test":"TestB"}
{"Action":"output","Output":"panic: outside\n"}
`
	root := &TestResult{}
	if err := root.collect(strings.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	results := expect(root, []string{"TestA", "TestB", "TestC"})
	a := results[0]
	if a.Outcome != "fail" || a.Elapsed != 1500*time.Millisecond || a.Output != "" {
		t.Errorf("TestA: %+v", a)
	}
	if x := a.child("x"); x.Outcome != "fail" || !strings.Contains(x.Output, "seen") {
		t.Errorf("TestA/x: %+v", x)
	}
	for _, r := range results[1:] {
		if r.Outcome != "" || !strings.Contains(r.Output, "did not run to its end") {
			t.Errorf("%s: %+v", r.Name, r)
		}
	}
	if !strings.Contains(root.Output, "outside") {
		t.Errorf("output outside tests is lost: %q", root.Output)
	}
	if err := root.collect(strings.NewReader("{broken")); err == nil {
		t.Error("broken events were accepted")
	}
}

func TestGuestPackages(t *testing.T) {
	b, err := NewBuild(nil)
	if err != nil {
		t.Fatal(err)
	}
	packages, err := b.GuestPackages()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		if strings.Contains(p, "testdata") || p == "./vmtests" {
			t.Errorf("%s is no guest package", p)
		}
	}
}
