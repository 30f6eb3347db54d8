//go:build vm

package vmtests

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"coppice/internal/resident"
	"coppice/union"
	"coppice/vmtests/powercut"
)

// lookAtRoot prints what the processes of the root's own instance are and have. A line is a word for its kind, a process, and what is to be known: "process" and
// its arguments; "uses" and a file of its that lies on the root file system; "sees" and a mount of that in its namespace; "memory" and what is resident and locked of it, in KiB;
// "thread", the thread's id, and its flags.
const lookAtRoot = `
root=$(stat -c %d /); dev=$(mountpoint -d /); hex=$(printf '%02x:%02x' ${dev%:*} ${dev#*:})
for dir in /proc/[0-9]*; do
 pid=${dir#/proc/}
 case "$(tr '\0' ' ' <$dir/cmdline 2>/dev/null)" in @*) ;; *) continue ;; esac
 echo "process $pid $(tr '\0' ' ' <$dir/cmdline)"
 for file in $dir/fd/* $dir/root $dir/cwd $dir/exe; do
  [ "$(stat -L -c %d $file 2>/dev/null)" != "$root" ] || echo "uses $pid ${file#$dir/} $(readlink $file)"
 done
 awk -v dev=$hex -v pid=$pid '$4 == dev { print "uses", pid, "maps", $6 }' $dir/maps
 awk -v dev=$dev -v pid=$pid '$3 == dev { print "sees", pid, $5 }' $dir/mountinfo
 [ "$(readlink $dir/ns/mnt)" != "$(readlink /proc/1/ns/mnt)" ] || echo "sees $pid all that PID 1 sees"
 echo "memory $pid" $(awk '/^VmRSS|^VmLck/ { print $2 }' $dir/status)
 for stat in $dir/task/*/stat; do
  echo "thread $pid $(sed 's/ .*) / /' $stat | awk '{ print $1, $8 }')"
 done
done`

// rootInstance is what is known of the processes that serve the root.
type rootInstance struct {
	daemon    int // process id
	processes int
	threads   int
	wrong     []string
}

// parseRootInstance reads what lookAtRoot printed.
func parseRootInstance(text string) (r rootInstance, err error) {
	for line := range strings.Lines(text) {
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		pid, rest, _ := strings.Cut(rest, " ")
		switch kind {
		case "process":
			r.processes++
			if strings.Contains(rest, " daemon") {
				r.daemon, err = strconv.Atoi(pid)
			}
		case "uses", "sees":
			r.wrong = append(r.wrong, strings.TrimSpace(line))
		case "memory":
			var locked, resident int
			if _, err = fmt.Sscan(rest, &locked, &resident); err == nil && locked < resident {
				r.wrong = append(r.wrong, fmt.Sprintf("process %s has %d KiB of %d locked", pid, locked, resident))
			}
		case "thread":
			var tid, flags int
			r.threads++
			if _, err = fmt.Sscan(rest, &tid, &flags); err == nil && flags&resident.FlusherFlags != resident.FlusherFlags {
				r.wrong = append(r.wrong, fmt.Sprintf("thread %d of process %s has flags %#x: no IO_FLUSHER", tid, pid, flags))
			}
		}
		if err != nil {
			return r, fmt.Errorf("line %q: %w", line, err)
		}
	}
	return r, nil
}

// examineRoot wants a running system to have its root on a device of ours, which an instance serves that does not depend on it.
func examineRoot(t *testing.T, vm *VM) rootInstance {
	t.Helper()
	source, err := vm.Output(t.Context(), "findmnt", "-no", "SOURCE", "/")
	if err != nil || strings.TrimSpace(source) != "/dev/ublkb0" {
		t.Fatalf("the root is on %q, want /dev/ublkb0 (%v)", source, err)
	}
	text, err := vm.Output(t.Context(), "sh", "-c", lookAtRoot)
	if err != nil {
		t.Fatal(err)
	}
	r, err := parseRootInstance(text)
	if err != nil || r.daemon == 0 || r.threads < 2 {
		t.Fatalf("no instance serves the root (%v):\n%s", err, text)
	}
	for _, wrong := range r.wrong {
		t.Error(wrong)
	}
	t.Logf("the root is served by process %d, of %d with %d threads", r.daemon, r.processes, r.threads)
	return r
}

// ioError is how the kernel says that a device or a file system failed.
var ioError = regexp.MustCompile(`(?i)I/O error|EXT4-fs error|EXT4-fs \([^)]*\): (error|warning)|XFS.*(corrupt|error)|hung_task|blocked for more than|Remounting filesystem read-only`)

// wantNoIOErrors looks for them in the kernel's log or on the console.
func wantNoIOErrors(t *testing.T, where, text string) {
	t.Helper()
	if found := ioError.FindAllString(text, 5); found != nil {
		t.Errorf("%s has errors: %q\n%s", where, found, lastLines(text, 60))
	}
}

func kernelLogOf(t *testing.T, vm *VM) string {
	t.Helper()
	text, err := vm.Output(t.Context(), "dmesg")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// imageRoot is the content of an image in a file.
type imageRoot struct {
	*union.Raw
	pin union.Pin
}

// Pin identifies the image.
func (r imageRoot) Pin() union.Pin { return r.pin }

// rootLayer is the layer that machines are told to boot from.
const rootLayer = "root"

// offline looks at the leaf of a machine that is off, whose root was made of a disk: it takes a copy as a daemon would after a power cut, wants the store sound, and
// returns the file system that the machine had, as a file that is gone with the test. Where the power was cut, its journal is still to be replayed.
func offline(t *testing.T, leaf, disk string) (path string) {
	t.Helper()
	path, err := mergeOffline(t.Context(), leaf, disk, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func mergeOffline(ctx context.Context, leaf, disk, dir string) (path string, err error) {
	store := filepath.Join(dir, "leaf")
	if _, err := command(ctx, "", "cp", "--sparse=always", leaf, store); err != nil {
		return "", err
	}
	s, err := union.OpenStore(store, union.StoreOptions{ReadOnly: true})
	if err != nil {
		return "", err
	}
	info := s.Info()
	if err := s.Close(); err != nil {
		return "", err
	}
	raw, err := union.OpenRaw(disk)
	if err != nil {
		return "", err
	}
	defer raw.Close()
	layers := make(map[string]union.Base)
	for _, l := range info.Layers {
		if !l.Sealed {
			layers[l.Name] = imageRoot{raw, l.Pin}
		}
	}
	if layers[rootLayer] == nil {
		text, _ := json.Marshal(info.Layers)
		return "", fmt.Errorf("the store has no layer %q that can be written: %s", rootLayer, text)
	}
	how, problems, err := powercut.Recover(ctx, store, layers, dir)
	if err != nil || len(problems) > 0 {
		return "", fmt.Errorf("store after %+v: %d problems %v: %w", how, len(problems), problems, err)
	}
	return filepath.Join(dir, rootLayer), os.Remove(store)
}

// wantClean wants a file system without any error. replay does first what a boot does after a power cut: the journal is replayed, and files that were deleted while
// they were open are freed.
func wantClean(t *testing.T, path string, replay bool) {
	t.Helper()
	if replay {
		const freed = "1" // exit status
		if out, err := command(t.Context(), "", "sh", "-c", "e2fsck -p "+path+" || [ $? = "+freed+" ]"); err != nil {
			t.Errorf("replay the journal of %s: %v\n%s", path, err, out)
		}
	}
	if out, err := command(t.Context(), "", "e2fsck", "-fn", path); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// readRequest is a line of the kernel's trace about a request that goes to a device (block_rq_issue in include/trace/events/block.h): device, kind, first sector, sectors.
var readRequest = regexp.MustCompile(`: block_rq_issue: (\d+,\d+) ([A-Z]+) \d+ \([^)]*\) (\d+) \+ (\d+) `)

// traceArgs have the kernel record every request of block devices from its start on.
const traceArgs = "trace_event=block:block_rq_issue trace_buf_size=8M"

// distinctRead returns how many bytes, in whole blocks of 4 KiB, were read of a device, without those that had been written before: what a root must give.
func distinctRead(trace, device string) (bytes int64) {
	const blockSectors, blockBytes = 8, 4096
	seen := make(map[int64]bool)
	lines := bufio.NewScanner(strings.NewReader(trace))
	for lines.Scan() {
		m := readRequest.FindStringSubmatch(lines.Text())
		if m == nil || m[1] != device {
			continue
		}
		first, _ := strconv.ParseInt(m[3], 10, 64)
		count, _ := strconv.ParseInt(m[4], 10, 64)
		for block := first / blockSectors; block*blockSectors < first+count; block++ {
			if !seen[block] && strings.HasPrefix(m[2], "R") {
				bytes += blockBytes
			}
			seen[block] = true
		}
	}
	return bytes
}

func TestDistinctRead(t *testing.T) {
	const trace = `# tracer: nop
  kworker/0:1-23 [000] .....  3.1: block_rq_issue: 259,0 RA 8192 () 0 + 16 none,0,0 [init]
  init-1 [001] .....  3.2: block_rq_issue: 259,0 R 4096 () 8 + 8 none,0,0 [init]
  init-1 [001] .....  3.3: block_rq_issue: 259,0 WS 4096 () 800 + 8 none,0,0 [init]
  init-1 [001] .....  3.4: block_rq_issue: 259,0 R 8192 () 800 + 16 none,0,0 [init]
  init-1 [001] .....  3.5: block_rq_issue: 254,0 R 4096 () 80 + 8 none,0,0 [init]
  init-1 [001] .....  3.6: block_rq_issue: 259,0 FF 0 () 0 + 0 none,0,0 [init]
`
	if got, want := distinctRead(trace, "259,0"), int64(3*4096); got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
}

func TestParseRootInstance(t *testing.T) {
	const text = `process 7 @coppice supervise
memory 7 300 200
thread 7 7 1572864
process 9 @coppice daemon --run-dir /run/coppice-root
uses 9 fd/3 /var/log/x
sees 9 /
memory 9 100 200
thread 9 9 1572928
thread 9 10 64
`
	r, err := parseRootInstance(text)
	if err != nil || r.daemon != 9 || r.processes != 2 || r.threads != 3 || len(r.wrong) != 4 {
		t.Errorf("%+v, %v, want four faults of process 9", r, err)
	}
	if _, err := parseRootInstance("memory 9 much more\n"); err == nil {
		t.Error("what makes no sense is taken for an answer")
	}
}
