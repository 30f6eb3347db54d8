package tree

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"coppice/image"
)

// ErrFull means that a file system has no room for a tree.
var ErrFull = errors.New("the file system is full")

// The tools have the file system as their third file, and what is to be copied to it as their fourth one.
const (
	imagePath   = "/proc/self/fd/3"
	contentPath = "/proc/self/fd/4"
	// longestLine is what debugfs takes as one command, less its end.
	longestLine = 8190
	// mostQueued is how many bytes of commands are sent at once, about.
	mostQueued = 16 << 10
)

// tools runs the programs of e2fsprogs at a time that is always the same.
type tools struct {
	now   int64
	image *os.File
}

// command prepares a program, without it having been found in vain.
func (t *tools) command(ctx context.Context, tool string, args ...string) (*exec.Cmd, error) {
	path, err := findTool(tool)
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, path, args...)
	now := strconv.FormatInt(t.now, 10)
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC", "E2FSPROGS_FAKE_TIME=" + now, "E2FSCK_TIME=" + now, "SOURCE_DATE_EPOCH=" + now,
		"MKE2FS_CONFIG=/nonexistent", "E2FSCK_CONFIG=/nonexistent"}
	c.ExtraFiles = []*os.File{t.image}
	c.WaitDelay = time.Second
	return c, nil
}

// findTool also looks where only root's PATH leads.
func findTool(tool string) (string, error) {
	path, err := exec.LookPath(tool)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, tool))
		}
	}
	if err != nil {
		return "", fmt.Errorf("file systems are written by %s, which is not there: install e2fsprogs: %w", tool, err)
	}
	return path, nil
}

// run runs a program to its end. It is content with exit codes up to fine.
func (t *tools) run(ctx context.Context, fine int, tool string, args ...string) error {
	c, err := t.command(ctx, tool, args...)
	if err != nil {
		return err
	}
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil || errors.As(err, &exit) && exit.ExitCode() >= 0 && exit.ExitCode() <= fine {
		return nil
	}
	return fmt.Errorf("%s: %w: %.500s", tool, err, bytes.TrimSpace(out))
}

// debugfs is the program of that name at work. Its commands are lines; it repeats each of them, and then says what went wrong.
type debugfs struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   *bufio.Reader
	queue []byte
}

// startDebugfs starts it in a directory, with a file that commands can take content from.
func (t *tools) startDebugfs(ctx context.Context, dir string, content *os.File) (*debugfs, error) {
	c, err := t.command(ctx, "debugfs", "-w", "-f", "-", imagePath)
	if err != nil {
		return nil, err
	}
	c.Dir = dir
	c.ExtraFiles = append(c.ExtraFiles, content)
	in, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, answers, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.Stdout, c.Stderr = answers, answers
	err = c.Start()
	answers.Close()
	if err != nil {
		out.Close()
		return nil, fmt.Errorf("debugfs: %w", err)
	}
	d := &debugfs{cmd: c, in: in, out: bufio.NewReader(out)}
	if _, err := d.do(); err != nil {
		return nil, errors.Join(err, d.end())
	}
	return d, nil
}

// line makes a command.
func line(words ...string) string {
	for i, w := range words {
		if i > 0 {
			words[i] = `"` + strings.ReplaceAll(w, `"`, `""`) + `"`
		}
	}
	return strings.Join(words, " ")
}

// enqueue adds a command to those that are to be done.
func (d *debugfs) enqueue(words []string) error {
	l := line(words...)
	if len(l) > longestLine || strings.ContainsAny(l, "\n\r") {
		return fmt.Errorf("a name or target is too long, or has line breaks: %.300q: %w", l, image.ErrBadOption)
	}
	d.queue = append(append(d.queue, l...), '\n')
	return nil
}

// add says what to do before the next thing that is waited for.
func (d *debugfs) add(words ...string) error {
	if err := d.enqueue(words); err != nil || len(d.queue) < mostQueued {
		return err
	}
	_, err := d.do()
	return err
}

// do does what was added, and a command, and returns the inode that the last command has taken, if it says so.
func (d *debugfs) do(words ...string) (inode uint64, err error) {
	if len(words) > 0 {
		if err := d.enqueue(words); err != nil {
			return 0, err
		}
	}
	sent := make(chan error, 1)
	go func() { // while the answers are read, because pipes may hold little
		_, err := d.in.Write(append(d.queue, "#\n"...))
		sent <- err
	}()
	inode, err = d.answers()
	err = errors.Join(err, <-sent)
	d.queue = d.queue[:0]
	return inode, err
}

// answers reads what debugfs says to a number of commands.
func (d *debugfs) answers() (inode uint64, err error) {
	command := "start"
	for {
		answer, readErr := d.out.ReadString('\n')
		answer = strings.TrimSuffix(answer, "\n")
		switch {
		case readErr != nil:
			return 0, errors.Join(err, fmt.Errorf("debugfs ended early, at %.300s: %w", command, readErr))
		case answer == "#":
			return inode, err
		case strings.HasPrefix(answer, "debugfs: "):
			command, inode = strings.TrimPrefix(answer, "debugfs: "), 0
		case strings.HasPrefix(answer, "Allocated inode: "):
			inode, readErr = strconv.ParseUint(strings.TrimPrefix(answer, "Allocated inode: "), 10, 32)
			err = errors.Join(err, readErr)
		case answer == "", strings.HasPrefix(answer, "debugfs 1."):
		case err == nil:
			err = failure(command, answer)
		}
	}
}

// failure is what debugfs says about a command that it could not do.
func failure(command, answer string) error {
	if strings.Contains(answer, "Could not allocate") {
		return fmt.Errorf("debugfs: %.300s: %w", command, ErrFull)
	}
	return fmt.Errorf("debugfs: %.300s: %.300s", command, answer)
}

// end lets debugfs write what it has and waits for its end.
func (d *debugfs) end() error {
	closeErr := d.in.Close()
	rest, readErr := io.ReadAll(io.LimitReader(d.out, 64<<10))
	err := errors.Join(closeErr, readErr, d.cmd.Wait())
	if text := bytes.TrimSpace(rest); err == nil && len(text) > 0 {
		err = fmt.Errorf("%.300s", text)
	}
	if err != nil {
		return fmt.Errorf("debugfs: %w", err)
	}
	return nil
}
