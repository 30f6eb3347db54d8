// Command testsum runs `go test` and counts what ran, so that several runs end
// in one total and a run that lost its tests on the way cannot pass for a good one.
//
//	testsum run [-v] RESULT.json -- go test ARG...
//	testsum total RESULTDIR STAGE...
//
// Run adds -json to the command, prints what `go test` would print (with -v, what
// `go test -v` would), writes the counts to RESULT.json and exits with the
// command's status. Total prints one line per stage, then the last line
// "N passed, N failed, N skipped"; it exits 1 if anything failed or a stage
// left no result.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

var errUsage = errors.New("usage: testsum run [-v] RESULT.json -- go test ARG... | testsum total RESULTDIR STAGE")

func main() {
	status, err := dispatch(os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		status = 2
	}
	os.Exit(status)
}

func dispatch(args []string, out io.Writer) (int, error) {
	switch {
	case len(args) > 3 && args[0] == "run":
		verbose := args[1] == "-v"
		if verbose {
			args = args[1:]
		}
		if len(args) < 4 || args[2] != "--" {
			return 0, errUsage
		}
		return run(args[1], args[3:], verbose, out)
	case len(args) > 2 && args[0] == "total":
		return total(args[1], args[2:], out)
	}
	return 0, errUsage
}

// run executes a go test command line and records its counts in resultPath. It
// returns the command's exit status, or 1 if the command passed without running a test.
func run(resultPath string, command []string, verbose bool, out io.Writer) (int, error) {
	at := slices.Index(command, "test")
	if at < 0 {
		return 0, errUsage
	}
	command = slices.Insert(slices.Clone(command), at+1, "-json")
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start %s: %w", command[0], err)
	}
	counts, readErr := collect(events, out, verbose)
	status, err := exitStatus(cmd.Wait())
	if err = errors.Join(readErr, err); err != nil {
		return 0, err
	}
	counts.Seconds = time.Since(started).Seconds()
	counts.CPUSeconds = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	counts.Status = status
	if status == 0 && counts.Passed == 0 {
		fmt.Fprintln(out, "testsum: no test ran")
		counts.Status = 1
	}
	if err := os.MkdirAll(filepath.Dir(resultPath), 0o755); err != nil {
		return 0, err
	}
	fmt.Fprintf(out, "%s\n", counts.line(stageOf(resultPath)))
	return counts.Status, counts.save(resultPath)
}

func exitStatus(err error) (int, error) {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}
