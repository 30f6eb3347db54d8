package vmtests

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// VMTag is the build tag of tests that run in a guest only.
const VMTag = "vm"

// GuestTests are the tests of one package that need a VM, compiled.
type GuestTests struct {
	Package string   // as given, relative to the repository: "./ublk"
	Names   []string // top-level tests in files that build with [VMTag] only: every one must run
	binary  string
	dir     string // the package's directory on the host
}

// GuestTests compiles the tests of a package, with more build tags where given, and finds out by its sources which of
// them a VM must run.
func (b *Build) GuestTests(ctx context.Context, pkg string, tags ...string) (*GuestTests, error) {
	dir := filepath.Join(b.repo, filepath.FromSlash(pkg))
	names, err := taggedTests(dir, tags)
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("find tests of %s: no test in a file with //go:build %s", pkg, VMTag)
	}
	binary, err := b.testBinary(ctx, pkg, tags)
	if err != nil {
		return nil, err
	}
	return &GuestTests{Package: pkg, Names: names, binary: binary, dir: dir}, nil
}

// Select keeps the tests whose name matches the pattern.
func (g *GuestTests) Select(pattern string) error { return g.keep(pattern, true) }

// Drop keeps the tests whose name does not match the pattern.
func (g *GuestTests) Drop(pattern string) error { return g.keep(pattern, false) }

func (g *GuestTests) keep(pattern string, matching bool) error {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return fmt.Errorf("compile pattern: %w", err)
	}
	g.Names = slices.DeleteFunc(g.Names, func(name string) bool { return re.MatchString(name) != matching })
	if len(g.Names) == 0 {
		return fmt.Errorf("select tests of %s: none is left by %q", g.Package, pattern)
	}
	return nil
}

// Files are what the guest needs to run the tests; for [Config.Files].
func (g *GuestTests) Files() map[string]string {
	files := map[string]string{g.guestDir() + "/package.test": g.binary}
	if data := filepath.Join(g.dir, "testdata"); isDir(data) {
		files[g.guestDir()+"/testdata"] = data
	}
	return files
}

func (g *GuestTests) guestDir() string { return path.Join("/tests", filepath.ToSlash(g.Package)) }

// TestResult is what became of one test or subtest.
type TestResult struct {
	Name    string // without the names of its parents
	Outcome string // "pass", "fail", "skip"; "" when it began and never ended
	Elapsed time.Duration
	Output  string
	Subs    []*TestResult
}

// RunTests runs the tests in the guest. Results come back for every name that was expected; one that never ran has an
// empty outcome and says so. problem describes what went wrong beside the tests themselves: a time-out with its dump, a
// kernel fault, an exit status that no test explains; it is empty for a sound run. The error tells that the tests could not
// be run at all, among others for [ErrEmulator].
func (vm *VM) RunTests(ctx context.Context, g *GuestTests, limit time.Duration, live io.Writer) (results []*TestResult, problem string, err error) {
	conv, err := startConverter(ctx)
	if err != nil {
		return nil, "", err
	}
	var output io.Writer = conv.input
	if live != nil {
		output = io.MultiWriter(conv.input, live)
	}
	exit, runErr := vm.Run(ctx, Job{
		Argv: []string{
			g.guestDir() + "/package.test", "-test.v=test2json", "-test.paniconexit0",
			"-test.run=^(" + strings.Join(g.Names, "|") + ")$", "-test.timeout=" + limit.String(),
		},
		Dir: g.guestDir(), Timeout: limit + 10*time.Second, Output: output,
	})
	root, err := conv.finish()
	if err != nil {
		return nil, "", err
	}
	if errors.Is(runErr, ErrEmulator) {
		return nil, "", runErr
	}
	results = expect(root, g.Names)
	switch {
	case runErr != nil:
		problem = runErr.Error()
	case exit.TimedOut, len(exit.Faults) > 0, exit.Err != "", exit.Code != 0:
		problem = fmt.Sprintf("%s: %s\n%s", g.Package, exit, exit.Dump)
	}
	if problem != "" {
		problem += "\n--- output outside tests\n" + root.Output
	}
	return results, problem, nil
}

// expect returns the results in the order of the expected names, with an entry for each that did not run.
func expect(root *TestResult, names []string) []*TestResult {
	results := make([]*TestResult, 0, len(names))
	for _, name := range names {
		r := root.child(name)
		if r.Outcome == "" {
			r.Output += "this test did not run to its end\n"
		}
		results = append(results, r)
	}
	return results
}

// child finds or makes the subtest with the given name.
func (r *TestResult) child(name string) *TestResult {
	for _, s := range r.Subs {
		if s.Name == name {
			return s
		}
	}
	s := &TestResult{Name: name}
	r.Subs = append(r.Subs, s)
	return s
}

// converter turns the output of a test binary into results by way of the Go tool chain's test2json.
type converter struct {
	input io.WriteCloser
	root  *TestResult
	done  chan error
}

func startConverter(ctx context.Context) (*converter, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json", "-t")
	cmd.Stderr = os.Stderr
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	events, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start test2json: %w", err)
	}
	c := &converter{input: input, root: &TestResult{}, done: make(chan error, 1)}
	go func() {
		err := c.root.collect(events)
		if waitErr := cmd.Wait(); err == nil {
			err = waitErr
		}
		c.done <- err
	}()
	return c, nil
}

func (c *converter) finish() (*TestResult, error) {
	if err := c.input.Close(); err != nil {
		return nil, err
	}
	if err := <-c.done; err != nil {
		return nil, fmt.Errorf("convert test output: %w", err)
	}
	return c.root, nil
}

// testEvent is one line of test2json (go doc test2json).
type testEvent struct {
	Action  string
	Test    string
	Elapsed float64 // seconds
	Output  string
}

// collect reads events to their end and builds the tree of results.
func (r *TestResult) collect(events io.Reader) error {
	dec := json.NewDecoder(bufio.NewReader(events))
	for {
		var ev testEvent
		if err := dec.Decode(&ev); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read test event: %w", err)
		}
		node := r
		if ev.Test != "" {
			for name := range strings.SplitSeq(ev.Test, "/") {
				node = node.child(name)
			}
		}
		switch ev.Action {
		case "output":
			if !isMarker(ev.Output) {
				node.Output += ev.Output
			}
		case "pass", "fail", "skip":
			node.Outcome = ev.Action
			node.Elapsed = time.Duration(ev.Elapsed * float64(time.Second))
		}
	}
}

// isMarker tells the lines by which go test frames tests from what they print.
func isMarker(line string) bool {
	line = strings.TrimSpace(line)
	return strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") || line == "PASS" || line == "FAIL"
}

// taggedTests returns the top-level tests in files of dir that build with VMTag and the more tags, and not without VMTag.
func taggedTests(dir string, more []string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if !needsVM(src, more) {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), file, src, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("parse tests: %w", err)
		}
		for _, d := range tree.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && isTest(f) {
				names = append(names, f.Name.Name)
			}
		}
	}
	return names, nil
}

func isTest(f *ast.FuncDecl) bool {
	name := f.Name.Name
	return f.Recv == nil && strings.HasPrefix(name, "Test") && name != "TestMain" && len(f.Type.Params.List) == 1
}

// needsVM reports whether the build constraint of a source file holds with VMTag (and the more tags) and fails without.
func needsVM(src []byte, more []string) bool {
	for line := range bytes.Lines(src) {
		text := strings.TrimSpace(string(line))
		if strings.HasPrefix(text, "package ") {
			return false
		}
		if !constraint.IsGoBuild(text) {
			continue
		}
		expr, err := constraint.Parse(text)
		if err != nil {
			return false
		}
		always := append([]string{"linux", "amd64", "unix"}, more...)
		holds := func(vm bool) bool {
			return expr.Eval(func(t string) bool { return slices.Contains(always, t) || vm && t == VMTag })
		}
		return holds(true) && !holds(false)
	}
	return false
}

// GuestPackages returns the packages of the repository that have tests for a VM, as "./path", without this one: its tests
// with that tag are the hosts of all others.
func (b *Build) GuestPackages(tags ...string) ([]string, error) {
	var packages []string
	err := filepath.WalkDir(b.repo, func(dir string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		rel, err := filepath.Rel(b.repo, dir)
		if err != nil {
			return err
		}
		if name := entry.Name(); rel != "." && (name[0] == '.' || name[0] == '_' || name == "testdata" || rel == "build") {
			return filepath.SkipDir
		}
		names, err := taggedTests(dir, tags)
		if len(names) > 0 && rel != "vmtests" {
			packages = append(packages, "./"+filepath.ToSlash(rel))
		}
		return err
	})
	return packages, err
}
