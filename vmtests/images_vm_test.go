//go:build vm

package vmtests

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice/ca"
	"coppice/image"
	"coppice/image/imagetest"
)

// imageTests are the tests of package scenarios that run in the VM of TestImages.
const imageTests = "^TestImage"

// TestImages makes an image of a Debian root and takes it from server to server, all of them Debian's and on this machine. Tests of package
// scenarios use it in a VM, which reaches the servers through a network of QEMU's.
func TestImages(t *testing.T) {
	t.Parallel()
	lab := newImageLab(t)
	disks, cleanup, err := lab.b.Scratch([]string{"leaf=3G"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cleanup)
	for _, name := range []string{ImageExt4, ImageRepo} {
		disk, err := lab.b.ImageDisk(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		disks = append(disks, disk)
	}
	disks = append(disks, Disk{Name: "images", Path: lab.store})
	m := &testVM{t: t, b: lab.b, cfg: Config{Name: "images", MemMiB: 4096, Network: true, Disks: disks, Files: lab.files}}
	tests := m.add("./vmtests/scenarios")
	if err := tests.Select(imageTests); err != nil {
		t.Fatal(err)
	}
	t.Run("guest", func(t *testing.T) { m.run(t, tests, imagesLimit) })
	if secondVersions && !t.Failed() {
		t.Run("version 2", lab.versions)
	}
}

// imageLab is what images are made with, and where they lie.
type imageLab struct {
	b        *Build
	dir      string
	coppice  string            // the program
	registry string            // where mirror/debian:1 is at the end of its way
	store    string            // a file system with the layout "images", which has version 1
	files    map[string]string // that the guest gets
}

// newImageLab builds the images and starts the servers, which end with the test. What the guest is to know of them it finds in its directory
// /lab, a file for each.
func newImageLab(t *testing.T) *imageLab {
	t.Helper()
	b := newBuild(t)
	coppice, err := b.Binary(t.Context(), "./cmd/coppice")
	if err != nil {
		t.Fatal(err)
	}
	l := &imageLab{b: b, dir: t.TempDir(), coppice: coppice, files: map[string]string{"/usr/local/bin/coppice": coppice}}
	root, err := b.Image(t.Context(), ImageExt4)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	built := runCoppice[image.BuildReport](t, l, "image", "build", l.debian("1"), root)
	t.Logf("built in %.1f s: %d MiB, of which %.0f MiB not zeros, stored in %.1f MiB", time.Since(began).Seconds(), built.SizeBytes>>20,
		mib((built.Chunks-built.Zero)*int64(built.ChunkSize)), mib(built.StoredBytes+built.TableBytes))
	l.store = filepath.Join(l.dir, "store.img")
	if err := ext4FromTree(t.Context(), filepath.Join(l.dir, "store"), l.store, 256<<20, ""); err != nil {
		t.Fatal(err)
	}
	l.carry(t, built.ContentRoot)
	return l
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// debian is the name of a version in the layout that images are built in.
func (l *imageLab) debian(version string) string {
	return "oci:" + l.dir + "/store/images:debian:" + version
}

// carry takes the first version to a registry, with skopeo from there to a layout and to a second registry, and lets a web server have the layout.
func (l *imageLab) carry(t *testing.T, content image.Digest) {
	t.Helper()
	began := time.Now()
	first := imagetest.Registry(t, imagetest.RegistryOptions{})
	runCoppice[image.CopyReport](t, l, "image", "copy", l.debian("1"), first+"/os/debian:1")
	layout := filepath.Join(l.dir, "web", "copied")
	if err := os.Mkdir(filepath.Dir(layout), 0o755); err != nil {
		t.Fatal(err)
	}
	imagetest.Skopeo(t, "--src-tls-verify=false", "docker://"+first+"/os/debian:1", "oci:"+layout+":debian:1")
	authority, server := l.certify(t)
	l.registry = imagetest.Registry(t, server)
	imagetest.Skopeo(t, "--dest-cert-dir", l.dir+"/trusted", "oci:"+layout+":debian:1", "docker://"+l.registry+"/mirror/debian:1")
	t.Logf("docker-registry, skopeo, layout, skopeo, docker-registry with TLS: %.1f s", time.Since(began).Seconds())
	l.tell(t, "/lab/content", content.String())
	l.tell(t, "/lab/registry", inGuest(l.registry)+"/mirror/debian:")
	l.files["/lab/ca.pem"] = authority
	l.tell(t, "/etc/coppice/coppice.toml", "[images]\nca = \"/lab/ca.pem\"\n")
	l.buildFull(t, filepath.Join(l.dir, "web", "full"))
	web := imagetest.Nginx(t, "root "+filepath.Dir(layout)+";")
	l.tell(t, "/lab/web", "http://"+inGuest(web))
}

// inGuest is where a server of this machine is for the guest.
func inGuest(addr string) string {
	_, port, _ := strings.Cut(addr, ":")
	return HostAddr + ":" + port
}

// tell lets the guest have a file with a text.
func (l *imageLab) tell(t *testing.T, inGuest, text string) {
	t.Helper()
	path := filepath.Join(l.dir, strings.ReplaceAll(inGuest[1:], "/", "-"))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	l.files[inGuest] = path
}

// runCoppice runs a command on this machine and returns what it prints.
func runCoppice[T any](t *testing.T, l *imageLab, args ...string) (result T) {
	t.Helper()
	out, err := command(t.Context(), l.dir, l.coppice, append(args, "-o", "json")...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &result)
	}
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// certify makes an authority, and a server's certificate for this machine as itself and the guest know it. The authority's is alone in its directory.
func (l *imageLab) certify(t *testing.T) (authority string, server imagetest.RegistryOptions) {
	t.Helper()
	ours := runCoppice[ca.Pair](t, l, "ca", "init", filepath.Join(l.dir, "ca"))
	issued := runCoppice[ca.Pair](t, l, "ca", "issue", filepath.Join(l.dir, "ca"), "registry", "--host", "127.0.0.1", "--host", HostAddr, "--out", l.dir)
	trusted := filepath.Join(l.dir, "trusted")
	if err := errors.Join(os.Mkdir(trusted, 0o755), os.Symlink(ours.Cert, filepath.Join(trusted, "ca.crt"))); err != nil {
		t.Fatal(err)
	}
	return ours.Cert, imagetest.RegistryOptions{Cert: issued.Cert, Key: issued.Key}
}

// fullBytes is the size of an image without any zeros. Its table has two levels of pages, as those of up to 64 GiB have.
const fullBytes = 1 << 30

// fullDisk is a disk of whose chunks no two are the same.
type fullDisk struct{}

// ReadAt fills p with content that says where it is, over and over.
func (fullDisk) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = byte(i)
	}
	for i := -off & 4095; i+8 <= int64(len(p)); i += 4096 {
		binary.LittleEndian.PutUint64(p[i:], uint64(off+i))
	}
	return len(p), nil
}

// buildFull makes an image full:1 of a full disk.
func (l *imageLab) buildFull(t *testing.T, dir string) {
	t.Helper()
	layout, err := image.CreateLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer layout.Close()
	report, err := image.Build(t.Context(), layout, "full:1", fullDisk{}, fullBytes, image.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("full image of %d GiB: table of %.1f MiB, built in %.1f s", fullBytes>>30, mib(report.TableBytes), report.TotalMS/1000)
}
