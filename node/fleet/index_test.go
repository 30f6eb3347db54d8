package fleet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"coppice/cache/trace"
	"coppice/idxshare"
	"coppice/image"
	"coppice/image/faultproxy"
)

// rareName is that of one file alone in the index that nodes ask.
const rareName = "wherever-this-one-lies.conf"

// listBytes is what each node takes of the origin itself, at most: twice the list of what the place has, by which it knows which index the image has now. All else one takes for all.
const listBytes = 2 << 10

// firstBytes is what is read of any index, about: the beginning of the database and of what it is asked for.
const firstBytes = 128 << 10

// soon is how long a node may take from when it has the root until it has an answer of the index: a goal of the figures.
const soon = time.Second

// askers is how many nodes ask an index, of how many files. alone is how many times one node does so.
type askers struct{ nodes, files, alone int }

// TestFleetAsksIndex lets nodes that have only just attached a root ask its index, all at once: together they take of the origin what one node takes, and none takes all of the index.
// Without -figures it does so with few nodes and files, else it adds to what TestFleet
// has written.
func TestFleetAsksIndex(t *testing.T) {
	a := askers{5, 20_000, 1}
	switch {
	case *figuresFile != "":
		a = askers{64, 300_000, 5}
	case testing.Short():
		a = askers{3, 5_000, 1}
	}
	boot, err := trace.Load("../../cache/trace/testdata/boot-1.txt")
	check(t, err)
	p, h := plan{trace: boot.Beginning(10, chunkBytes)}, newHub(t)
	images := buildImage(t, trace.NewDisk(p.trace))
	stored := a.attach(t, images)
	rows := [][]string{{"", "origin bytes", "of one node's", "of the index, at the first answer", "first answer", "last answer"}}
	measure := func(what string, times int, ask func(*process) error) (one asked) {
		row := func(name string, r asked) {
			rows = append(rows, []string{
				name + ": " + what, fmt.Sprintf("%.2f MiB", float64(r.sent)/(1<<20)), fmt.Sprintf("%.3f", float64(r.sent)/float64(one.sent)), fmt.Sprintf("%.1f %%", 100*float64(r.early)/float64(stored)),
				millis(r.fastest), millis(r.slowest),
			})
		}
		one = p.asksAlone(t, h, images, times, ask)
		row("1 node", one)
		for _, k := range []namedWay{withPeers, withAppliance} {
			r := p.asks(t, h, images, a.nodes, k.way, ask)
			row(fmt.Sprintf("%d nodes, %s", a.nodes, k.name), r)
			if each := float64(r.sent-one.sent) / float64(a.nodes-1); each > listBytes {
				t.Errorf("%d nodes %s, %s: %d origin bytes, and %d for one: each one more took %.0f, and needs %d", a.nodes, k.name, what, r.sent, one.sent, each, listBytes)
			}
		}
		return one
	}
	one := measure("find a file", a.alone, a.ask)
	if one.sent >= stored/2+firstBytes {
		t.Errorf("one node took %d bytes for its answer, of an index of %d: it fetched most of it", one.sent, stored)
	}
	if *figuresFile != "" && one.fastest > soon {
		t.Errorf("one node had its answer after %s, and should have it within %s", one.fastest, soon)
	}
	measure("read all of it", 1, readAll)
	page := a.head(stored) + table(rows)
	t.Log(page)
	if *figuresFile != "" {
		f, err := os.OpenFile(*figuresFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		check(t, err)
		_, err = f.WriteString("\n" + page)
		check(t, errors.Join(err, f.Close()))
	}
}

func (a askers) head(stored int64) string {
	return fmt.Sprintf(`## The index of a root

Such nodes, %d of them, ask the index of their root, all at once, when all have their device: they find one of %d names, or read all of the index, which is stored in %.2f MiB. Nothing of it was fetched before.
The network is WAN, and nodes wait for peers and appliance for up to a minute. Origin bytes are those from the question to the last answer; "of the index" compares those until the first answer with all of it, which nobody waits for. In the
first row a node asks alone, %d times or more, each time with an empty cache: the first answer is the fastest of these, the last one the slowest, and the goal is at most %s. In the others all nodes share the %d CPUs, which is what their answers are about.

A node itself asks the origin which index the image has now: here for the list of what the place has, some 700 bytes. What describes the index, and all that is in it, is read from the origin once for all nodes.

`, a.nodes, a.files, float64(stored)/(1<<20), a.alone, soon, runtime.NumCPU())
}

// attach makes an index of so many files and attaches it to the image. It returns how many bytes of it are stored.
func (a askers) attach(t *testing.T, images string) int64 {
	t.Helper()
	l, err := image.OpenLayout(filepath.Join(images, "images"))
	check(t, err)
	defer l.Close()
	im, err := image.Open(t.Context(), l, "root:1")
	check(t, err)
	defer im.Close()
	path := filepath.Join(t.TempDir(), "index")
	w, err := idxshare.Create(path, idxshare.Header{Source: im.ContentRoot().String(), Size: 1 << 40})
	check(t, err)
	defer w.Abort()
	check(t, w.AddVolume(idxshare.Volume{Length: 1 << 40, Type: "ext4", BlockSize: 4096, Mapped: true}))
	rng := rand.New(rand.NewPCG(8, 1))
	directory := uint64(2)
	check(t, w.AddFile(&idxshare.File{Inode: directory, Mode: idxshare.ModeDirectory | 0o755}))
	for i := range a.files {
		f := idxshare.File{Inode: uint64(i) + 12, Mode: idxshare.ModeRegular | 0o644, Size: rng.Int64N(1 << 20), Links: 1, Mtime: rng.Int64N(1e18)}
		name := fmt.Sprintf("lib%x.so.%d", rng.Uint32(), i)
		switch {
		case i == a.files/2:
			name = rareName
		case i%20 == 0:
			f.Mode, name = idxshare.ModeDirectory|0o755, fmt.Sprintf("d%d", i)
		}
		check(t, w.AddFile(&f))
		check(t, w.AddName(idxshare.Name{Parent: directory, Name: []byte(name), Inode: f.Inode}))
		if f.IsDirectory() && rng.IntN(2) == 0 {
			directory = f.Inode
		} else if f.IsDirectory() {
			directory = 2
		}
		check(t, w.AddExtent(idxshare.Extent{Inode: f.Inode, Physical: int64(i) * 300, Length: 1 + rng.Int64N(256)}))
	}
	check(t, w.Finish())
	file, err := os.Open(path)
	check(t, err)
	defer file.Close()
	st, err := file.Stat()
	check(t, err)
	r, err := image.AttachIndex(t.Context(), im, l, image.IndexFile{Root: im.ContentRoot(), Content: file, SizeBytes: st.Size()}, image.IndexOptions{})
	check(t, err)
	return r.StoredBytes
}

// ask finds the one file with its name through the node's daemon, as the command does.
func (a askers) ask(p *process) (err error) {
	ctx := context.Background()
	info, err := p.client().Index(ctx, deviceName)
	if err != nil {
		return err
	}
	r := p.client().IndexReader(ctx, info)
	x, err := idxshare.OpenReaderAt(r, r.Size())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	var found []uint64
	err = x.View().Find(ctx, idxshare.Query{Pattern: rareName[4:20]}, func(m idxshare.Match) error {
		found = append(found, m.Inode)
		return nil
	})
	if want := uint64(a.files/2) + 12; err == nil && !slices.Equal(found, []uint64{want}) {
		err = fmt.Errorf("found the inodes %d, not %d", found, want)
	}
	return err
}

// readAll reads all of the index through the node's daemon.
func readAll(p *process) error {
	ctx := context.Background()
	info, err := p.client().Index(ctx, deviceName)
	if err != nil {
		return err
	}
	r := p.client().IndexReader(ctx, info)
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.NewSectionReader(r, 0, r.Size()), make([]byte, 1<<20))
	if err == nil && n != info.Statement.SizeBytes {
		err = fmt.Errorf("read %d bytes of %d", n, info.Statement.SizeBytes)
	}
	return err
}

// asked is what came of asking: how long the fastest and the slowest node waited for its answer, and what the origin sent for it, until the first answer and until the last.
type asked struct {
	fastest, slowest time.Duration
	early, sent      int64
}

// asksAlone lets one node after the other ask, each of them with an empty cache and an origin of its own. What the origin sent is that of the one that took most. Of several it lets more ask until one had its answer soon:
// a machine may have other things to do for a while.
func (p plan) asksAlone(t *testing.T, h *hub, images string, times int, ask func(*process) error) (r asked) {
	t.Helper()
	for i := 0; i < times || times > 1 && r.fastest > soon && i < 4*times; i++ {
		next := p.asks(t, h, images, 1, way{}, ask)
		if i == 0 {
			r = next
		}
		r.fastest, r.slowest = min(r.fastest, next.fastest), max(r.slowest, next.slowest)
		r.early, r.sent = max(r.early, next.early), max(r.sent, next.sent)
	}
	return r
}

// asks starts nodes with a device each and lets all of them ask at once.
func (p plan) asks(t *testing.T, h *hub, images string, nodes int, w way, ask func(*process) error) (r asked) {
	t.Helper()
	proxy, done := newOrigin(t, h, images, faultproxy.WAN)
	defer done()
	f := newFleet(t, h, p.trace)
	f.start(t, proxy.URL()+"/images:root:1", nodes, w)
	var (
		wait sync.WaitGroup
		took = make([]time.Duration, nodes)
		errs = make([]error, nodes)
	)
	var first sync.Once
	before, i := proxy.Sent(), 0
	for _, n := range f.all {
		if n.runDir == "" {
			continue
		}
		at := i
		wait.Go(func() {
			began := time.Now()
			errs[at], took[at] = ask(n), time.Since(began)
			first.Do(func() { r.early = proxy.Sent() - before })
		})
		i++
	}
	wait.Wait()
	r.fastest = took[0]
	for i, d := range took {
		if errs[i] != nil {
			t.Errorf("node %d: %v", i, errs[i])
		}
		r.fastest, r.slowest = min(r.fastest, d), max(r.slowest, d)
	}
	r.sent = proxy.Sent() - before
	f.end(t)
	return r
}
