package indextest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Described is what debugfs tells of an inode.
type Described struct {
	Type                        string // regular, directory, symlink, …
	Mode                        uint32 // permissions
	Flags                       uint64
	Generation, UID, GID        uint32
	Size                        int64 // bytes
	Links                       uint32
	Blocks                      int64   // 512-byte units
	Ctime, Atime, Mtime, Crtime string  // as Moment writes it; "": the inode has no room for it
	Xattr                       int64   // block of extended attributes; 0: none
	Data                        []Run   // content, in order of Logical, what adjoins put together
	Map                         []int64 // blocks that say where others are, in their order
}

// Run is some blocks of a file.
type Run struct {
	Logical, Physical, Length int64
	Unwritten                 bool
}

// Moment writes seconds since 1970 and nanoseconds.
func Moment(sec int64, nsec uint32) string { return fmt.Sprintf("%d.%09d", sec, nsec) }

// Join puts runs together that adjoin, as debugfs prints them.
func Join(runs []Run) []Run {
	var joined []Run
	for _, r := range runs {
		if n := len(joined) - 1; n >= 0 && joined[n].Unwritten == r.Unwritten && joined[n].Logical+joined[n].Length == r.Logical && joined[n].Physical+joined[n].Length == r.Physical {
			joined[n].Length += r.Length
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

// debugfs runs commands on an image that is only read, and returns what each of them prints.
func debugfs(image string, commands []string) ([]string, error) {
	dir, err := os.MkdirTemp("", "debugfs-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	script := filepath.Join(dir, "commands")
	if err := os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("/usr/sbin/debugfs", "-f", script, image)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC", "DEBUGFS_PAGER=cat")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("debugfs %s: %w: %s", image, err, stderr.Bytes())
	}
	var answers []string
	rest := stdout.String()
	for n, c := range commands {
		_, text, found := strings.Cut(rest, "debugfs: "+c+"\n")
		if !found {
			return nil, fmt.Errorf("debugfs %s: no answer to %q: %s", image, c, stderr.Bytes())
		}
		rest = text
		if n+1 < len(commands) {
			if end := strings.Index(text, "debugfs: "+commands[n+1]+"\n"); end >= 0 {
				text = text[:end]
			}
		}
		answers = append(answers, text)
	}
	return answers, nil
}

// Describe has debugfs describe inodes.
func Describe(image string, inodes []uint32) ([]Described, error) {
	commands := make([]string, len(inodes))
	for n, i := range inodes {
		commands[n] = fmt.Sprintf("stat <%d>", i)
	}
	answers, err := debugfs(image, commands)
	if err != nil {
		return nil, err
	}
	all := make([]Described, len(inodes))
	for n, text := range answers {
		if all[n], err = parseDescribed(text); err != nil {
			return nil, fmt.Errorf("inode %d: %w", inodes[n], err)
		}
	}
	return all, nil
}

var (
	statHead  = regexp.MustCompile(`(?s)^Inode: \d+ +Type: (.*?) +Mode: +(\d+) +Flags: (0x[0-9a-f]+)\nGeneration: (\d+).*?\nUser: +(-?\d+) +Group: +(-?\d+).*?Size: (\d+)\nFile ACL: (\d+).*?\nLinks: (\d+) +Blockcount: (\d+)\n`)
	statTime  = regexp.MustCompile(`(?m)^ ?(ctime|atime|mtime|crtime): 0x([0-9a-f]+)(?::([0-9a-f]+))? --`)
	statRange = regexp.MustCompile(`\((?:(ETB\d+|D?IND|TIND)|(\d+)(\[u\])?(?:-(\d+)(\[u\])?)?)\):(\d+)`)
	listed    = regexp.MustCompile(`(?s)/(\d+)/(\d{6})/(\d+)/(\d+)/(.*?)/(\d*)/\n`)
)

// numbers reads text that a regular expression let through.
type numbers struct{ err error }

func (n *numbers) of(text string, base, bits int) int64 {
	v, err := strconv.ParseInt(text, base, bits)
	if err != nil && n.err == nil {
		n.err = err
	}
	return v
}

func parseDescribed(text string) (d Described, err error) {
	head := statHead.FindStringSubmatch(text)
	if head == nil {
		return d, fmt.Errorf("debugfs says %q", text)
	}
	var n numbers
	d = Described{
		Type: head[1], Mode: uint32(n.of(head[2], 8, 32)), Flags: uint64(n.of(head[3], 0, 64)), Generation: uint32(n.of(head[4], 10, 64)), UID: uint32(n.of(head[5], 10, 64)), GID: uint32(n.of(head[6], 10, 64)),
		Size: n.of(head[7], 10, 64), Xattr: n.of(head[8], 10, 64), Links: uint32(n.of(head[9], 10, 64)), Blocks: n.of(head[10], 10, 64),
	}
	for _, m := range statTime.FindAllStringSubmatch(text, -1) {
		at := time.Unix(int64(int32(uint32(n.of(m[2], 16, 64)))), 0)
		if m[3] != "" {
			extra := n.of(m[3], 16, 64)
			at = time.Unix(at.Unix()+(extra&3)<<32, extra>>2)
		}
		*map[string]*string{"ctime": &d.Ctime, "atime": &d.Atime, "mtime": &d.Mtime, "crtime": &d.Crtime}[m[1]] = Moment(at.Unix(), uint32(at.Nanosecond()))
	}
	_, blocks, found := strings.Cut(text, "\nEXTENTS:\n")
	if !found {
		_, blocks, _ = strings.Cut(text, "\nBLOCKS:\n")
	}
	for _, m := range statRange.FindAllStringSubmatch(blocks, -1) {
		if m[1] != "" {
			d.Map = append(d.Map, n.of(m[6], 10, 64))
			continue
		}
		r := Run{Logical: n.of(m[2], 10, 64), Physical: n.of(m[6], 10, 64), Length: 1, Unwritten: m[3] != "" || m[5] != ""}
		if m[4] != "" {
			r.Length = n.of(m[4], 10, 64) - r.Logical + 1
		}
		d.Data = append(d.Data, r)
	}
	d.Data = Join(d.Data)
	slices.Sort(d.Map)
	return d, n.err
}

// Entry is a name in a directory.
type Entry struct {
	Name  string
	Inode uint32
	Mode  uint32 // with the type
}

// List has debugfs list directories, "." and ".." left out, each in order of names.
func List(image string, directories []uint32) ([][]Entry, error) {
	commands := make([]string, len(directories))
	for n, i := range directories {
		commands[n] = fmt.Sprintf("ls -p <%d>", i)
	}
	answers, err := debugfs(image, commands)
	if err != nil {
		return nil, err
	}
	all := make([][]Entry, len(directories))
	for k, text := range answers {
		var n numbers
		for _, m := range listed.FindAllStringSubmatch(text, -1) {
			e := Entry{Name: m[5], Inode: uint32(n.of(m[1], 10, 64)), Mode: uint32(n.of(m[2], 8, 32))}
			if e.Inode != 0 && e.Name != "." && e.Name != ".." {
				all[k] = append(all[k], e)
			}
		}
		if n.err != nil {
			return nil, n.err
		}
		slices.SortFunc(all[k], func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	}
	return all, nil
}
