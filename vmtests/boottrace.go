package vmtests

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"coppice/cache/trace"
)

// traceDisk is the serial of the disk that a boot is traced on.
const traceDisk = "root"

// bootArgs let systemd wait longer for devices and services than it does by itself: an emulated processor is slow.
const bootArgs = "systemd.firstboot=off systemd.default_device_timeout_sec=600 systemd.default_timeout_start_sec=600"

// TraceBoot boots the Debian root on a disk that nbdkit serves, and records what is read of it until the login prompt appears. nbdkit's log filter lies
// under its cow filter, so what the system has written in blocks of 4 KiB and reads again is not in the trace: with a leaf over the
// root, that is not read from the root either. Of cfg, CPUs and MemMiB matter.
func (b *Build) TraceBoot(ctx context.Context, cfg Config) (*trace.Trace, error) {
	if err := b.need(ctx, "nbdkit"); err != nil {
		return nil, err
	}
	image, err := b.Image(ctx, ImageExt4)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "coppice-trace-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	server, stop, err := logReads(ctx, image, dir)
	if err != nil {
		return nil, err
	}
	defer stop()
	cfg.Name, cfg.CPUs, cfg.MemMiB = "boottrace", cmp.Or(cfg.CPUs, 2), cmp.Or(cfg.MemMiB, 2048)
	cfg.Disks, cfg.System, cfg.KernelArgs = []Disk{{Name: traceDisk, Path: server}}, traceDisk, bootArgs
	vm, err := b.Boot(ctx, cfg)
	if err != nil {
		return nil, err
	}
	prompt := time.Now()
	if err := vm.Kill(); err != nil {
		return nil, err
	}
	stop()
	t, err := scanned(image)
	if err != nil {
		return nil, fmt.Errorf("scan %s: %w", image, err)
	}
	log, err := os.Open(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if t.Reads, t.Prompt, err = loggedReads(log, prompt); err != nil {
		return nil, fmt.Errorf("read nbdkit's log: %w", err)
	}
	kernel, err := b.Kernel(ctx)
	if err != nil {
		return nil, err
	}
	t.About = []string{
		fmt.Sprintf("A boot of Debian %s to the login prompt: ext4, systemd and udev, no network; Linux %s with modules in its initramfs.", suite, kernel.Release),
		fmt.Sprintf("Recorded %s by go run ./vmtests/cmd/boottrace -cpus %d -mem %d: nbdkit's log filter below its cow filter,",
			prompt.UTC().Format(time.DateOnly), cfg.CPUs, cfg.MemMiB),
		"in QEMU. Where it emulates the processor, the times between reads are longer than on a real one; their order and sizes are not touched by that.",
	}
	return t, nil
}

// logReads serves an image by nbdkit, which logs reads to dir/log until stop is called.
func logReads(ctx context.Context, image, dir string) (url string, stop func(), err error) {
	socket := filepath.Join(dir, "nbd")
	var said bytes.Buffer
	cmd := exec.Command("nbdkit", "-f", "-U", socket, "--filter=cow", "--filter=log", "file", image, "cow-block-size=4096", "logfile="+filepath.Join(dir, "log"))
	cmd.Stderr = &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := startFromLastingThread(cmd); err != nil {
		return "", nil, fmt.Errorf("start nbdkit: %w", err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // fails where it has ended
		<-ended
	}
	for {
		if _, err := os.Stat(socket); err == nil {
			return "nbd+unix:///?socket=" + socket, stop, nil
		}
		select {
		case <-ended:
			return "", nil, fmt.Errorf("start nbdkit: %s", said.String())
		case <-ctx.Done():
			stop()
			return "", nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

var readLine = regexp.MustCompile(`^(\S+ \S+) connection=\d+ Read id=\d+ offset=0x([0-9a-f]+) count=0x([0-9a-f]+) `)

// loggedReads returns the reads in a log that began before the prompt appeared, and when that was, from the first one on.
func loggedReads(log io.Reader, prompt time.Time) (reads []trace.Read, took time.Duration, err error) {
	type read struct {
		when time.Time
		trace.Extent
	}
	var all []read
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		m := readLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		when, timeErr := time.ParseInLocation("2006-01-02 15:04:05.000000", m[1], time.Local)
		off, offErr := strconv.ParseInt(m[2], 16, 64)
		n, lenErr := strconv.ParseInt(m[3], 16, 64)
		if err := errors.Join(timeErr, offErr, lenErr); err != nil {
			return nil, 0, err
		}
		if when.Before(prompt) {
			all = append(all, read{when, trace.Extent{Off: off, Len: n}})
		}
	}
	if err := lines.Err(); err != nil || len(all) == 0 {
		return nil, 0, errors.Join(errors.New("it has no reads"), err)
	}
	slices.SortStableFunc(all, func(a, b read) int { return a.when.Compare(b.when) }) // its threads write as they come
	for _, r := range all {
		reads = append(reads, trace.Read{At: r.when.Sub(all[0].when), Extent: r.Extent})
	}
	return reads, prompt.Sub(all[0].when), nil
}

// scanned returns a trace without reads of a raw image: where its data lies, and how it compresses.
func scanned(path string) (*trace.Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	zeros, chunk := make([]byte, trace.UnitBytes), make([]byte, 64<<10)
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	t := &trace.Trace{}
	var data, stored int64
	for {
		n, err := io.ReadFull(f, chunk)
		if err != nil && n == 0 {
			break
		}
		held := int64(0)
		for at := 0; at < n; at += trace.UnitBytes {
			if unit := chunk[at:min(at+trace.UnitBytes, n)]; !bytes.Equal(unit, zeros[:len(unit)]) {
				t.Data = grown(t.Data, trace.Extent{Off: t.Size + int64(at), Len: int64(len(unit))})
				held += int64(len(unit))
			}
		}
		if held > 0 {
			data, stored = data+held, stored+int64(len(encoder.EncodeAll(chunk[:n], nil)))
		}
		t.Size += int64(n)
	}
	if data == 0 {
		return nil, errors.New("there is nothing but zeros")
	}
	t.Stored = int(max(1, min(100, (stored*100+data/2)/data)))
	return t, nil
}

// grown adds an extent behind others, to the last one where it follows that.
func grown(all []trace.Extent, e trace.Extent) []trace.Extent {
	if n := len(all); n > 0 && all[n-1].Off+all[n-1].Len == e.Off {
		all[n-1].Len += e.Len
		return all
	}
	return append(all, e)
}
