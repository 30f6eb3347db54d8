package main

import (
	"bytes"
	"io"
	"reflect"
	"testing"
)

// TestGrammarOfOneCommand has each command's help made of the grammar of that command alone and of all: nothing of it may differ, or a command would be read otherwise than it is documented.
func TestGrammarOfOneCommand(t *testing.T) {
	var all cli
	parser, err := newParser(&all, io.Discard, io.Discard, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, command := range parser.Model.Children {
		t.Run(command.Name, func(t *testing.T) {
			args := []string{command.Name, "--help"}
			one := grammar(args)
			if one.Type() == reflect.TypeFor[*cli]() {
				t.Fatal("the grammar of all commands is taken")
			}
			if got, want := help(t, one.Interface(), args), help(t, &cli{}, args); got != want {
				t.Errorf("by itself:\n%s\namong all:\n%s", got, want)
			}
		})
	}
	for _, args := range [][]string{nil, {"--help"}, {"--run-dir=/x", "list"}, {"nothing"}} {
		if got := grammar(args).Type(); got != reflect.TypeFor[*cli]() {
			t.Errorf("%q is read by %s", args, got)
		}
	}
}

func help(t *testing.T, grammar any, args []string) string {
	t.Helper()
	var out bytes.Buffer
	done := false
	parser, err := newParser(grammar, &out, &out, func(int) { done = true })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(args); !done {
		t.Fatalf("no help: %v", err)
	}
	return out.String()
}
