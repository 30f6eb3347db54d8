package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const sampleEvents = `{"Action":"run","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"    bad_test.go:1: reason\n"}
{"Action":"fail","Package":"p","Test":"TestBad"}
{"Action":"output","Package":"p","Test":"TestGone","Output":"last words\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
`

func TestCollect(t *testing.T) {
	var out strings.Builder
	c, err := collect(strings.NewReader(sampleEvents), &out, false)
	if err != nil {
		t.Fatal(err)
	}
	if c.Passed != 1 || c.Failed != 2 {
		t.Errorf("counts %+v, want 1 passed and 2 failed (one died)", c)
	}
	for _, want := range []string{"reason", "last words", "FAIL\tp"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "chatter") {
		t.Error("a passing test's output was printed")
	}
}

func TestCollectVerbosePrintsAsItComes(t *testing.T) {
	var out strings.Builder
	if _, err := collect(strings.NewReader(sampleEvents), &out, true); err != nil {
		t.Fatal(err)
	}
	if strings.Count(out.String(), "chatter") != 1 || strings.Count(out.String(), "reason") != 1 {
		t.Errorf("each line once, please:\n%s", out.String())
	}
}

func TestTotal(t *testing.T) {
	dir := t.TempDir()
	save := func(stage string, c counts) {
		if err := c.save(filepath.Join(dir, stage+".json")); err != nil {
			t.Fatal(err)
		}
	}
	save("unit", counts{Passed: 3})
	save("vm", counts{Passed: 2, Status: 1}) // did not build: no failed test, yet a failure
	tests := []struct {
		name   string
		stages []string
		status int
		last   string
	}{
		{"all passed", []string{"unit"}, 0, "3 passed, 0 failed, 0 skipped"},
		{"build failure counts", []string{"unit", "vm"}, 1, "5 passed, 1 failed, 0 skipped"},
		{"missing stage counts", []string{"unit", "race"}, 1, "3 passed, 1 failed, 0 skipped"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			status, err := total(dir, test.stages, &out)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if last := lines[len(lines)-1]; status != test.status || last != test.last {
				t.Errorf("status %d, last line %q; want %d, %q", status, last, test.status, test.last)
			}
		})
	}
}

func TestRunFailsWithoutTests(t *testing.T) {
	result := filepath.Join(t.TempDir(), "sub", "none.json")
	var out strings.Builder
	status, err := run(result, []string{"true", "test"}, false, &out)
	if err != nil {
		t.Fatal(err)
	}
	if status != 1 || !strings.Contains(out.String(), "no test ran") {
		t.Errorf("status %d, output %q", status, out.String())
	}
	if _, err := os.Stat(result); err != nil {
		t.Error(err)
	}
}

// What a command's children took of the processor counts too.
func TestRunCountsProcessorTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "busy.json")
	// The flag that run adds comes as an argument, which the script leaves alone.
	script := `sh -c 'n=0; while [ $n -lt 300000 ]; do n=$((n+1)); done'; echo '{"Action":"pass","Package":"p","Test":"TestA"}'`
	var out strings.Builder
	if status, err := run(path, []string{"sh", "-c", script, "test"}, false, &out); err != nil || status != 0 {
		t.Fatal(status, err, out.String())
	}
	c, err := load(path)
	if err != nil || c.CPUSeconds <= 0.01 || c.CPUSeconds > 8*c.Seconds {
		t.Errorf("%+v, %v", c, err)
	}
	if !strings.Contains(out.String(), " s of CPU)") {
		t.Error(out.String())
	}
}
