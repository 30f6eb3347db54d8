package bench

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// A GoBench is one line of `go test -bench`, its figures as printed there.
type GoBench struct {
	Package, Name        string
	NsPerOp, AllocsPerOp string
	Other                []string // further figures, each "VALUE UNIT"
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
			list = append(list, parseBenchLine(pkg, fields))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read benchmark output: %w", err)
	}
	return list, nil
}

// parseBenchLine reads "BenchmarkX-2 COUNT VALUE UNIT VALUE UNIT …".
func parseBenchLine(pkg string, fields []string) GoBench {
	name := strings.TrimPrefix(fields[0], "Benchmark")
	b := GoBench{Package: pkg, Name: procSuffix.ReplaceAllString(name, ""), NsPerOp: "–", AllocsPerOp: "–"}
	for i := 2; i+1 < len(fields); i += 2 {
		value, unit := fields[i], fields[i+1]
		switch unit {
		case "ns/op":
			b.NsPerOp = value
		case "allocs/op":
			b.AllocsPerOp = value
		case "B/op":
		default:
			b.Other = append(b.Other, value+" "+unit)
		}
	}
	return b
}
