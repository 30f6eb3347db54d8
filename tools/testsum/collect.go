package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// event is one line of `go test -json` (see `go doc test2json`).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

type testID struct{ pkg, test string }

// collect reads events to their end, prints as go test prints, and counts.
func collect(events io.Reader, out io.Writer, verbose bool) (counts, error) {
	var c counts
	held := map[testID][]string{} // output of tests that have not ended
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			c.take(line, held, out, verbose)
		}
		if err == io.EOF {
			c.flush(held, out)
			return c, nil
		}
		if err != nil {
			return c, fmt.Errorf("read test events: %w", err)
		}
	}
}

func (c *counts) take(line string, held map[testID][]string, out io.Writer, verbose bool) {
	var e event
	if json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
		fmt.Fprint(out, line) // go test's own words, for instance about a flag
		return
	}
	id := testID{e.Package, e.Test}
	switch e.Action {
	case "output", "build-output":
		switch {
		case verbose || e.Action == "build-output":
			fmt.Fprint(out, e.Output)
		case e.Test != "":
			held[id] = append(held[id], e.Output)
		case isVerdict(e.Output):
			fmt.Fprint(out, e.Output)
		}
	case "pass", "skip":
		delete(held, id)
		c.end(e)
	case "fail":
		for _, text := range held[id] {
			fmt.Fprint(out, text)
		}
		delete(held, id)
		c.end(e)
	}
}

// isVerdict tells lines that go test prints without -v from those that only -v brings.
func isVerdict(line string) bool {
	return line != "PASS\n" && !strings.Contains(line, "[no test files]") &&
		!strings.HasPrefix(line, "coverage:")
}

func (c *counts) end(e event) {
	if e.Test == "" {
		return
	}
	switch e.Action {
	case "pass":
		c.Passed++
	case "fail":
		c.Failed++
	case "skip":
		c.Skipped++
	}
}

// flush prints the output of tests that never ended: the process died under them.
func (c *counts) flush(held map[testID][]string, out io.Writer) {
	for id, texts := range held {
		fmt.Fprintf(out, "--- DIED: %s %s\n%s", id.pkg, id.test, strings.Join(texts, ""))
		c.Failed++
	}
}
