package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// counts is what one go test command ran. Subtests count as tests.
type counts struct {
	Passed  int     `json:"passed"`
	Failed  int     `json:"failed"`
	Skipped int     `json:"skipped"`
	Seconds float64 `json:"seconds"`
	// CPUSeconds is what the command and all it started took of the processors: below CPUs × Seconds, the stage waited.
	CPUSeconds float64 `json:"cpu_seconds"`
	// Status is the exit status; it can be non-zero with no failed test (a package
	// that does not build).
	Status int `json:"status"`
}

func (c counts) line(stage string) string {
	verdict := "ok"
	if c.Status != 0 {
		verdict = "FAIL"
	}
	return fmt.Sprintf("%-4s %-6s %5d passed, %d failed, %d skipped in %.0f s (%.0f s of CPU)",
		verdict, stage, c.Passed, c.Failed, c.Skipped, c.Seconds, c.CPUSeconds)
}

func (c counts) save(path string) error {
	data, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

func load(path string) (counts, error) {
	var c counts
	data, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("parse %s: %w", path, err)
	}
	return c, nil
}

func stageOf(path string) string {
	return strings.TrimSuffix(filepath.Base(path), ".json")
}

// total prints each stage and their sum, and returns 1 if any stage failed or left no result.
func total(dir string, stages []string, out io.Writer) (int, error) {
	var sum counts
	for _, stage := range stages {
		c, err := load(filepath.Join(dir, stage+".json"))
		if err != nil {
			fmt.Fprintf(out, "FAIL %-6s no result: %v\n", stage, err)
			sum.Failed++
			sum.Status = 1
			continue
		}
		fmt.Fprintln(out, c.line(stage))
		sum.Passed += c.Passed
		sum.Skipped += c.Skipped
		sum.Failed += c.Failed
		if c.Status != 0 {
			sum.Status = 1
			if c.Failed == 0 {
				sum.Failed++
			}
		}
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", sum.Passed, sum.Failed, sum.Skipped)
	return sum.Status, nil
}
