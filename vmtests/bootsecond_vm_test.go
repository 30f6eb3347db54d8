//go:build vm && long

package vmtests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	// largeRootBytes is the size of a root of which boots read little. It has as many files as ballastFiles, of ballastBytes each, that nobody reads and that do not compress.
	largeRootBytes, ballastFiles, ballastBytes = 5 << 30, 14, 1 << 28

	// mostOfSecond is how much of what the first machine takes from the origin the second may: what says which chunks the image has, and no chunk.
	mostOfSecond = 0.1
)

// TestBootOfSecond boots a machine from a large image through an appliance whose cache is empty, and then another one. What the first has read, the second has from the appliance.
func TestBootOfSecond(t *testing.T) {
	t.Parallel()
	l := newMachineLabOf(t, Systemd, enlarged)
	coppice, err := l.b.Binary(t.Context(), "./cmd/coppice")
	if err != nil {
		t.Fatal(err)
	}
	behind := startWeb(t, filepath.Join(l.dir, "web")) // the origin as the appliance knows it
	front := startProxy(t, strings.Replace(startAppliance(t, coppice, behind.address, "--insecure"), HostAddr, "127.0.0.1", 1))
	config := filepath.Join(l.dir, "coppice.toml")
	text := fmt.Sprintf("[cache]\nappliances = [\"http://%s\"]\ninsecure = true\npatience = %q\n", inGuest(front.address), patience)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var took []int64
	for _, name := range []string{"first", "second"} {
		m := l.node(t, name, l.web.address)
		m.bootShort()
		m.cfg.QEMUArgs = []string{"-fw_cfg", "name=opt/io.systemd.credentials/coppice.config,file=" + config}
		l.web.sent.Store(0)
		behind.sent.Store(0)
		front.sent.Store(0)
		vm := l.boot(t, m)
		origin, appliance := l.web.sent.Load()+behind.sent.Load(), front.sent.Load()
		t.Logf("%s: the origin sent %.2f MiB, %.2f of them to the appliance, in all %.3f %% of the image's %d MiB; the appliance sent %.2f MiB", name,
			mib(origin), mib(behind.sent.Load()), 100*float64(origin)/largeRootBytes, largeRootBytes>>20, mib(appliance))
		wantLittleFetched(t, vm, l.web.sent.Load()+appliance)
		took = append(took, origin)
		examineRoot(t, vm)
		out, err := vm.Output(t.Context(), "coppice", "--run-dir", "/run/coppice-root", "cache", "stats")
		if err != nil || appliance < leastOfOne {
			t.Errorf("the appliance sent %d bytes (%v)", appliance, err)
		}
		t.Log(out)
		if err := vm.Kill(); err != nil {
			t.Error(err)
		}
	}
	if took[0] < leastOfOne || float64(took[1]) > mostOfSecond*float64(took[0]) {
		t.Errorf("the origin sent %d bytes for the first machine and %d for the second, want at most %.2f of it", took[0], took[1], mostOfSecond)
	}
}

// enlarged makes a file system on a disk larger, and fills most of that.
func enlarged(t *testing.T, path string) {
	t.Helper()
	ballast := filepath.Join(t.TempDir(), "ballast")
	script := fmt.Sprintf(`truncate -s %d $1 && e2fsck -fy $1; resize2fs $1 || exit 1
for n in $(seq %d); do head -c %d /dev/urandom >$2 && debugfs -w -R "write $2 /srv/ballast$n" $1 || exit 1; done; rm $2`, largeRootBytes, ballastFiles, ballastBytes)
	if _, err := command(t.Context(), "", "sh", "-c", script, "enlarge", path, ballast); err != nil {
		t.Fatal(err)
	}
}
