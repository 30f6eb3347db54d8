//go:build vm

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Two processes in two cgroups read known amounts: what is counted of each is what fio says that it read, and the misses are what the cache fetched.
func TestReadersByProcessAndCgroup(t *testing.T) {
	r := newVMRig(t)
	dev, _ := r.measuredDevice()
	r.refused("no eBPF programs that count who reads", "readers", "web1")
	r.ok("ebpf", "load", "--readers")
	r.sh("mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	read := func(cgroup string, args ...string) (pid int, bytes int64) {
		t.Helper()
		dir := filepath.Join(cgroupMount, cgroup)
		r.sh("mkdir -p " + dir)
		out := filepath.Join(r.dir, cgroup)
		fio := fmt.Sprintf("echo $$ > %s/cgroup.procs && exec fio --output=%s --output-format=json --filename=%s --direct=1 --rw=read --ioengine=psync --thread --name=%s %s",
			dir, out, dev.Path, cgroup, strings.Join(args, " "))
		cmd := exec.Command("sh", "-ec", fio)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", fio, err, text)
		}
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		said, ok := fioSaid(t, text)[cgroup]
		if !ok {
			t.Fatalf("nothing of the job %s:\n%s", cgroup, text)
		}
		return cmd.Process.Pid, said.Read.Bytes
	}
	origin := func() uint64 { return r.inspect("web1").Cache.Origin.Chunks }
	before := origin()
	cold, coldBytes := read("cold", "--offset=2M", "--size=2M", "--bs=64k")
	fetched := origin() - before
	warm, warmBytes := read("warm", "--offset=0", "--size=4M", "--bs=32k") // the leaf, and what has just been fetched
	if again := origin() - before; again != fetched || fetched == 0 {
		t.Fatalf("fetched %d, then %d", fetched, again)
	}
	var rep readersReport
	if err := json.Unmarshal([]byte(r.ok("readers", "web1", "-o", "json")), &rep); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		pid    int
		cgroup string
		bytes  int64
		misses uint64
	}{{cold, "/cold", coldBytes, fetched}, {warm, "/warm", warmBytes, 0}} {
		found := 0
		for _, p := range rep.Processes {
			if int(p.PID) == want.pid {
				found++
				if p.Name != "fio" || int64(p.ReadBytes) != want.bytes || p.Misses["root"] != want.misses || p.Writes != 0 || p.FilledBytes != 0 {
					t.Errorf("%+v, want %+v", p, want)
				}
			}
		}
		for _, g := range rep.Cgroups {
			if g.Path == want.cgroup {
				found++
				if int64(g.ReadBytes) != want.bytes || g.Misses["root"] != want.misses {
					t.Errorf("%+v, want %+v", g, want)
				}
			}
		}
		if found != 2 {
			t.Errorf("%+v: %+v", want, rep)
		}
	}
	if n := rep.ForgottenProcesses.Reads + rep.ForgottenCgroups.Reads; n != 0 {
		t.Errorf("%d forgotten", n)
	}

	// Through the page cache, the second time is for nothing, as long as somebody has the device open.
	again := "dd if=" + dev.Path + " of=/dev/null bs=64k count=32 status=none; "
	r.sh("exec 3<" + dev.Path + "; " + again + again)
	had := *rep.Cached
	filled := rep.Total.FilledBytes
	if err := json.Unmarshal([]byte(r.ok("readers", "web1", "-o", "json")), &rep); err != nil {
		t.Fatal(err)
	}
	const both = 2 * 32 * 64 << 10
	if got := rep.Cached.ReadBytes - had.ReadBytes; got != both {
		t.Errorf("programs read %d through the page cache, want %d", got, both)
	}
	if got := rep.Total.FilledBytes - filled; got < both/2 || got >= both*3/4 { // with what was read ahead
		t.Errorf("the device gave %d to it", got)
	}
	t.Logf("\n%s", r.ok("readers", "web1"))
	r.ok("delete", "web1")
}
