//go:build vm

package scenarios

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"coppice/node"
)

const (
	sectorBytes  = 512
	rawRootBytes = 192<<20 + 512*3 // not a multiple of 4 KiB
)

// rawRoot makes a root without any file system: every sector holds its own number.
func rawRoot(t *testing.T, sizeBytes int64) string {
	t.Helper()
	path := t.TempDir() + "/raw.img"
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < sizeBytes; off += int64(len(buf)) {
		fillRoot(buf, off)
		if _, err := f.Write(buf[:min(int64(len(buf)), sizeBytes-off)]); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// fillRoot gives p the content that the raw root has at offset off, a multiple of the sector size.
func fillRoot(p []byte, off int64) {
	for i := range p {
		p[i] = 0
	}
	for i := 0; i+sectorBytes <= len(p); i += sectorBytes {
		copy(p[i:], strconv.FormatInt(off/sectorBytes+int64(i/sectorBytes), 10)+" root")
	}
}

// fio runs one job on a device and returns fio's summary line of what it did.
func fio(t *testing.T, dev, name string, options ...string) {
	t.Helper()
	args := append([]string{
		"fio", "--name=" + name, "--filename=" + dev, "--direct=1", "--ioengine=io_uring", "--iodepth=32",
		"--randrepeat=1", "--verify=crc32c", "--verify_fatal=1", "--verify_dump=0", "--minimal",
	}, options...)
	out := sh(t, strings.Join(args, " "))
	if strings.Contains(out, "verify:") {
		t.Errorf("fio %s: %s", name, out)
	}
}

// TestRawFio runs fio's verified mixes on an image without a file system, for each block size and number of queues, then
// makes the device again and has fio verify once more.
func TestRawFio(t *testing.T) {
	startDaemon(t)
	root, leaf := rawRoot(t, rawRootBytes), disk(t, "leaf")
	for _, block := range []int{512, 4096} {
		for _, queues := range []int{1, 2} {
			t.Run(fmt.Sprintf("%d-%d", block, queues), func(t *testing.T) {
				format(t, leaf)
				make := func() node.Device {
					return createForTest(t, "raw", root, leaf, "--size=256M", "--block-size="+strconv.Itoa(block), "--queues="+strconv.Itoa(queues))
				}
				dev := make()
				if dev.BlockSize != block || dev.Queues > queues {
					t.Errorf("device has blocks of %d bytes and %d queues", dev.BlockSize, dev.Queues)
				}
				mixes(t, dev.Path, block)
				coppice(t, "delete", "raw")
				checkStore(t, leaf)
				fio(t, make().Path, "kept", append(keptJob(block), "--verify_only")...)
				coppice(t, "delete", "raw")
			})
		}
	}
}

// keptJob is the job whose data must outlive the device.
func keptJob(block int) []string {
	return []string{"--rw=randwrite", "--offset=128M", "--size=24M", "--bs=" + strconv.Itoa(max(block, 4096)), "--do_verify=1"}
}

func mixes(t *testing.T, dev string, block int) {
	t.Helper()
	bs := strconv.Itoa(block)
	fio(t, dev, "mixed", "--rw=randrw", "--offset=0", "--size="+strconv.Itoa(2<<20/4096*max(block, 1024)), "--bs="+bs, "--verify_backlog=256")
	fio(t, dev, "ranges", "--rw=randrw", "--offset=32M", "--size=24M", "--bsrange="+bs+"-64k", "--bs_unaligned=0")
	fio(t, dev, "trim", "--rw=randrw", "--offset=64M", "--size=16M", "--bs=4k",
		"--trim_percentage=30", "--trim_verify_zero=1", "--trim_backlog=64")
	// The end of the root and what is beyond it; the root's last block is not a whole one.
	fio(t, dev, "edge", "--rw=randrw", "--offset=188M", "--size=12M", "--bs=4k")
	fio(t, dev, "kept", append(keptJob(block), "--end_fsync=1")...)
}
