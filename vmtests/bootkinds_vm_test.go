//go:build vm && long

package vmtests

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice/image/imagetest"
)

// What a machine is known to a registry by. The second is bcrypt of the first, as htpasswd writes it.
const (
	registryUser   = "ann:open sesame"
	registryPasswd = "ann:$2b$04$2O6mWkqoynC4QkSnA8.ZDu3qhnpIwDRQ61As70NBNaww9vlo7hVYK\n"
)

// TestBootFromRegistry boots a machine from an image in Debian's docker-registry, with TLS by an authority of its own and a password.
func TestBootFromRegistry(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Systemd)
	coppice, err := l.b.Binary(t.Context(), "./cmd/coppice")
	if err != nil {
		t.Fatal(err)
	}
	images := &imageLab{b: l.b, dir: l.dir, coppice: coppice}
	authority, server := images.certify(t)
	server.Htpasswd = registryPasswd
	registry := imagetest.Registry(t, server)
	imagetest.Skopeo(t, "--dest-cert-dir", l.dir+"/trusted", "--dest-creds", registryUser, "oci:"+l.dir+"/web/root:debian:1", "docker://"+registry+"/os/debian:1")

	const inside = "/etc/coppice/registry.pem"
	config, login := filepath.Join(l.dir, "coppice.toml"), filepath.Join(l.dir, "config.json")
	auth := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, inGuest(registry), base64.StdEncoding.EncodeToString([]byte(registryUser)))
	for path, text := range map[string]string{config: fmt.Sprintf("[images]\nca = %q\n", inside), login: auth} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := l.node(t, "registry", l.web.address)
	m.cfg.KernelArgs = strings.Replace(m.cfg.KernelArgs, imageAt(inGuest(l.web.address)), inGuest(registry)+"/os/debian:1", 1)
	m.cfg.Own.Files = map[string]string{inside: authority, "/etc/coppice/docker/config.json": login}
	m.cfg.QEMUArgs = []string{"-fw_cfg", "name=opt/io.systemd.credentials/coppice.config,file=" + config}
	vm := l.boot(t, m)
	if sent := l.web.sent.Load(); sent > 0 {
		t.Errorf("the web server has sent %d bytes", sent)
	}
	examineRoot(t, vm)
	t.Log(m.sh(t, vm, "where the root is", "coppice --run-dir /run/coppice-root inspect root"))
	m.shutDown(t, vm)
}

// TestBootURoot boots a root with an init of its own, which no builder of ours has made. What is typed at its prompt writes a file, the machine is switched off, and at the prompt of
// the next boot the file is there.
func TestBootURoot(t *testing.T) {
	t.Parallel()
	l := newMachineLab(t, Systemd)
	root, err := l.b.URoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	buildImage(t, filepath.Join(l.dir, "web", "u-root"), "u-root:1", root)
	m := l.node(t, "u-root", l.web.address)
	m.disk = root
	m.cfg.KernelArgs = strings.Replace(m.cfg.KernelArgs, "/root:debian:1", "/u-root:u-root:1", 1) + " coppice.tries=0 init=/init rw loglevel=7"
	m.cfg.Until = "EXT4-fs (ublkb0): mounted filesystem"
	for n := range 2 {
		line := listenAtTerminal(t, filepath.Join(l.dir, "terminal"))
		m.cfg.Terminal = line.path
		began := time.Now()
		vm := l.start(t, m)
		line.await(t, "\n$ ")
		line.typed(t, "echo r''eady", "ready") // the quotes are not in what is printed
		t.Logf("u-root's shell answers after %.1f s", time.Since(began).Seconds())
		if n == 0 {
			line.typed(t, "echo kept by u-root > /kept; sync; echo wri''tten", "written")
		}
		line.typed(t, "cat /kept", "kept by u-root\r\n")
		line.typed(t, "mount", "/dev/ublkb0 / ext4 rw")
		line.typed(t, "shutdown -h", "")
		select {
		case <-vm.exited:
		case <-time.After(systemOffLimit):
			t.Errorf("the machine is not off\n%s", line.said())
		}
		wantNoIOErrors(t, "the console", vm.console())
		t.Log(lastLines(line.said(), 20))
		if err := vm.Kill(); err != nil {
			t.Error(err)
		}
	}
	wantClean(t, offline(t, m.leaf, m.disk), true) // u-root's shutdown unmounts nothing
}

// terminal is this machine's end of a serial line of a guest.
type terminal struct {
	path string
	mu   sync.Mutex // guards the fields below
	text strings.Builder
	line net.Conn
}

// listenAtTerminal makes one, to which QEMU is to connect.
func listenAtTerminal(t *testing.T, path string) *terminal {
	t.Helper()
	_ = os.Remove(path)
	port, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{path: path}
	go func() {
		conn, err := port.Accept()
		if err != nil {
			return
		}
		term.mu.Lock()
		term.line = conn
		term.mu.Unlock()
		for p := make([]byte, 4096); ; {
			n, err := conn.Read(p)
			term.mu.Lock()
			term.text.Write(p[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = port.Close()
		term.mu.Lock()
		defer term.mu.Unlock()
		if term.line != nil {
			_ = term.line.Close()
		}
	})
	return term
}

// said is all that was printed.
func (term *terminal) said() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.text.String()
}

// await waits until the guest has printed a text.
func (term *terminal) await(t *testing.T, text string) {
	t.Helper()
	term.awaitAfter(t, text, 0)
}

func (term *terminal) awaitAfter(t *testing.T, text string, from int) {
	t.Helper()
	for deadline := time.Now().Add(bootLimit); !strings.Contains(term.said()[from:], text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("wait for %q: the guest says\n%s", text, lastLines(term.said(), 60))
		}
	}
}

// typed types a line, and waits until its answer has a text.
func (term *terminal) typed(t *testing.T, line, answer string) {
	t.Helper()
	from := len(term.said())
	term.mu.Lock()
	conn := term.line
	term.mu.Unlock()
	if conn == nil {
		t.Fatal("QEMU has not connected to the terminal")
	}
	if _, err := conn.Write([]byte(line + "\r")); err != nil {
		t.Fatal(err)
	}
	term.awaitAfter(t, answer, from)
}
