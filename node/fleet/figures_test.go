package fleet_test

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"coppice/cache/trace"
	"coppice/image"
	"coppice/image/faultproxy"
)

var figuresFile = flag.String("figures", "", "measure in full, and write the page to this file")

const chunkBytes = image.DefaultChunkSize

// plan is what is measured.
type plan struct {
	trace    *trace.Trace
	many     int // nodes
	networks []network
	ways     []namedWay
}

// namedWay is how many nodes boot.
type namedWay struct {
	name string
	way
	bound bool // to take no more than 1.05 times what one node takes from the origin
}

// Where all share a few CPUs, which may have other things to do, nobody is given up for being slow: the origin is asked then, by design.
var (
	withPeers     = namedWay{"with peers", way{peers: true, settings: "patience = \"1m\"\n"}, true}
	withAppliance = namedWay{"through an appliance", way{appliance: true, settings: "patience = \"1m\"\n"}, true}
)

type network struct {
	name string
	faultproxy.Fault
}

// newPlan is the one of a full run, or a small one.
func newPlan(t *testing.T) plan {
	t.Helper()
	boot, err := trace.Load("../../cache/trace/testdata/boot-1.txt")
	check(t, err)
	if *figuresFile != "" {
		return plan{boot, 20, []network{{"LAN", faultproxy.LAN}, {"WAN", faultproxy.WAN}}, []namedWay{
			{"each for itself", way{}, false}, withPeers, withAppliance,
			{"with peers, 600 ms", way{peers: true}, false}, {"through an appliance, 600 ms", way{appliance: true}, false},
		}}
	}
	p := plan{boot.Beginning(100, chunkBytes), 5, []network{{"LAN", faultproxy.LAN}}, []namedWay{withPeers, withAppliance}}
	if testing.Short() {
		p.trace, p.many = boot.Beginning(40, chunkBytes), 3
	}
	return p
}

// TestFleet lets many nodes boot at once from one origin: with peers, or through an appliance, they take of it what one node does. Without -figures it does so on little.
func TestFleet(t *testing.T) {
	p, h := newPlan(t), newHub(t)
	images := buildImage(t, trace.NewDisk(p.trace))
	rows := [][]string{{"", "network", "origin bytes", "of one node's, goal ≤ 1.05", "until all have booted", "of one node's", "a node's reads together, median", "longest read"}}
	for _, n := range p.networks {
		one := p.run(t, h, images, n, 1, way{})
		rows = append(rows, one.row("1 node", n.name, one))
		for _, k := range p.ways {
			r := p.run(t, h, images, n, p.many, k.way)
			rows = append(rows, r.row(fmt.Sprintf("%d nodes, %s", p.many, k.name), n.name, one))
			if ratio := float64(r.sent) / float64(one.sent); k.bound && ratio > 1.05 {
				t.Errorf("%d nodes %s, %s: %.3f of one node's origin bytes", p.many, k.name, n.name, ratio)
			}
		}
	}
	page := p.head() + table(rows)
	t.Log(page)
	if *figuresFile != "" {
		check(t, os.WriteFile(*figuresFile, []byte(page), 0o644))
	}
}

// result is an outcome, and what the origin sent for it.
type result struct {
	outcome
	sent int64
}

// newOrigin makes a web server with images, behind a network. done ends both.
func newOrigin(t *testing.T, h *hub, images string, network faultproxy.Fault) (proxy *faultproxy.Proxy, done func()) {
	t.Helper()
	server := httptest.NewServer(http.FileServer(http.Dir(images)))
	err := h.do(func() (err error) {
		proxy, err = faultproxy.Start(hubAddr+":0", server.URL)
		return err
	})
	if err != nil {
		server.Close()
		t.Fatal(err)
	}
	proxy.Set(network)
	return proxy, func() {
		proxy.Close()
		server.Close()
	}
}

// run lets nodes boot from an origin of their own.
func (p plan) run(t *testing.T, h *hub, images string, n network, nodes int, w way) (r result) {
	t.Helper()
	proxy, done := newOrigin(t, h, images, n.Fault)
	defer done()
	f := newFleet(t, h, p.trace)
	f.start(t, proxy.URL()+"/images:root:1", nodes, w)
	r.outcome = f.boot(t)
	f.end(t)
	r.sent = proxy.Sent()
	return r
}

// buildImage makes an image of a disk in a layout below the test's directory, and returns the directory above that.
func buildImage(t *testing.T, disk *trace.Disk) string {
	t.Helper()
	dir := t.TempDir()
	l, err := image.CreateLayout(filepath.Join(dir, "images"))
	check(t, err)
	_, err = image.Build(t.Context(), l, "root:1", disk, disk.Bytes, image.BuildOptions{ChunkSize: chunkBytes})
	check(t, err)
	check(t, l.Close())
	return dir
}

// row is a line of the table.
func (r result) row(name, network string, one result) []string {
	var sums []time.Duration
	longest := time.Duration(0)
	for _, b := range r.boots {
		sums, longest = append(sums, b.Sum), max(longest, b.Longest)
	}
	slices.Sort(sums)
	median := (sums[(len(sums)-1)/2] + sums[len(sums)/2]) / 2
	return []string{
		name, network, fmt.Sprintf("%.2f MiB", float64(r.sent)/(1<<20)), fmt.Sprintf("%.3f", float64(r.sent)/float64(one.sent)),
		millis(r.wall), fmt.Sprintf("%.2f", float64(r.wall)/float64(one.wall)), millis(median), millis(longest),
	}
}

func millis(d time.Duration) string { return fmt.Sprintf("%.0f ms", d.Seconds()*1e3) }

// table writes a table, whose first line is its head.
func table(rows [][]string) string {
	var b strings.Builder
	for i, row := range rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(&b, "|%s\n", strings.Repeat(" --- |", len(row)))
		}
	}
	return b.String()
}

func (p plan) head() string {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		load = []byte("unknown size")
	}
	return fmt.Sprintf(`# Figures of many nodes

Written by %s on %s, with Go %s on %d CPUs, natively, beside a load of %s (one minute's, when it ended).

Nodes boot at once from one image at one origin. A node is a process with the daemon, its configuration file, its socket, a leaf store in a file, and a network namespace; a bridge connects the
namespaces. Its device was created over the socket, and is driven by the stand-in for the kernel's driver (%s): every read goes through the queue, the union, the cache and the network, and is
compared with what it should be. Reads are those of a recorded boot of Debian, %d of them, one after the other, as fast as it goes; the image is made up for that boot, as [figures-cache.md](figures-cache.md) says. All
processes are on this machine, with its CPUs between them, and so walls are about them rather than about a network; caches are empty, and all begin when the last one is ready.

Peers and appliance speak mutual TLS, with a certificate for each. Nodes that have peers all have the same list. The appliance is a process that runs what %s runs, in a namespace of its own. Nodes wait
for them for as long as it takes (%s), as nobody here has a CPU to itself that could be expected to answer in time; the rows with 600 ms are those of nodes that wait for as long as they do by default, and ask the origin then.
All else is as in a daemon whose configuration does not mention it, readahead included.

The image comes from a web server through the delaying proxy (%s): LAN is a delay of 0.2 ms before each answer, WAN one of 20 ms and 100 Mbit/s for all answers together. "Origin bytes" are those of its
answers, without headers, from the start of the nodes to their end: descriptions and chunk table of the image included.

`, "`make figures`", time.Now().UTC().Format(time.DateOnly), strings.TrimPrefix(runtime.Version(), "go"), runtime.NumCPU(), strings.Fields(string(load))[0],
		"`ublk/ublktest`", len(p.trace.Reads), "`coppice serve`", "`patience` of a minute", "`image/faultproxy`")
}
