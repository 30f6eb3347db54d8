package docs

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func readPage(t *testing.T, path string) string {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// makeTargets returns what `make help` lists.
func makeTargets(t *testing.T) map[string]bool {
	t.Helper()
	output, err := exec.Command("make", "--no-print-directory", "-C", "..", "help").Output()
	if err != nil {
		t.Fatalf("make help: %v", err)
	}
	targets := map[string]bool{}
	for line := range strings.Lines(string(output)) {
		if fields := strings.Fields(line); len(fields) > 1 {
			targets[fields[0]] = true
		}
	}
	return targets
}

func TestMakeHelpListsTargets(t *testing.T) {
	targets := makeTargets(t)
	for _, want := range strings.Fields("help deps build demo test long unit vm race lint fmt generate bench") {
		if !targets[want] {
			t.Errorf("make help does not list %s", want)
		}
	}
}

// Every make target that a page names exists. A page names one in code: `make demo`, or a line
// that begins with it.
func TestPagesNameRealTargets(t *testing.T) {
	targets := makeTargets(t)
	named := regexp.MustCompile("(?m)(?:`|^ {4})make ([a-z-]+)")
	for _, path := range []string{"../README.md", "../CONTRIBUTING.md", "../CHANGELOG.md", "architecture.md", "cli.md"} {
		for _, match := range named.FindAllStringSubmatch(readPage(t, path), -1) {
			if !targets[match[1]] {
				t.Errorf("%s names make %s, which make help does not list", path, match[1])
			}
		}
	}
	for _, want := range []string{"make demo", "make test"} {
		if !strings.Contains(readPage(t, "../README.md"), want) {
			t.Errorf("README.md does not name %s", want)
		}
	}
}

// helpVerbs returns the commands that `coppice --help` lists, "store format" and the like included.
func helpVerbs(t *testing.T) map[string]bool {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "coppice")
	build := exec.Command("go", "build", "-o", binary, "coppice/cmd/coppice")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build coppice: %v\n%s", err, output)
	}
	output, err := exec.Command(binary, "--help").Output()
	if err != nil {
		t.Fatalf("coppice --help: %v", err)
	}
	_, commands, ok := strings.Cut(string(output), "Commands:\n")
	if !ok {
		t.Fatalf("coppice --help lists no commands:\n%s", output)
	}
	verbs := map[string]bool{}
	for _, match := range regexp.MustCompile(`(?m)^  ([a-z]+(?: [a-z]+)?)\b`).FindAllStringSubmatch(commands, -1) {
		verbs[match[1]] = true
	}
	if len(verbs) == 0 {
		t.Fatalf("no verb found in:\n%s", commands)
	}
	return verbs
}

// The headings of cli.md are the commands of the binary, no more and no fewer.
func TestCLIPageHasEveryCommand(t *testing.T) {
	documented := map[string]bool{}
	heading := regexp.MustCompile("(?m)^#+ `?coppice ([a-z]+(?: [a-z]+)?)")
	for _, match := range heading.FindAllStringSubmatch(readPage(t, "cli.md"), -1) {
		documented[match[1]] = true
	}
	verbs := helpVerbs(t)
	for _, verb := range slices.Sorted(maps.Keys(verbs)) {
		if !documented[verb] {
			t.Errorf("coppice %s is not in cli.md", verb)
		}
	}
	for _, verb := range slices.Sorted(maps.Keys(documented)) {
		if !verbs[verb] {
			t.Errorf("cli.md describes coppice %s, which coppice --help does not list", verb)
		}
	}
}

// Commands that README.md shows exist.
func TestReadmeNamesRealCommands(t *testing.T) {
	verbs := helpVerbs(t)
	named := regexp.MustCompile("(?m)(?:`|[$#] )coppice ([a-z]+)(?: ([a-z]+))?")
	for _, match := range named.FindAllStringSubmatch(readPage(t, "../README.md"), -1) {
		if !verbs[match[1]] && !verbs[match[1]+" "+match[2]] {
			t.Errorf("README.md shows %q, which coppice --help does not list", match[0])
		}
	}
}
