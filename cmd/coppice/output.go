package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// output is the flag of every command that prints a result.
type output struct {
	Output string `short:"o" enum:"text,json" default:"text" placeholder:"text|json" help:"Form of the result: text or json (${default})."`
}

// print writes v as JSON, or calls text.
func (o output) print(w io.Writer, v any, text func(io.Writer)) error {
	if o.Output != "json" {
		text(w)
		return nil
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	return nil
}

// count prints "1 layer" and "2 layers".
func count[N int | uint64](n N, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "sh"):
		noun += "es"
	default:
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// rows prints "name  value" lines, aligned. Rows with an empty value are left out.
type rows struct{ lines [][2]string }

func (r *rows) add(name, format string, args ...any) {
	if v := fmt.Sprintf(format, args...); v != "" {
		r.lines = append(r.lines, [2]string{name, v})
	}
}

func (r *rows) write(w io.Writer) {
	width := 0
	for _, l := range r.lines {
		width = max(width, len(l[0]))
	}
	for _, l := range r.lines {
		fmt.Fprintf(w, "%-*s  %s\n", width, l[0], l[1])
	}
}

// table prints lines of cells under a heading.
func table(w io.Writer, heading []string, lines [][]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, cells := range append([][]string{heading}, lines...) {
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	_ = tw.Flush() // as with fmt.Fprint, a reader that has gone is nobody's error
}
