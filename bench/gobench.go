package bench

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// A GoBench is one line of `go test -bench`.
type GoBench struct {
	Name   string             // of the package and the benchmark: "coppice/union.LeafRead4K/verify=on"
	Values map[string]float64 // by unit: "ns/op", "allocs/op", …
}

// procSuffix is the "-GOMAXPROCS" that go test adds to a benchmark's name.
var procSuffix = regexp.MustCompile(`-\d+$`)

// ParseGoBench reads the output of `go test -bench` over any number of packages.
func ParseGoBench(output io.Reader) ([]GoBench, error) {
	var list []GoBench
	pkg := ""
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) == 2 && fields[0] == "pkg:":
			pkg = fields[1]
		case len(fields) >= 4 && strings.HasPrefix(fields[0], "Benchmark"):
			b, err := parseBenchLine(pkg, fields)
			if err != nil {
				return nil, fmt.Errorf("parse benchmark line %q: %w", lines.Text(), err)
			}
			list = append(list, b)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read benchmark output: %w", err)
	}
	return list, nil
}

// parseBenchLine reads "BenchmarkX-2 COUNT VALUE UNIT VALUE UNIT …".
func parseBenchLine(pkg string, fields []string) (GoBench, error) {
	name := procSuffix.ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), "")
	b := GoBench{Name: pkg + "." + name, Values: map[string]float64{}}
	for i := 2; i+1 < len(fields); i += 2 {
		v, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return b, err
		}
		b.Values[fields[i+1]] = v
	}
	return b, nil
}
