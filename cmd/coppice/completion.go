package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// completion is what can follow the name of a command.
type completion struct {
	path  string // such as "store format"; "" is coppice itself
	words []completedWord
	// device tells that the command's first argument names a device.
	device bool
}

// completedWord is a command or flag, and what it does.
type completedWord struct{ word, help string }

// completions are those of all commands, in the order of --help.
func completions(app *kong.Application) (list []completion) {
	var add func(n *kong.Node, path string)
	add = func(n *kong.Node, path string) {
		c := completion{path: path, device: len(n.Positional) > 0 && n.Positional[0].Name == "name" && path != "create"}
		for _, child := range visible(n) {
			c.words = append(c.words, completedWord{child.Name, child.Help})
		}
		for _, f := range slices.Concat(app.Flags, n.Flags) {
			word := completedWord{"--" + f.Name, f.Help}
			if !f.Hidden && !slices.Contains(c.words, word) {
				c.words = append(c.words, word)
			}
		}
		list = append(list, c)
		for _, child := range visible(n) {
			add(child, strings.TrimSpace(path+" "+child.Name))
		}
	}
	add(app.Node, "")
	return list
}

// names are the words alone.
func (c completion) names() string {
	var list []string
	for _, w := range c.words {
		list = append(list, w.word)
	}
	return strings.Join(list, " ")
}

// listDevices prints the names of devices, in any shell.
const listDevices = `coppice list 2>/dev/null | awk 'NR > 1 { print $1 }'`

// findPath is how bash and zsh find out which command it is about: its name is in path in the end. What they count from, and where the words are, differs.
const findPath = `	for ((i = first; i < at; i++)); do
		case "${path:+$path }${%[1]s[i]}" in
		%[2]s) path="${path:+$path }${%[1]s[i]}" ;;
		esac
	done
	case $path in
%[3]s	esac
`

// cases are the patterns of all commands, and what can follow each.
func cases(app *kong.Application) (patterns, follow string) {
	var paths []string
	var b strings.Builder
	for _, c := range completions(app) {
		if c.path != "" {
			paths = append(paths, `"`+c.path+`"`)
		}
		devices := ""
		if c.device {
			devices = ` $(` + listDevices + `)`
		}
		fmt.Fprintf(&b, "\t%q) words=\"%s%s\" ;;\n", c.path, c.names(), devices)
	}
	return strings.Join(paths, " | "), b.String()
}

// bashCompletion is a script for bash-completion. What is no command or flag, the names of files for instance, is left to bash.
func bashCompletion(app *kong.Application) string {
	patterns, follow := cases(app)
	return "_coppice() {\n\tlocal i first=1 at=$COMP_CWORD path= words=\n" + fmt.Sprintf(findPath, "COMP_WORDS", patterns, follow) +
		"\tCOMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n}\ncomplete -o default -F _coppice coppice\n"
}

// zshCompletion is a function for zsh's fpath.
func zshCompletion(app *kong.Application) string {
	patterns, follow := cases(app)
	follow = strings.ReplaceAll(follow, "words=", "candidates=")
	return "#compdef coppice\nlocal i first=2 at=$CURRENT path_= candidates=\n" +
		strings.ReplaceAll(fmt.Sprintf(strings.ReplaceAll(findPath, "path", "path_"), "words", patterns, follow), "$path ", "$path_ ") +
		"\tcompadd -- ${=candidates} || _files\n"
}

// fishCompletion has a line for each word: fish shows what it does, too.
func fishCompletion(app *kong.Application) string {
	var b strings.Builder
	for _, c := range completions(app) {
		var seen []string
		for _, part := range strings.Fields(c.path) {
			seen = append(seen, "__fish_seen_subcommand_from "+part)
		}
		if c.path == "" {
			seen = append(seen, "__fish_use_subcommand")
		}
		when := strings.Join(seen, "; and ")
		for _, w := range c.words {
			if flag, ok := strings.CutPrefix(w.word, "--"); ok {
				fmt.Fprintf(&b, "complete -c coppice -n %s -l %s -d %s\n", fishQuote(when), flag, fishQuote(w.help))
				continue
			}
			fmt.Fprintf(&b, "complete -c coppice -f -n %s -a %s -d %s\n", fishQuote(when), w.word, fishQuote(w.help))
		}
		if c.device {
			fmt.Fprintf(&b, "complete -c coppice -f -n %s -a %s\n", fishQuote(when), fishQuote("("+listDevices+")"))
		}
	}
	return b.String()
}

func fishQuote(text string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(text) + "'"
}
