//go:build vm

package scenarios

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// nfsServer is the kernel's NFS server, with Debian's programs, for a directory of this machine.
type nfsServer struct{ t *testing.T }

// startNFS exports a directory to this machine alone, as the root of its NFS.
func startNFS(t *testing.T, dir string) nfsServer {
	t.Helper()
	sh(t, `modprobe nfsd
mkdir -p /run/rpc_pipefs /var/lib/nfs/nfsdcld
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
mountpoint -q /run/rpc_pipefs || mount -t rpc_pipefs sunrpc /run/rpc_pipefs
exportfs -o ro,fsid=0,no_root_squash,no_subtree_check 127.0.0.1:`+dir)
	t.Cleanup(func() { sh(t, "rpc.nfsd 0; exportfs -u 127.0.0.1:"+dir) })
	background(t, "nfsdcld", "-F")
	background(t, "rpc.mountd", "-F", "-N", "3")
	s := nfsServer{t}
	s.start()
	return s
}

// start lets the server answer. Ten seconds is the shortest time that it waits for clients that it had before.
func (s nfsServer) start() {
	s.t.Helper()
	sh(s.t, "rpc.nfsd -N 3 -G 10 -L 10 4")
}

// stop ends all that answers.
func (s nfsServer) stop() {
	s.t.Helper()
	sh(s.t, "rpc.nfsd 0")
}

// background runs a program until the test ends.
func background(t *testing.T, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// TestImageOnNFS has an image and a raw disk on an NFS mount as roots. While the server is away reads wait, and when it is back they go on.
func TestImageOnNFS(t *testing.T) {
	dir := t.TempDir()
	sh(t, "cd "+dir+"; mkdir export mnt; "+nfsDisk)
	t.Log(strings.TrimSpace(coppice(t, "image", "build", "oci:"+dir+"/export/images:repo:1", dir+"/export/raw")))
	want := digestOfAll(t, dir+"/export/raw")
	server := startNFS(t, dir+"/export")
	mnt := filepath.Join(dir, "mnt")
	sh(t, "mount -t nfs -o ro,vers=4.2,timeo=10 127.0.0.1:/ "+mnt)
	t.Cleanup(func() { unmount(t, mnt) })
	leaf := disk(t, "leaf")
	format(t, leaf)
	startDaemon(t)
	for name, root := range map[string]string{"image": "oci:" + mnt + "/images:repo:1", "raw": mnt + "/raw"} {
		dev := createForTest(t, name, root, leaf)
		server.stop()
		done := make(chan string, 1)
		began := time.Now()
		go func() { done <- digestOfAll(t, dev.Path) }()
		select {
		case <-done:
			t.Errorf("%s: read without a server", name)
		case <-time.After(3 * time.Second):
		}
		server.start()
		if got := <-done; got != want {
			t.Errorf("%s: content has digest %s, want %s", name, got, want)
		}
		t.Logf("%s: read in %.1f s, of which the server was away for 3 s", name, time.Since(began).Seconds())
		mountPoint(t, dev.Path, "-t ext4")
	}
}

// digestOfAll is the digest of all of a disk.
func digestOfAll(t *testing.T, path string) string {
	out, err := command(t, time.Minute, "sha256sum", path)
	if err != nil {
		t.Error(err)
	}
	digest, _, _ := strings.Cut(out, " ")
	return digest
}
