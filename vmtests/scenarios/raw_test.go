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
	sectorBytes    = 512
	rawRootBytes   = 192<<20 + 512*3 // not a multiple of 4 KiB
	rawDeviceBytes = 256 << 20
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

// fio runs one verified job on a device.
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

// geometry is a device's block size and number of queues.
type geometry struct{ block, queues int }

// rawDevice makes a device on the raw root that is larger than the root.
func rawDevice(t *testing.T, root, leaf string, block, queues int) node.Device {
	t.Helper()
	dev := createForTest(t, "raw", root, leaf, "--size="+strconv.Itoa(rawDeviceBytes),
		"--block-size="+strconv.Itoa(block), "--queues="+strconv.Itoa(queues))
	if dev.BlockSize != block || dev.SizeBytes != rawDeviceBytes || dev.Queues < 1 || dev.Queues > queues {
		t.Errorf("device: %+v", dev)
	}
	return dev
}

// TestRawFio runs fio's verified mixes on an image without a file system, for each block size and number of queues, then
// makes the device again and has fio verify once more.
func TestRawFio(t *testing.T) {
	startDaemon(t)
	root, leaf := rawRoot(t, rawRootBytes), disk(t, "leaf")
	for _, g := range geometries {
		t.Run(fmt.Sprintf("%d-%d", g.block, g.queues), func(t *testing.T) {
			format(t, leaf)
			dev := rawDevice(t, root, leaf, g.block, g.queues)
			mixes(t, dev.Path, g.block)
			coppice(t, "delete", "raw")
			checkStore(t, leaf)
			dev = rawDevice(t, root, leaf, g.block, g.queues)
			fio(t, dev.Path, "kept", append(keptJob(g.block), "--verify_only")...)
			coppice(t, "delete", "raw")
		})
	}
}

// keptJob is the job whose data must outlive the device.
func keptJob(block int) []string {
	return []string{"--rw=randwrite", "--offset=128M", fioSize(12 << 20), "--bs=" + strconv.Itoa(max(block, 4096)), "--do_verify=1"}
}

func fioSize(bytes int) string { return "--size=" + strconv.Itoa(bytes/fioShare) }

func mixes(t *testing.T, dev string, block int) {
	t.Helper()
	bs := strconv.Itoa(block)
	fio(t, dev, "mixed", "--rw=randrw", "--offset=0", fioSize(max(block<<11, 4<<20)), "--bs="+bs, "--verify_backlog=256")
	fio(t, dev, "ranges", "--rw=randrw", "--offset=32M", fioSize(12<<20), "--bsrange="+bs+"-64k")
	fio(t, dev, "trim", "--rw=randtrimwrite", "--offset=64M", fioSize(10<<20), "--bsrange=4k-32k")
	// The end of the root and what is beyond it; the root's last block is not a whole one.
	fio(t, dev, "edge", "--rw=randrw", fmt.Sprint("--offset=", edgeMiB[0], "M"), fmt.Sprint("--size=", edgeMiB[1], "M"), "--bs=4k")
	fio(t, dev, "kept", append(keptJob(block), "--end_fsync=1")...)
}
