//go:build vm && long

package vmtests

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coppice/ca"
)

const (
	// chunksPort is where a guest gives chunks to its peers, numbersPort where its daemon tells what it did.
	chunksPort, numbersPort = 8441, 9488

	// bootsAtOnce is how many systems boot together, and mostOfOne how much of what one of them takes from the origin they may take together.
	bootsAtOnce = 3
	mostOfOne   = 1.10

	// patience is what the nodes have with each other and with an appliance. A guest under emulation shares a core with others, and what it does takes
	// ten times as long as it would.
	patience = 30 * time.Second

	// leastOfOne is less than any boot reads, in bytes.
	leastOfOne = 4 << 20
)

// unionBootArgs have the login prompt on the console, whatever it is: that of a serial line waits for its device, and gives up where the emulated processor is slow.
const unionBootArgs = bootArgs + " systemd.mask=serial-getty@ttyS0.service systemd.wants=console-getty.service"

// TestBootsFromOneOrigin boots Debian from a web server's image: a daemon in the initramfs makes the root disk, and systemd starts from it. One system for itself
// shows what a boot takes from the origin. Three at once take little more, through an appliance, and as peers that give chunks to each other.
func TestBootsFromOneOrigin(t *testing.T) {
	lab := newBootLab(t)
	alone := lab.boot(t, bootKind{name: "alone"}, 1)
	if alone < leastOfOne {
		t.Fatalf("a boot that takes %d bytes from the origin is none", alone)
	}
	for _, kind := range []bootKind{{name: "appliance", appliance: true}, {name: "peers", peers: true}} {
		t.Run(kind.name, func(t *testing.T) {
			together := lab.boot(t, kind, bootsAtOnce)
			ratio := float64(together) / float64(alone)
			t.Logf("origin: %.2f MiB for one system, %.2f MiB for %d at once: %.3f of it", mib(alone), mib(together), bootsAtOnce, ratio)
			if ratio > mostOfOne {
				t.Errorf("%d systems took %.3f of what one takes from the origin, want at most %.2f", bootsAtOnce, ratio, mostOfOne)
			}
		})
	}
}

// bootKind is how nodes that boot at once share what they read.
type bootKind struct {
	name             string
	peers, appliance bool
}

// bootLab is a directory of images for web servers, and an authority for those that boot from them.
type bootLab struct {
	b       *Build
	dir     string
	coppice string
}

func newBootLab(t *testing.T) *bootLab {
	t.Helper()
	l := &bootLab{b: newBuild(t), dir: t.TempDir()}
	var err error
	if l.coppice, err = l.b.Binary(t.Context(), "./cmd/coppice"); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Init(filepath.Join(l.dir, "ca"), ca.Options{Name: "nodes"}); err != nil {
		t.Fatal(err)
	}
	l.buildImage(t, filepath.Join(l.dir, "web", "root"))
	return l
}

// serve starts a web server that counts the bytes of the bodies that it sends, and returns its address.
func (l *bootLab) serve(t *testing.T) (address string, sent *atomic.Int64) {
	t.Helper()
	web := startWeb(t, filepath.Join(l.dir, "web"))
	return web.address, &web.sent
}

// serveChunks starts an appliance with an empty cache for the image of a web server, and returns where guests reach it.
func (l *bootLab) serveChunks(t *testing.T, web string) (url string) {
	t.Helper()
	pair, err := ca.Issue(filepath.Join(l.dir, "ca"), ca.Options{Name: "appliance", Hosts: []string{HostAddr}})
	if err != nil {
		t.Fatal(err)
	}
	return "https://" + startAppliance(t, l.coppice, web, "--ca", filepath.Join(l.dir, "ca", "ca.crt"), "--tls-cert", pair.Cert, "--tls-key", pair.Key)
}

// startAppliance starts one with an empty cache for the image of a web server, and returns where guests reach it, as HOST:PORT. It ends with the test.
func startAppliance(t *testing.T, coppice, web string, args ...string) (address string) {
	t.Helper()
	port := freePorts(t, 1)[0]
	listen := fmt.Sprintf("127.0.0.1:%d", port)
	cmd := exec.Command(coppice, append([]string{"serve", "--listen", listen, "--root", imageAt(web)}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails where it has ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("appliance:\n%s", said.String())
		}
	})
	for range 1000 {
		if conn, err := net.Dial("tcp", listen); err == nil {
			conn.Close()
			return fmt.Sprintf("%s:%d", HostAddr, port)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the appliance does not listen at %s", listen)
	return ""
}

func (l *bootLab) buildImage(t *testing.T, dir string) {
	t.Helper()
	path, err := l.b.Image(t.Context(), ImageExt4)
	if err != nil {
		t.Fatal(err)
	}
	buildRoot(t, dir, path)
}

// bootNode is a machine that boots.
type bootNode struct {
	name            string
	image           string
	chunks, numbers int    // ports of this machine that lead to chunksPort and numbersPort of the guest
	peers           string // lines of the list of peers; "": there are none
	appliance       string // its URL; "": there is none
}

// url is the node as its peers know it.
func (n bootNode) url() string { return fmt.Sprintf("https://%s:%d", HostAddr, n.chunks) }

// boot boots systems at once, each with empty caches and a blank leaf, and returns how many bytes they took from their origin until all of them asked for a login.
func (l *bootLab) boot(t *testing.T, kind bootKind, count int) (originBytes int64) {
	t.Helper()
	web, sent := l.serve(t)
	appliance := ""
	if kind.appliance {
		appliance = l.serveChunks(t, web)
	}
	ports := freePorts(t, 2*count)
	nodes := make([]bootNode, count)
	list := ""
	for i := range nodes {
		nodes[i] = bootNode{name: fmt.Sprintf("%s%d", kind.name, i+1), image: imageAt(inGuest(web)), chunks: ports[2*i], numbers: ports[2*i+1], appliance: appliance}
		list += nodes[i].url() + "\n"
	}
	if kind.peers {
		for i := range nodes {
			nodes[i].peers = list
		}
	}
	vms, began := make([]*VM, len(nodes)), time.Now()
	var booting sync.WaitGroup
	for i, n := range nodes {
		booting.Go(func() {
			cfg, err := l.node(n)
			if err == nil {
				vms[i], err = l.b.Boot(t.Context(), cfg)
			}
			if err != nil {
				t.Errorf("%s: %v", n.name, err)
				return
			}
			t.Logf("%s: login prompt after %.1f s", n.name, time.Since(began).Seconds())
		})
	}
	booting.Wait()
	originBytes = sent.Load()
	for i, n := range nodes {
		if vms[i] != nil {
			n.examine(t, vms[i])
			if err := vms[i].Kill(); err != nil {
				t.Error(err)
			}
			t.Logf("%s: %.1f s of processor", n.name, (vms[i].cmd.ProcessState.UserTime() + vms[i].cmd.ProcessState.SystemTime()).Seconds())
		}
	}
	return originBytes
}

// node describes the machine of a node. Its leaf is a blank disk.
func (l *bootLab) node(n bootNode) (Config, error) {
	files := map[string]string{"/usr/local/bin/coppice": l.coppice, "/etc/coppice/ca.crt": filepath.Join(l.dir, "ca", "ca.crt")}
	pair, err := ca.Issue(filepath.Join(l.dir, "ca"), ca.Options{Name: n.name, Hosts: []string{HostAddr}, Client: true})
	files["/etc/coppice/node.crt"], files["/etc/coppice/node.key"] = pair.Cert, pair.Key
	for name, text := range map[string]string{"peers": n.peers, "coppice.toml": n.config()} {
		path := filepath.Join(l.dir, n.name+"."+name)
		files["/etc/coppice/"+name] = path
		err = errors.Join(err, os.WriteFile(path, []byte(text), 0o600))
	}
	leaf := filepath.Join(l.dir, n.name+".leaf")
	return Config{
		Name: n.name, CPUs: 1, MemMiB: 1024, Files: files, KernelArgs: unionBootArgs, Network: true,
		Forward: map[int]int{n.chunks: chunksPort, n.numbers: numbersPort},
		Disks:   []Disk{{Name: "leaf", Path: leaf}}, Union: &Union{Image: n.image, Leaf: "leaf"},
	}, errors.Join(err, SparseFile(leaf, 1<<30))
}

// config is the node's coppice.toml.
func (n bootNode) config() string {
	text := fmt.Sprintf(`metrics = ":%d"
[cache]
patience = %q
ca = "/etc/coppice/ca.crt"
tls_cert = "/etc/coppice/node.crt"
tls_key = "/etc/coppice/node.key"
`, numbersPort, patience)
	if n.peers != "" {
		text += fmt.Sprintf("peers = \"/etc/coppice/peers\"\nself = %q\nlisten = \":%d\"\n", n.url(), chunksPort)
	}
	if n.appliance != "" {
		text += fmt.Sprintf("appliances = [%q]\n", n.appliance)
	}
	return text
}

// examine looks at a system that has booted: it is one that runs from a disk of coppice's, whose daemon goes on in it.
func (n bootNode) examine(t *testing.T, vm *VM) {
	t.Helper()
	console := vm.console()
	if !strings.Contains(console, "root is /dev/ublkb0, of "+n.image) || !strings.Contains(console, "login: ") {
		t.Errorf("%s has not booted from a disk of coppice's", n.name)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s: console\n%s", n.name, console)
		}
	})
	numbers, err := n.told(t.Context())
	if err != nil {
		t.Errorf("%s: its daemon does not answer: %v", n.name, err)
		return
	}
	mib := func(name string) float64 { return numbers[name] / (1 << 20) }
	from := func(tier string) float64 {
		return mib(`coppice_device_cache_bytes_total{device="root",tier="` + tier + `"}`)
	}
	read := from("memory") + from("peers") + from("appliance") + from("origin")
	if written := mib(`coppice_device_written_bytes_total{device="root"}`); read < float64(leastOfOne>>20) || written == 0 {
		t.Errorf("%s: its daemon has read %.1f MiB and written %.1f MiB: no system has booted from that", n.name, read, written)
	}
	t.Logf("%s: its disk read %.1f MiB of the root, %.1f from memory, %.1f from peers, %.1f from an appliance, %.1f from the origin; peers took %.1f MiB, and the origin gave %.1f MiB, of content",
		n.name, read, from("memory"), from("peers"), from("appliance"), from("origin"), mib("coppice_cache_served_bytes_total"), mib("coppice_cache_origin_bytes_total"))
}

var numberLine = regexp.MustCompile(`^(coppice_[^ ]+) ([0-9.e+-]+)$`)

// told asks a node's daemon for its numbers.
func (n bootNode) told(ctx context.Context) (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/metrics", n.numbers), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	numbers := make(map[string]float64)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if m := numberLine.FindStringSubmatch(lines.Text()); m != nil {
			if numbers[m[1]], err = strconv.ParseFloat(m[2], 64); err != nil {
				return nil, err
			}
		}
	}
	return numbers, lines.Err()
}
