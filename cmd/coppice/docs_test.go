package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"coppice/node"
)

func cliPage(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// Every flag of a command is in the command's section of docs/cli.md, and every flag there is one of it.
func TestPageHasEveryFlag(t *testing.T) {
	var c cli
	parser, err := kong.New(&c, kong.Vars{"config": "x", "devices": "x"})
	if err != nil {
		t.Fatal(err)
	}
	page := cliPage(t)
	for _, cmd := range parser.Model.Leaves(true) {
		path := "coppice " + strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>|\([^)]*\)`).ReplaceAllString(cmd.Path(), "")), " ")
		_, section, ok := strings.Cut(page, "\n### "+path+"\n")
		if !ok {
			t.Errorf("no section for %s", path)
			continue
		}
		section, _, _ = strings.Cut(section, "\n### ")
		section, _, _ = strings.Cut(section, "\n## ")
		known := map[string]bool{"run-dir": true, "output": true}
		for _, f := range cmd.Flags {
			if f.Name != "output" && !strings.Contains(section, "--"+f.Name) {
				t.Errorf("--%s is not in the section of %s", f.Name, path)
			}
			known[f.Name] = true
		}
		for _, m := range regexp.MustCompile(`\| .--([a-z-]+)`).FindAllStringSubmatch(section, -1) {
			if !known[m[1]] {
				t.Errorf("the section of %s has --%s, which is no flag of it", path, m[1])
			}
		}
	}
}

// The commands of docs/runbook.md can be run as they stand. Those in the text may leave arguments out.
func TestRunbookHasCommandsThatCanBeRun(t *testing.T) {
	page, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	ref := strings.NewReplacer("REF", "oci:/images:debian:1", "GOOD", "oci:/good:debian:1")
	commands := regexp.MustCompile("(?m)^ {4,}coppice (.*)$|`coppice ([^`]*)`").FindAllStringSubmatch(string(page), -1)
	for _, m := range commands {
		var c cli
		parser, err := kong.New(&c, kong.Vars{"config": "x", "devices": "x"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = parser.Parse(strings.Fields(ref.Replace(m[1] + m[2])))
		if err != nil && (m[2] == "" || !regexp.MustCompile("^(expected|missing) ").MatchString(err.Error())) {
			t.Errorf("%s: %v", m[0], err)
		}
	}
	if len(commands) < 40 {
		t.Errorf("only %d commands found", len(commands))
	}
}

// The configuration file in docs/cli.md is one that the daemon reads, with its defaults.
func TestPageHasAConfigurationThatIsRead(t *testing.T) {
	_, text, ok := strings.Cut(cliPage(t), "```toml\n")
	if !ok {
		t.Fatal("no configuration")
	}
	text, _, _ = strings.Cut(text, "```")
	path := filepath.Join(t.TempDir(), "coppice.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := node.ReadConfig(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

func TestFlagsGoBeforeTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "coppice.toml")
	if err := os.WriteFile(path, []byte("run_dir = \"/run/a\"\nlog_level = \"error\"\nlog_format = \"json\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := daemonCmd{Config: path}
	cfg, err := c.config(&environment{runDir: node.DefaultRunDir})
	if err != nil || cfg.RunDir != "/run/a" || cfg.LogLevel != "error" || cfg.LogFormat != "json" {
		t.Errorf("%+v, %v", cfg, err)
	}
	c.LogLevel, c.LogFormat = "debug", "text"
	cfg, err = c.config(&environment{runDir: "/run/b"})
	if err != nil || cfg.RunDir != "/run/b" || cfg.LogLevel != "debug" || cfg.LogFormat != "text" {
		t.Errorf("%+v, %v", cfg, err)
	}
	if _, err := (&daemonCmd{Config: path + ".not"}).config(&environment{runDir: "/run/b"}); err == nil {
		t.Error("a missing file that was asked for is accepted")
	}
	if _, err := c.config(&environment{runDir: "relative"}); err == nil {
		t.Error("a relative run directory is accepted")
	}
}
