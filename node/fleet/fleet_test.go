package fleet_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"coppice/ca"
	"coppice/cache/trace"
	"coppice/node"
	"coppice/union"
)

const (
	peerPort, appliancePort = "8441", "8440"
	deviceName              = "root"
	storeBytes              = 64 << 20
	version                 = "fleet"
)

// fleet is processes that run, each in a network namespace of its own, connected with the hub's.
type fleet struct {
	hub   *hub
	dir   string
	trace string // file
	ca    ca.Pair
	addr  netip.Addr // the last one that was given away
	all   []*process
}

// process is a member that runs.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	addr   string
	runDir string // "" for an appliance
	store  string
}

// newFleet makes a fleet that replays a trace. What is still of it when the test ends, ends then.
func newFleet(t *testing.T, h *hub, tr *trace.Trace) *fleet {
	t.Helper()
	// Not t.TempDir: the path of a Unix socket has at most 108 bytes (unix(7)).
	dir, err := os.MkdirTemp("", "fleet")
	check(t, err)
	f := &fleet{hub: h, dir: dir, trace: filepath.Join(dir, "trace"), addr: netip.MustParseAddr(hubAddr)}
	t.Cleanup(func() {
		f.end(t)
		os.RemoveAll(dir)
	})
	file, err := os.Create(f.trace)
	check(t, err)
	check(t, errors.Join(tr.Write(file), file.Close()))
	f.ca, err = ca.Init(dir, ca.Options{})
	check(t, err)
	return f
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// way is what the nodes of a fleet have beside the origin.
type way struct {
	peers, appliance bool
	settings         string // more lines of the section cache
}

// start starts nodes, and an appliance where there is to be one, and makes a device on a root on each node.
func (f *fleet) start(t *testing.T, root string, nodes int, w way) {
	t.Helper()
	appliances := ""
	if w.appliance {
		m := f.newMember(t)
		m.Root = root
		appliances = fmt.Sprintf("%q", "https://"+m.Addr+":"+appliancePort)
		f.launch(t, m, "")
	}
	configs := make([]memberConfig, nodes)
	list := ""
	for i := range configs {
		configs[i] = f.newMember(t)
		list += "https://" + configs[i].Addr + ":" + peerPort + "\n"
	}
	peers := filepath.Join(f.dir, "peers")
	check(t, os.WriteFile(peers, []byte(list), 0o600))
	for _, m := range configs {
		settings := w.settings + fmt.Sprintf("appliances = [%s]\nca = %q\ntls_cert = %q\ntls_key = %q\n", appliances, m.TLS[0], m.TLS[1], m.TLS[2])
		if w.peers {
			at := m.Addr + ":" + peerPort
			settings += fmt.Sprintf("peers = %q\nself = %q\nlisten = %q\n", peers, "https://"+at, at)
		}
		dir := filepath.Join(f.dir, m.Addr)
		check(t, os.Mkdir(dir, 0o700))
		m.Config, m.Trace = filepath.Join(dir, "coppice.toml"), f.trace
		check(t, os.WriteFile(m.Config, []byte(configText(dir, settings)), 0o600))
		f.launch(t, m, dir)
	}
	f.join(t)
	for _, p := range f.all {
		if p.runDir != "" {
			p.create(t, root)
		}
	}
}

// configText is the configuration file of a node. A machine that is busy with other things is given time.
func configText(dir, cache string) string {
	return fmt.Sprintf("run_dir = %q\noperation_seconds = 1800\n[images]\npatience = \"30m\"\nserials = %q\nlocal = %q\n[cache]\nmemory = \"256M\"\ntraces = %q\n%s",
		filepath.Join(dir, "run"), filepath.Join(dir, "serials"), filepath.Join(dir, "local"), filepath.Join(dir, "traces"), cache)
}

// newMember gives a member an address and a certificate.
func (f *fleet) newMember(t *testing.T) memberConfig {
	t.Helper()
	f.addr = f.addr.Next()
	m := memberConfig{Addr: f.addr.String()}
	pair, err := ca.Issue(f.dir, ca.Options{Name: "node-" + m.Addr, Hosts: []string{m.Addr}, Client: true})
	check(t, err)
	m.TLS = []string{f.ca.Cert, pair.Cert, pair.Key}
	return m
}

// launch starts a member, whose directory is "" if it is an appliance. It waits for its wire.
func (f *fleet) launch(t *testing.T, m memberConfig, dir string) {
	t.Helper()
	text, err := json.Marshal(m)
	check(t, err)
	p := &process{cmd: exec.Command(os.Args[0], "-member", string(text)), addr: m.Addr}
	if dir != "" {
		p.runDir, p.store = filepath.Join(dir, "run"), filepath.Join(dir, "leaf")
	}
	// It ends with this process, whatever becomes of that: the thread that starts it stays until the fleet has ended.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	p.cmd.Stderr = &strings.Builder{}
	p.in, err = p.cmd.StdinPipe()
	check(t, err)
	out, err := p.cmd.StdoutPipe()
	check(t, err)
	p.out = bufio.NewReader(out)
	if err := f.hub.do(p.cmd.Start); err != nil {
		t.Fatalf("start a process in a network namespace of its own, which takes root or CAP_SYS_ADMIN: %v", err)
	}
	f.all = append(f.all, p)
}

// join connects all members, and returns when they are ready.
func (f *fleet) join(t *testing.T) {
	t.Helper()
	check(t, f.hub.connect(f.all))
	seen := map[string]string{}
	var addrs []string
	for _, p := range f.all {
		addrs = append(addrs, p.addr)
	}
	for _, p := range f.all {
		_, err := io.WriteString(p.in, strings.Join(addrs, " ")+"\n")
		check(t, err)
	}
	for _, p := range f.all {
		var r readyLine
		p.hear(t, &r)
		if other := seen[r.Namespace]; r.Namespace == "" || other != "" {
			t.Errorf("%s and %s are both in the network namespace %q", p.addr, other, r.Namespace)
		}
		seen[r.Namespace] = p.addr
	}
}

// hear waits for a line of a member.
func (p *process) hear(t *testing.T, what any) {
	t.Helper()
	line, err := p.out.ReadString('\n')
	if err == nil {
		err = json.Unmarshal([]byte(line), what)
	}
	if err != nil {
		t.Fatalf("member %s said %q: %v", p.addr, line, err)
	}
}

// client speaks to a node's daemon over its socket.
func (p *process) client() *node.Client { return node.NewClient(p.runDir, version) }

// create makes a device over an image, with a leaf store of its own.
func (p *process) create(t *testing.T, root string) {
	t.Helper()
	_, err := union.Format(p.store, union.FormatOptions{SizeBytes: storeBytes})
	check(t, err)
	var d node.Device
	for range 4 { // an origin that says nothing for 5 s is given up, and here that may mean that it had no CPU for so long
		if d, err = p.client().Create(context.Background(), node.CreateRequest{Name: deviceName, Root: root, Store: p.store, ID: node.AutoID}); err == nil {
			break
		}
		t.Logf("device of %s not created, and tried again: %v", p.addr, err)
	}
	check(t, err)
	if d.ID != 0 || d.State != node.StateLive {
		t.Fatalf("device %d of %s is %s", d.ID, p.addr, d.State)
	}
}

// outcome is what came of a boot of all nodes.
type outcome struct {
	wall  time.Duration // until the last one had booted
	boots []bootLine
	cache []node.CacheReport
}

// boot lets all nodes replay the trace at once.
func (f *fleet) boot(t *testing.T) (o outcome) {
	t.Helper()
	var nodes []*process
	for _, p := range f.all {
		if p.runDir != "" {
			nodes = append(nodes, p)
		}
	}
	o.boots = make([]bootLine, len(nodes))
	errs := make([]error, len(nodes))
	began := time.Now()
	var work sync.WaitGroup
	for i, p := range nodes {
		work.Go(func() {
			if _, errs[i] = io.WriteString(p.in, "boot\n"); errs[i] != nil {
				return
			}
			var line string
			if line, errs[i] = p.out.ReadString('\n'); errs[i] == nil {
				errs[i] = json.Unmarshal([]byte(line), &o.boots[i])
			}
		})
	}
	work.Wait()
	o.wall = time.Since(began)
	check(t, errors.Join(errs...))
	for i, p := range nodes {
		if err := o.boots[i].Err(); err != nil {
			t.Errorf("node %s: %v", p.addr, err)
		}
		r, err := p.client().CacheStats(context.Background())
		check(t, err)
		o.cache = append(o.cache, r)
	}
	return o
}

// end ends all members, the devices of the nodes with them.
func (f *fleet) end(t *testing.T) {
	t.Helper()
	for _, p := range f.all {
		p.in.Close()
	}
	for _, p := range f.all {
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("member %s ended: %v", p.addr, err)
		}
		if said := fmt.Sprint(p.cmd.Stderr); said != "" && testing.Verbose() {
			t.Logf("member %s said:\n%s", p.addr, said)
		}
	}
	f.all = nil
}
