package ext4

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The tools of e2fsprogs make the images of these tests, and debugfs and e2fsck are what the reader is held against.

func tool(t testing.TB, stdin io.Reader, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = filepath.Join("/usr/sbin", name)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdin = stdin
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC", "DEBUGFS_PAGER=cat", "E2FSPROGS_FAKE_TIME=")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// debugfs runs commands on an image, for writing if write, and returns what they print.
func debugfs(t testing.TB, image string, write bool, commands string) string {
	t.Helper()
	script := filepath.Join(t.TempDir(), "commands")
	if err := os.WriteFile(script, []byte(commands), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-f", script, image}
	if write {
		args = append([]string{"-w"}, args...)
	}
	return tool(t, nil, "debugfs", args...)
}

// hostileNames are names that readers get wrong.
func hostileNames() []string {
	names := []string{
		"plain", " leading and trailing ", "new\nline", "\n", "tab\tcarriage\rreturn", "back\\slash", "quote\"'", "\xff\xfe not UTF-8 \x80", "\x01\x1b[31m", "-rf", "...", "..x",
		"ünïcödé", "日本語", "%s%n", "*?[a]", "$(true)", strings.Repeat("l", 254), strings.Repeat("m", 255), strings.Repeat("\xfe", 255),
	}
	return names
}

// makeTree fills a directory with what the images of all tests hold.
func makeTree(t testing.TB, root string, names int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, content []byte) {
		t.Helper()
		must(os.WriteFile(filepath.Join(root, name), content, 0o640))
	}
	for _, dir := range []string{"hostile", "many", "links", "sizes", "small", "empty", "deep/er/and/deep/er"} {
		must(os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for n, name := range hostileNames() {
		write("hostile/"+name, []byte(fmt.Sprint(n)))
	}
	for n := range names {
		write(fmt.Sprintf("many/a name that is long enough to fill a block soon %06d", n), nil)
	}
	for n := range 3 {
		write(fmt.Sprintf("small/%d", n), nil)
	}
	for _, size := range []int{1, 59, 60, 61, 100, 150, 160, 1023, 1024, 1025, 4096, 70_000, 400_000} {
		content := make([]byte, size)
		for n := range content {
			content[n] = byte(n*7 + n>>8)
		}
		write(fmt.Sprintf("sizes/%d", size), content)
	}
	for _, size := range []int{1, 58, 59, 60, 61, 100, 156, 200, 1000} {
		must(os.Symlink(strings.Repeat("t", size), filepath.Join(root, "links", fmt.Sprint(size))))
	}
	must(os.Link(filepath.Join(root, "sizes/100"), filepath.Join(root, "links/hard")))
	must(os.Link(filepath.Join(root, "sizes/100"), filepath.Join(root, "hostile/hard too")))
	must(unix.Mkfifo(filepath.Join(root, "links/fifo"), 0o600))
	must(os.Chmod(filepath.Join(root, "sizes/1"), 0o755|os.ModeSetuid))

	// Data in every second block of 4 KiB, and a hole of a gigabyte: a tree of extents with depth.
	sparse, err := os.Create(filepath.Join(root, "sizes/sparse"))
	must(err)
	defer sparse.Close()
	for n := range 500 {
		_, err := sparse.WriteAt(bytes.Repeat([]byte{byte(n), 1}, 2048), int64(n)*8192)
		must(err)
	}
	_, err = sparse.WriteAt([]byte("the end"), 1<<30)
	must(err)
}

// kind is one way to make a file system.
type kind struct {
	name   string
	mke2fs []string
	size   string
	after  string // commands of debugfs afterwards
	long   bool   // left out of short runs: what it adds to the others is little
}

// afterAll is what mke2fs does not take from a tree: attributes, devices, blocks that were allocated and not written, times behind 2038.
const afterAll = `
cd links
mknod char c 5 260
mknod block b 8 1
mknod oldchar c 1 3
cd /
set_inode_field sizes/60 crtime 20900101000000
set_inode_field sizes/60 mtime 19100101000000
set_inode_field sizes/61 uid 70000
set_inode_field sizes/61 gid 4000000000
ea_set sizes/100 user.short value
ea_set sizes/100 security.selinux system_u:object_r:bin_t:s0
ea_set sizes/1025 trusted.long vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv
ea_set empty user.of.directory x
`

const unwritten = "fallocate sizes/4096 10 29\n"

var kinds = []kind{
	{name: "default", mke2fs: []string{"-t", "ext4"}, after: afterAll + unwritten},
	{name: "default-1k", mke2fs: []string{"-t", "ext4", "-b", "1024"}, after: afterAll + unwritten, long: true},
	{name: "2k", mke2fs: []string{"-t", "ext4", "-b", "2048", "-I", "1024"}, after: afterAll, long: true},
	{name: "64k", mke2fs: []string{"-t", "ext4", "-F", "-b", "65536"}, size: "256M", after: afterAll},
	{name: "inline", mke2fs: []string{"-t", "ext4", "-b", "1024", "-O", "inline_data"}, after: afterAll + unwritten},
	{name: "inline-4k-512", mke2fs: []string{"-t", "ext4", "-b", "4096", "-I", "512", "-O", "inline_data,^metadata_csum"}, after: afterAll, long: true},
	{name: "everything", mke2fs: []string{"-t", "ext4", "-b", "1024", "-O",
		"inline_data,metadata_csum_seed,orphan_file,quota,project,large_dir,ea_inode,encrypt,verity,casefold,fast_commit,stable_inodes", "-E", "encoding=utf8"}, after: afterAll + unwritten},
	{name: "ext4-of-2008", mke2fs: []string{"-t", "ext4", "-O", "^64bit,^metadata_csum,uninit_bg", "-I", "128"}, after: afterAll},
	{name: "uninit-64bit", mke2fs: []string{"-t", "ext4", "-O", "^metadata_csum,uninit_bg,64bit"}, after: afterAll, long: true},
	{name: "no-64bit-csum", mke2fs: []string{"-t", "ext4", "-O", "^64bit"}, after: afterAll, long: true},
	{name: "bigalloc", mke2fs: []string{"-t", "ext4", "-O", "bigalloc", "-C", "65536"}, size: "512M", after: afterAll},
	{name: "bigalloc-1k", mke2fs: []string{"-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "16384"}, size: "512M", after: afterAll, long: true},
	{name: "meta-bg", mke2fs: []string{"-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode", "-g", "1024"}, after: afterAll},
	{name: "meta-bg-no-flex", mke2fs: []string{"-t", "ext4", "-O", "meta_bg,^resize_inode,^flex_bg,^sparse_super"}, after: afterAll, long: true},
	{name: "sparse-super2", mke2fs: []string{"-t", "ext4", "-b", "1024", "-O", "sparse_super2,^resize_inode", "-E", "num_backup_sb=2"}, after: afterAll, long: true},
	{name: "no-journal", mke2fs: []string{"-t", "ext4", "-O", "^has_journal,^huge_file,^dir_index"}, after: afterAll, long: true},
	{name: "ext3", mke2fs: []string{"-t", "ext3", "-b", "1024"}, after: afterAll},
	{name: "ext2", mke2fs: []string{"-t", "ext2", "-b", "1024", "-I", "128"}, after: afterAll},
	{name: "ext2-4k-no-filetype", mke2fs: []string{"-t", "ext2", "-O", "^filetype,^sparse_super,^resize_inode,^dir_index"}, after: afterAll, long: true},
}

// makeImage makes a file system of a kind with the tree in it, directories hashed where it has the feature.
func makeImage(t testing.TB, k kind, tree string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), k.name+".img")
	size := k.size
	if size == "" {
		size = "64M"
	}
	args := append([]string{"-q", "-d", tree}, k.mke2fs...)
	tool(t, nil, "mke2fs", append(args, image, size)...)
	check(t, image, "-fyD")
	if k.after != "" {
		debugfs(t, image, true, k.after)
	}
	check(t, image, "-fy") // quotas follow who owns what
	return image
}

// check runs e2fsck, which says 1 where it changed something.
func check(t testing.TB, image, flags string) {
	t.Helper()
	cmd := exec.Command("/usr/sbin/e2fsck", flags, image)
	output, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 0 && (code != 1 || !strings.Contains(flags, "y")) {
		t.Fatalf("e2fsck %s %s: %v\n%s", flags, image, err, output)
	}
}

// openImage opens a file system in a file.
func openImage(t testing.TB, path string) *FS {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := Open(file, info.Size())
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	return fs
}
