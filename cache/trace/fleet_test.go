package trace_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice/ca"
	"coppice/cache"
	"coppice/cache/peer"
	"coppice/cache/trace"
	"coppice/certs"
	"coppice/image"
)

var memberFlag = flag.String("member", "", "be a node of a fleet, which this JSON describes")

// memberConfig describes a node of a fleet: a process with a cache and a replica set of its own.
type memberConfig struct {
	Root      string   `json:"root"`   // reference of the image
	Trace     string   `json:"trace"`  // file
	Listen    string   `json:"listen"` // "" serves nobody
	Peers     []string `json:"peers"`
	Appliance string   `json:"appliance"`
	CA        string   `json:"ca"` // files
	Cert      string   `json:"cert"`
	Key       string   `json:"key"`
}

// memberResult is what it says in the end.
type memberResult struct {
	tally
	Wall  time.Duration `json:"wall"`
	Stats cache.Stats   `json:"stats"`
}

func TestMain(m *testing.M) {
	flag.Parse()
	if *memberFlag == "" {
		os.Exit(m.Run())
	}
	if err := member(*memberFlag); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// member is a node: it says "ready", replays the trace when it is told a line, prints what came of it, and serves others until its input ends.
func member(text string) (err error) {
	var o memberConfig
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	t, err := trace.Load(o.Trace)
	if err != nil {
		return err
	}
	files, err := certs.Open(o.CA, o.Cert, o.Key)
	if err != nil {
		return err
	}
	id := peer.NewID()
	tier := func(all bool, urls ...string) cache.Tier {
		if len(urls) == 0 || urls[0] == "" {
			return nil
		}
		p, tierErr := peer.New(urls, peer.Options{TLS: files, Self: url(o.Listen), ID: id, All: all, Log: quiet})
		err = errors.Join(err, tierErr)
		return p
	}
	peers, appliance := tier(false, o.Peers...), tier(true, o.Appliance)
	if err != nil {
		return err
	}
	c, err := cache.New(cache.Options{MemoryBytes: memberMemory, Peers: peers, Appliance: appliance, Log: quiet})
	if err != nil {
		return err
	}
	ref, err := image.ParseRef(o.Root)
	if err != nil {
		return err
	}
	set, err := openSet(ref)
	if err != nil {
		return err
	}
	root := c.Open(set)
	if o.Listen != "" {
		s, err := peer.Listen(o.Listen, peer.NewHandler(c, peer.HandlerOptions{ID: id, Log: quiet}), peer.ServerOptions{TLS: files, Log: quiet})
		if err != nil {
			return err
		}
		defer s.Close()
	}
	in := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	if _, err := in.ReadString('\n'); err != nil {
		return nil // it only serves
	}
	began := time.Now()
	y := replay(root.Reader(), t, madeFor(t), nil)
	out, err := json.Marshal(memberResult{y, time.Since(began), c.Stats()})
	if err != nil {
		return err
	}
	fmt.Println(string(out))
	_, err = io.Copy(io.Discard, in)
	return err
}

const memberMemory = 256 << 20

func url(addr string) string {
	if addr == "" {
		return ""
	}
	return "https://" + addr
}

// fleet is nodes that run.
type fleet struct {
	dir   string // certificates and the trace
	trace string
	files [3]string // of the authority, a certificate and its key
	run   []*running
}

type running struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func newFleet(t *testing.T, tr *trace.Trace) *fleet {
	t.Helper()
	f := &fleet{dir: t.TempDir()}
	f.trace = filepath.Join(f.dir, "trace")
	file, err := os.Create(f.trace)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tr.Write(file), file.Close()); err != nil {
		t.Fatal(err)
	}
	authority, err := ca.Init(f.dir, ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(f.dir, ca.Options{Name: "node", Hosts: []string{"127.0.0.1"}, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	f.files = [3]string{authority.Cert, pair.Cert, pair.Key}
	t.Cleanup(func() { f.end(t) })
	return f
}

// end ends all nodes.
func (f *fleet) end(t *testing.T) {
	t.Helper()
	for _, r := range f.run {
		r.in.Close()
	}
	for _, r := range f.run {
		if err := r.cmd.Wait(); err != nil {
			t.Errorf("a node ended: %v: %s", err, r.cmd.Stderr)
		}
	}
	f.run = nil
}

// start starts a node and waits until it is ready.
func (f *fleet) start(t *testing.T, o memberConfig) {
	t.Helper()
	o.Trace, o.CA, o.Cert, o.Key = f.trace, f.files[0], f.files[1], f.files[2]
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{cmd: exec.Command(os.Args[0], "-member", string(text))}
	r.cmd.Stderr = &strings.Builder{}
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.run = append(f.run, r)
	r.out = bufio.NewReader(out)
	if line, err := r.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("a node said %q, %v: %s", line, err, r.cmd.Stderr)
	}
}

// boot lets nodes replay the trace at once, and returns how long that took and what came of it.
func boot(t *testing.T, all []*running) (wall time.Duration, results []memberResult) {
	t.Helper()
	results = make([]memberResult, len(all))
	errs := make([]error, len(all))
	began := time.Now()
	var work sync.WaitGroup
	for i, r := range all {
		work.Go(func() {
			if _, errs[i] = io.WriteString(r.in, "go\n"); errs[i] != nil {
				return
			}
			var line string
			if line, errs[i] = r.out.ReadString('\n'); errs[i] == nil {
				errs[i] = json.Unmarshal([]byte(line), &results[i])
			}
		})
	}
	work.Wait()
	wall = time.Since(began)
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		r.good(t, fmt.Sprintf("node %d", i))
	}
	return wall, results
}

// freeAddrs returns addresses of this machine that nobody listens at.
func freeAddrs(t *testing.T, n int) []string {
	t.Helper()
	all := make([]string, n)
	for i := range all {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // when all are known, so that they differ
		all[i] = l.Addr().String()
	}
	return all
}
