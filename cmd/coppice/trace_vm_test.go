//go:build vm

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coppice/ebpf/boottrace"
	"coppice/node"
	"coppice/union"
)

// reader is a copy of dd under a name of its own, in a cgroup of its own.
type reader struct {
	r            *vmRig
	path, cgroup string
}

func (r *vmRig) reader(name string) reader {
	r.t.Helper()
	r.sh("mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	v := reader{r, filepath.Join(r.dir, name), "/sys/fs/cgroup/" + name}
	r.sh(fmt.Sprintf("cp $(command -v dd) %s && mkdir -p %s", v.path, v.cgroup))
	r.t.Cleanup(func() { _ = os.Remove(v.cgroup) })
	return v
}

// read reads 4 KiB at each of some places of a device, in KiB, past the page cache.
func (v reader) read(device string, places ...int64) {
	v.r.t.Helper()
	script := "echo $$ > " + v.cgroup + "/cgroup.procs\n"
	for _, at := range places {
		script += fmt.Sprintf("%s if=%s of=/dev/null bs=4k count=1 skip=%d iflag=direct 2>/dev/null\n", v.path, device, at/4)
	}
	v.r.sh(script)
}

// record ends a recording, and returns what the file has.
func (r *vmRig) record(name string) (*boottrace.Trace, traceRecordReport) {
	r.t.Helper()
	file := filepath.Join(r.dir, name+".events")
	var rep traceRecordReport
	if err := json.Unmarshal([]byte(r.ok("trace", "record", name, file, "-o", "json")), &rep); err != nil {
		r.t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		r.t.Fatal(err)
	}
	t, err := boottrace.Decode(data)
	if err != nil {
		r.t.Fatal(err)
	}
	if len(t.Events) != rep.Events || t.Lost != rep.Lost || len(data) != rep.Bytes {
		r.t.Errorf("%+v of a file with %d events, %d lost, %d bytes", rep, len(t.Events), t.Lost, len(data))
	}
	return t, rep
}

// The kernel records a device from the first request on that there is: what two processes read, in order, with their names, their cgroups and where the data came from; and nothing of another device.
// The ring is too small: what comes last is lost, and it is said how much that is.
func TestTrace(t *testing.T) {
	r := newVMRig(t)
	other, _ := r.measuredDevice() // its root is data up to latencyZeros
	one, two := r.reader("reader-one"), r.reader("reader-two")
	if out := r.ok("trace", "start", "--ring", "8K"); !strings.Contains(out, "with where their data comes from") {
		t.Errorf("started: %s", out)
	}
	dev := r.create("web2")
	r.sh("dd if=/dev/zero of=" + dev.Path + " bs=4k count=4 oflag=direct")

	type row struct {
		process, cgroup string
		kib             int64
		from            union.Origins
	}
	var want []row
	read := func(v reader, from union.Origins, places ...int64) {
		v.read(dev.Path, places...)
		for _, at := range places {
			want = append(want, row{v.name(), "/" + v.name(), at, from})
		}
	}
	read(one, union.FromRoot, 5*1024, 3*1024)
	read(two, union.FromLeaf, 8, 4)
	two.read(other.Path, 0, 12)
	read(two, union.FromZeros, 7*1024)
	read(one, union.FromMemory, 3*1024+8, 5*1024)
	r.sh("dd if=" + dev.Path + " of=/dev/null bs=4k count=200 iflag=direct")
	trace, rep := r.record("web2")

	var got []row
	writes := 0
	for _, e := range trace.Events {
		if e.Op == boottrace.Write {
			writes++
			continue
		}
		if name := trace.Processes[e.Process]; strings.HasPrefix(name, "reader-") { // others look at what is in a device, too
			got = append(got, row{name, trace.Cgroups[e.Cgroup], e.Off >> 10, e.From})
			if e.Len != 4096 || e.PID == 0 || e.Took <= 0 {
				t.Errorf("%+v", e)
			}
		}
	}
	if !slices.Equal(got, want) || writes != 4 {
		t.Errorf("recorded %d writes, and\n%+v, want\n%+v", writes, got, want)
	}
	if first := trace.Events[0]; first.Op != boottrace.Read || first.Off != 0 || trace.Processes[first.Process] == one.name() {
		t.Errorf("the first request is %+v, of %q", first, trace.Processes[first.Process])
	}
	list := trace.Prefetch().Chunks
	if i, k := slices.Index(list, 5*1024/64), slices.Index(list, 3*1024/64); i < 0 || k < i || slices.Contains(list, 7*1024/64) {
		t.Errorf("to read ahead: %v", list)
	}
	if made := r.requests(dev); rep.Lost == 0 || int64(len(trace.Events))+int64(rep.Lost) != made {
		t.Errorf("%d recorded, %d lost, of %d", len(trace.Events), rep.Lost, made)
	}
	var out bytes.Buffer
	if writeTrace(&out, trace.Summary()); !strings.Contains(out.String(), fmt.Sprintf("%d of any device", rep.Lost)) {
		t.Errorf("nothing is said of what was lost:\n%s", &out)
	}
	r.ok("delete", "web1")
	r.ok("delete", "web2")
}

func (v reader) name() string { return filepath.Base(v.path) }

// requests is how many reads, writes and discards of a device have ended.
func (r *vmRig) requests(dev node.Device) int64 {
	r.t.Helper()
	text, err := os.ReadFile("/sys/block/" + filepath.Base(dev.Path) + "/stat")
	if err != nil {
		r.t.Fatal(err)
	}
	var reads, x, writes, discards int64
	if _, err := fmt.Sscan(string(text), &reads, &x, &x, &x, &writes, &x, &x, &x, &x, &x, &x, &discards); err != nil {
		r.t.Fatal(err)
	}
	return reads + writes + discards
}
