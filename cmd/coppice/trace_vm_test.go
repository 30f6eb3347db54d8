//go:build vm

package main

import (
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

// The kernel records what two processes read, in order, with their names, their cgroups and where the data came from, of the device that is asked for; then what a
// device that is made later is asked for first. A ring that is too small loses what comes last, and says how much.
func TestTrace(t *testing.T) {
	r := newVMRig(t)
	dev, _ := r.measuredDevice() // its first 4 MiB are the leaf's, 4 to 12 MiB the root's, and then there are zeros
	r.refused("no such device", "trace", "record", "none", filepath.Join(r.dir, "x"))
	r.refused("no such file", "trace", "record", "web1", filepath.Join(r.dir, "none", "x"))
	other := r.create("other")
	one, two := r.reader("reader-one"), r.reader("reader-two")
	if out := r.ok("trace", "start", "--ring", "1M"); !strings.Contains(out, "with where their data comes from") {
		t.Errorf("started: %s", out)
	}
	r.ok("trace", "start", "--ring", "4K") // changes nothing

	type row struct {
		process, cgroup string
		kib             int64
		from            union.Origins
	}
	var want []row
	read := func(v reader, from union.Origins, places ...int64) {
		v.read(dev.Path, places...)
		v.read(other.Path, places...)
		for _, at := range places {
			want = append(want, row{filepath.Base(v.path), "/" + filepath.Base(v.path), at, from})
		}
	}
	read(one, union.FromRoot, 9*1024, 5*1024)
	read(two, union.FromLeaf, 8, 4, 3*1024)
	read(two, union.FromZeros, 13*1024)
	read(one, union.FromMemory, 5*1024+8, 9*1024)
	r.fio(dev.Path, "--name=write", "--rw=write", "--bs=4k", "--size=4k", "--offset=10m", "--ioengine=psync")
	trace, _ := r.record("web1")
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
	if !slices.Equal(got, want) || writes != 1 || trace.Lost != 0 {
		t.Errorf("recorded %d writes, %d lost, and\n%+v, want\n%+v", writes, trace.Lost, got, want)
	}
	if list := trace.Prefetch(); len(list.Chunks) < 2 || !slices.Contains(list.Chunks, 9*1024/64) || slices.Contains(list.Chunks, 0) || slices.Contains(list.Chunks, 13*1024/64) {
		t.Errorf("to read ahead: %v", list.Chunks)
	}
	t.Logf("\n%s", r.ok("trace", "show", filepath.Join(r.dir, "web1.events")))
	r.ok("trace", "attach", r.root, filepath.Join(r.dir, "web1.events"))
	if a, b := r.ok("trace", "show", "web1"), r.ok("trace", "show", r.root); a != b {
		t.Errorf("of the device:\n%s\nof its image:\n%s", a, b)
	}

	// A device that is not there yet, and a ring that is too small.
	r.ok("trace", "start", "--ring", "4K")
	late := r.create("late")
	const reads = 300
	r.fio(late.Path, "--name=read", "--rw=read", "--bs=4k", fmt.Sprintf("--size=%dk", reads*4), "--ioengine=psync")
	trace, rep := r.record("late")
	first := int64(-1)
	if len(trace.Events) > 0 {
		first = trace.Events[0].Off
	}
	if made := r.requests(late); first != 0 || rep.Lost == 0 || int64(len(trace.Events))+int64(rep.Lost) != made || made < reads {
		t.Errorf("%d recorded, %d lost, of %d; the first at %d", len(trace.Events), rep.Lost, made, first)
	}
	if out := r.ok("trace", "show", filepath.Join(r.dir, "late.events")); !strings.Contains(out, fmt.Sprintf("%d of any device", rep.Lost)) {
		t.Errorf("nothing is said of what was lost:\n%s", out)
	}
	if out := r.ok("trace", "stop"); !strings.Contains(out, "nothing was being recorded") {
		t.Errorf("recorded, and still there: %s", out)
	}
	for _, name := range []string{"web1", "other", "late"} {
		r.ok("delete", name)
	}
}

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
