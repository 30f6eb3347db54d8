package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/alecthomas/kong"
)

// manualCmd writes what the package has of the command line: pages of the manual and completions of shells, all from kong's model.
type manualCmd struct {
	Dir string `arg:"" type:"path" help:"Root of a tree of files, below which usr/share is filled."`
}

// Run writes the files.
func (c *manualCmd) Run(env *environment) error {
	var all cli
	parser, err := newParser(&all, env.out, env.err, func(int) {})
	if err != nil {
		return err
	}
	files := manualPages(parser.Model)
	files["usr/share/bash-completion/completions/coppice"] = bashCompletion(parser.Model)
	files["usr/share/zsh/vendor-completions/_coppice"] = zshCompletion(parser.Model)
	files["usr/share/fish/vendor_completions.d/coppice.fish"] = fishCompletion(parser.Model)
	for name, text := range files {
		path := filepath.Join(c.Dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write manual: %w", err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write manual: %w", err)
		}
	}
	return nil
}

// visible are the commands below n that --help lists.
func visible(n *kong.Node) (list []*kong.Node) {
	for _, child := range n.Children {
		if child.Type == kong.CommandNode && !child.Hidden {
			list = append(list, child)
		}
	}
	return list
}

// commandPath is how a command is called: "coppice store format".
func commandPath(n *kong.Node) string {
	if n.Parent == nil {
		return n.Name
	}
	return commandPath(n.Parent) + " " + n.Name
}

const manualDir = "usr/share/man/man1/"

// manualPages makes coppice(1) and a page for each of its commands, by path.
func manualPages(app *kong.Application) map[string]string {
	pages := map[string]string{manualDir + "coppice.1": mainPage(app)}
	for _, cmd := range visible(app.Node) {
		pages[manualDir+"coppice-"+cmd.Name+".1"] = commandPage(cmd)
	}
	return pages
}

// page is a page of the manual in the making, in the language of man(7).
type page struct{ strings.Builder }

// roff writes text so that man(7) takes none of it for its own.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n.", "\n\\&.", "\n'", "\n\\&'").Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	var b strings.Builder
	for _, r := range text {
		if r < utf8.RuneSelf {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\[u%04X]`, r)
		}
	}
	return b.String()
}

func (p *page) title(name, what string) {
	fmt.Fprintf(p, ".TH %s 1 \"\" Coppice \"Coppice\"\n.SH NAME\n%s \\- %s\n", strings.ToUpper(roff(name)), roff(name), roff(strings.TrimSuffix(what, ".")))
}

func (p *page) section(name string) { fmt.Fprintf(p, ".SH %s\n", name) }

func (p *page) paragraphs(text string) {
	for i, part := range strings.Split(strings.TrimSpace(text), "\n\n") {
		if i > 0 {
			p.WriteString(".PP\n")
		}
		p.WriteString(roff(part) + "\n")
	}
}

// entry is one of a list of terms.
func (p *page) entry(term, text string) {
	fmt.Fprintf(p, ".TP\n.B %s\n%s\n", roff(term), roff(text))
}

func (p *page) flags(n *kong.Node) {
	for _, f := range n.Flags {
		if f.Hidden || f.Name == "help" {
			continue
		}
		p.entry(flagTerm(f), f.Help)
	}
}

func flagTerm(f *kong.Flag) string {
	term := "--" + f.Name
	if f.Short != 0 {
		term = "-" + string(f.Short) + ", " + term
	}
	if f.IsBool() {
		return term
	}
	return term + "=" + f.FormatPlaceHolder()
}

func (p *page) synopsis(n *kong.Node) {
	fmt.Fprintf(p, ".B %s\n", roff(commandPath(n)))
	for _, a := range n.Positional {
		name := strings.ToUpper(a.Name)
		if !a.Required {
			name = "[" + name + "]"
		}
		p.WriteString(roff(name) + "\n")
	}
	for _, f := range n.Flags {
		if f.Required {
			p.WriteString(roff(flagTerm(f)) + "\n")
		}
	}
	p.WriteString("[\\fIFLAG\\fR...]\n")
}

const exitStatus = `.SH EXIT STATUS
0 done, 1 failed, 2 wrong usage.
`

func mainPage(app *kong.Application) string {
	var p page
	p.title("coppice", "writable disks over shared read-only root images")
	p.section("SYNOPSIS")
	p.WriteString(".B coppice\n[\\fIFLAG\\fR...] \\fICOMMAND\\fR [\\fIARGUMENT\\fR...]\n")
	p.section("DESCRIPTION")
	p.paragraphs(app.Help)
	p.section("COMMANDS")
	for _, cmd := range visible(app.Node) {
		p.entry("coppice-"+cmd.Name+"(1)", cmd.Help)
	}
	p.section("OPTIONS")
	p.flags(app.Node)
	p.WriteString(exitStatus)
	p.section("FILES")
	p.entry("/etc/coppice/coppice.toml", "Configuration of the daemon: coppice.toml(5).")
	p.entry("/etc/coppice/devices.d/NAME.toml", "Declares device NAME, which is there whenever the daemon runs.")
	p.entry("/dev/coppice/by-name/NAME", "The device, for fstab with _netdev and other uses.")
	p.section("SEE ALSO")
	p.WriteString(".BR coppice.toml (5)\n")
	return p.String()
}

func commandPage(cmd *kong.Node) string {
	var p page
	p.title("coppice-"+cmd.Name, cmd.Help)
	p.section("SYNOPSIS")
	leaves := visible(cmd)
	if len(leaves) == 0 {
		leaves = []*kong.Node{cmd}
	}
	for i, leaf := range leaves {
		if i > 0 {
			p.WriteString(".br\n")
		}
		p.synopsis(leaf)
	}
	p.section("DESCRIPTION")
	p.paragraphs(cmd.Help + "\n\n" + cmd.Detail)
	for _, leaf := range leaves {
		if leaf != cmd {
			p.section(strings.ToUpper(roff(commandPath(leaf))))
			p.paragraphs(leaf.Help + "\n\n" + leaf.Detail)
		} else {
			p.section("OPTIONS")
		}
		for _, a := range leaf.Positional {
			p.entry(strings.ToUpper(a.Name), a.Help)
		}
		p.flags(leaf)
	}
	p.WriteString(exitStatus)
	p.section("SEE ALSO")
	p.WriteString(".BR coppice (1)\n")
	return p.String()
}
