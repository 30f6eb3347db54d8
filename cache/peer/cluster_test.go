package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coppice/ca"
	"coppice/cache"
	"coppice/certs"
	"coppice/image"
	"coppice/image/faultproxy"
)

// origin is an image that counts what is read of it.
type origin struct {
	*picture
	size  int
	bytes atomic.Int64
}

func newOrigin(seed uint64, chunks int) *origin {
	o := &origin{picture: draw(seed, chunks, 64<<10)}
	o.size = chunks * 64 << 10
	return o
}

func (o *origin) Size() int64               { return int64(o.size) }
func (o *origin) ChunkSize() int            { return 64 << 10 }
func (o *origin) ContentRoot() image.Digest { return o.root }

func (o *origin) Digests(_ context.Context, first int64, d []image.Digest) error {
	for i := range d {
		d[i] = o.order[first+int64(i)].Key
	}
	return nil
}

func (o *origin) content(off, n int) []byte {
	var all []byte
	for i := off >> 16; i<<16 < off+n; i++ {
		all = append(all, o.chunks[o.order[i].Key]...)
	}
	return all[off&(1<<16-1):][:n]
}

func (o *origin) Read(ctx context.Context, p []byte, off int64) error {
	time.Sleep(time.Millisecond)
	o.bytes.Add(int64(len(p)))
	copy(p, o.content(int(off), len(p)))
	return ctx.Err()
}

// times returns how many times the content was read since it was asked before.
func (o *origin) times() float64 { return float64(o.bytes.Swap(0)) / float64(o.size) }

// member is a node with a cache, a server, and a client of its peers.
type member struct {
	t      *testing.T
	url    string // of the server
	late   atomic.Pointer[Handler]
	server *Server
	client *Client
	cache  *cache.Cache
	root   *cache.Root
}

// patient peers are never put aside because the machine of the test is busy.
var patient = Options{Silence: time.Minute, Patience: time.Minute}

// node starts a node's server. It gets its peers, and its cache, by join.
func node(t *testing.T, files *certs.Files) *member {
	t.Helper()
	m := &member{t: t}
	var err error
	m.server, err = Listen("127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.late.Load().ServeHTTP(w, r)
	}), ServerOptions{TLS: files, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.server.Close() })
	m.url = map[bool]string{true: "http://", false: "https://"}[files == nil] + m.server.Addr().String()
	return m
}

// join makes the cache. The list has the node itself too.
func (m *member) join(o Options, list ...string) {
	m.t.Helper()
	o.ID = NewID()
	if o.Self == "" {
		o.Self = m.url
	}
	m.client = dial(m.t, o, list...)
	var err error
	m.cache, err = cache.New(cache.Options{MemoryBytes: 64 << 20, Peers: m.client, PeersTime: m.client.o.Patience + 100*time.Millisecond, Log: quiet})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { m.cache.Close() })
	m.late.Store(NewHandler(m.cache, HandlerOptions{ID: o.ID, Log: quiet}))
}

func (m *member) open(o cache.Origin) *cache.Reader {
	m.root = m.cache.Open(o)
	m.t.Cleanup(m.root.Close)
	return m.root.Reader()
}

// sweep reads all of an image, from one chunk on and around, 128 KiB at a time, and compares. at is called at each step in percent.
func sweep(v *cache.Reader, o *origin, from int, at func(percent int)) (slowest time.Duration, err error) {
	const step = 128 << 10
	p := make([]byte, step)
	n := o.size / step
	for i := range n {
		if at != nil {
			at(100 * i / n)
		}
		off := (from + i) % n * step
		took := start()
		if err := v.Read(context.Background(), p, int64(off)); err != nil {
			return slowest, fmt.Errorf("read at %d: %w", off, err)
		}
		slowest = max(slowest, took())
		if !bytes.Equal(p, o.content(off, step)) {
			return slowest, fmt.Errorf("read at %d: %w", off, errWrong)
		}
	}
	return slowest, nil
}

func cluster(t *testing.T, n int) []*member {
	t.Helper()
	ours := authority(t)
	var all []*member
	var list []string
	for i := range n {
		m := node(t, ours(fmt.Sprintf("node-%d", i), both()))
		all, list = append(all, m), append(list, m.url)
	}
	for i, m := range all {
		o := patient
		o.TLS = ours(fmt.Sprintf("client-%d", i), ca.Options{})
		m.join(o, list...)
	}
	return all
}

// Three nodes that read the same image at the same time read it from the origin once, all together.
func TestClusterReadsTheOriginOnce(t *testing.T) {
	o := newOrigin(50, 200)
	var work sync.WaitGroup
	for i, m := range cluster(t, 3) {
		v := m.open(o)
		work.Go(func() {
			if _, err := sweep(v, o, 17*i, nil); err != nil {
				t.Errorf("node %d: %v", i, err)
			}
			if s := m.cache.Stats(); s.Peers.Hits == 0 || s.Peers.Errors+s.Peers.Rejected > 0 {
				t.Errorf("node %d: %+v", i, s.Peers)
			}
		})
	}
	work.Wait()
	if times := o.times(); times < 1 || times > 1.05 {
		t.Errorf("the origin was read %.2f times", times)
	}
}

// The second node, which opens the image when the first has read it, takes it from there, also what it is the first for, and so does the third.
func TestNodesThatComeLaterReadWhatIsThere(t *testing.T) {
	o := newOrigin(51, 200)
	for i, m := range cluster(t, 3) {
		v := m.open(o)
		if _, err := sweep(v, o, 0, nil); err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
		if times := o.times(); i == 0 && times != 1 || i > 0 && times > 0.05 {
			t.Errorf("for node %d the origin was read %.2f times", i, times)
		}
	}
}

// Nodes that begin one after the other, while those before are still reading, read the origin little more than once.
func TestNodesThatBeginOneAfterTheOther(t *testing.T) {
	o := newOrigin(58, 300)
	all := cluster(t, 5)
	begin := make([]chan struct{}, len(all)+1)
	for i := range begin {
		begin[i] = make(chan struct{})
	}
	close(begin[0])
	var work sync.WaitGroup
	for i, m := range all {
		next := sync.OnceFunc(func() { close(begin[i+1]) })
		work.Go(func() {
			<-begin[i]
			_, err := sweep(m.open(o), o, 0, func(percent int) {
				if percent >= 10 {
					next()
				}
			})
			if err != nil {
				t.Errorf("node %d: %v", i, err)
			}
		})
	}
	work.Wait()
	// Who asks before a peer has opened the image takes it that the peer has not for a while, and reads the origin: with five nodes on a busy machine that
	// has come to 0.12 of it.
	if times := o.times(); times < 1 || times > 1.3 {
		t.Errorf("the origin was read %.2f times", times)
	}
}

// A node that comes back with nothing in its cache gets it from the others.
func TestNodeThatComesBackEmpty(t *testing.T) {
	o := newOrigin(52, 100)
	all := cluster(t, 2)
	for i, m := range all {
		if _, err := sweep(m.open(o), o, 0, nil); err != nil {
			t.Fatalf("node %d: %v", i, err)
		}
	}
	o.times()
	if err := all[0].cache.Drop(false); err != nil {
		t.Fatal(err)
	}
	if _, err := sweep(all[0].root.Reader(), o, 0, nil); err != nil {
		t.Fatal(err)
	}
	if times := o.times(); times > 0.05 {
		t.Errorf("the origin was read %.2f times", times)
	}
}

// A peer that is lost, or lies, makes no read fail, none wrong, and none slow.
func TestClusterWithABadPeer(t *testing.T) {
	for name, fault := range map[string]faultproxy.Fault{
		"reset":     {Reset: true},
		"blackhole": {Blackhole: true},
		"lying":     {Flip: true},
		"cut short": {Truncate: true},
		"slow":      {Rate: 10_000},
		"late":      {Delay: 3 * time.Second},
	} {
		for _, when := range []int{10, 50, 90} {
			t.Run(fmt.Sprintf("%s at %d", name, when), func(t *testing.T) {
				t.Parallel()
				badPeer(t, fault, when)
			})
		}
	}
}

func badPeer(t *testing.T, fault faultproxy.Fault, when int) {
	o := newOrigin(53, 100)
	good, bad := node(t, nil), node(t, nil)
	proxy, err := faultproxy.Start("127.0.0.1:0", bad.url)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	// A third peer that is gone from the beginning.
	list := []string{good.url, proxy.URL(), "http://127.0.0.1:1"}
	good.join(prompt, list...)
	bad.join(Options{Self: proxy.URL(), Silence: defaultSilence, Patience: defaultPatience}, list...)
	bad.open(o)
	v := good.open(o)
	slowest, err := sweep(v, o, 0, func(percent int) {
		if percent == when {
			proxy.Set(fault)
		}
	})
	if err != nil || slowest > 2*time.Second {
		t.Errorf("the slowest read took %s, and %v", slowest, err)
	}
	for _, p := range good.client.Stats().Peers {
		if p.State == StateReady && p.Errors+p.Lies > 0 && time.Since(p.Since) > time.Second {
			t.Errorf("still asked: %+v", p)
		}
	}
	if s := v.Stats(); s.Errors > 0 {
		t.Errorf("%+v", s)
	}
}

// wire is a relay of TCP that can be cut, or hang, under TLS.
type wire struct {
	l    net.Listener
	hang atomic.Bool
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w := &wire{l: l}
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				continue
			}
			go w.pass(a, b)
			go w.pass(b, a)
		}
	}()
	return w
}

// pass copies until one side ends. While the wire hangs nothing comes through, and nobody is told.
func (w *wire) pass(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	p := make([]byte, 16<<10)
	for {
		n, err := from.Read(p)
		for w.hang.Load() {
			time.Sleep(time.Millisecond)
		}
		if err != nil {
			return
		}
		if _, err := to.Write(p[:n]); err != nil {
			return
		}
	}
}

// A peer behind TLS that is killed, or whose network is gone, costs one try, and is asked again when it is back.
func TestPeerIsLostAndComesBack(t *testing.T) {
	ours := authority(t)
	o := newOrigin(54, 400)
	a, b := node(t, ours("a", both())), node(t, ours("b", both()))
	w := newWire(t, b.server.Addr().String())
	list := []string{a.url, "https://" + w.l.Addr().String()}
	a.join(Options{TLS: ours("client-a", ca.Options{}), Silence: defaultSilence, Patience: defaultPatience}, list...)
	b.join(Options{TLS: ours("client-b", ca.Options{}), Self: list[1]}, list...)
	b.open(o)
	v := a.open(o)
	var lost time.Duration
	slowest, err := sweep(v, o, 0, func(percent int) {
		switch percent {
		case 30:
			w.hang.Store(true)
		case 60:
			if w.hang.Swap(false) {
				took := start()
				eventually(t, "it is back", func() bool { return only(t, a.client).State == StateReady })
				lost = max(took(), 1)
			}
		}
	})
	if err != nil || slowest > 2*time.Second {
		t.Errorf("the slowest read took %s, and %v", slowest, err)
	}
	if p := only(t, a.client); lost == 0 || p.Hits == 0 || p.Errors == 0 {
		t.Errorf("%+v", p)
	}
	if err := b.server.Close(); err != nil {
		t.Error(err)
	}
	if err := a.cache.Drop(false); err != nil {
		t.Fatal(err)
	}
	if slowest, err := sweep(v, o, 0, nil); err != nil || slowest > 2*time.Second {
		t.Errorf("with the peer killed: the slowest read took %s, and %v", slowest, err)
	}
}

// A cluster grows while it is used: the new node is in the file of the list, and gets its share.
func TestClusterGrowsThroughTheFile(t *testing.T) {
	o := newOrigin(55, 100)
	a, b := node(t, nil), node(t, nil)
	path := filepath.Join(t.TempDir(), "peers")
	if err := os.WriteFile(path, []byte(a.url), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := Open(path, Options{Insecure: true, Self: a.url, Log: quiet, Silence: time.Minute, Patience: time.Minute, look: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := cache.New(cache.Options{MemoryBytes: 64 << 20, Peers: client, PeersTime: time.Minute, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	root := c.Open(o)
	defer root.Close()
	b.join(Options{}, a.url, b.url)
	b.open(o)
	grow := sync.OnceFunc(func() {
		err := errors.Join(os.WriteFile(path+".new", []byte(a.url+"\n"+b.url), 0o600), os.Rename(path+".new", path))
		if err != nil {
			t.Error(err)
		}
		eventually(t, "the list is read", func() bool { return len(client.Stats().Peers) == 1 })
	})
	_, err = sweep(root.Reader(), o, 0, func(percent int) {
		if percent >= 50 {
			grow()
		}
	})
	if p := only(t, client); err != nil || p.Hits == 0 {
		t.Errorf("%v, %+v", err, p)
	}
}

// A list that names a node twice, or nodes that know different lists, make nobody wait for anybody.
func TestListsThatDiffer(t *testing.T) {
	o := newOrigin(56, 100)
	a, b := node(t, nil), node(t, nil)
	other := newWire(t, a.server.Addr().String())
	alias := "http://" + other.l.Addr().String()
	a.join(prompt, b.url, alias) // a does not know that it is the second one
	b.join(prompt, a.url, alias) // b is not in its own list
	var work sync.WaitGroup
	for i, v := range []*cache.Reader{a.open(o), b.open(o)} {
		work.Go(func() {
			if slowest, err := sweep(v, o, 0, nil); err != nil || slowest > 2*time.Second {
				t.Errorf("node %d: the slowest read took %s, and %v", i, slowest, err)
			}
		})
	}
	work.Wait()
}

// What an appliance fetches for one node is there for the others, and when it is lost nodes read the origin.
func TestApplianceIsKilled(t *testing.T) {
	ours := authority(t)
	o := newOrigin(57, 200)
	appliance := node(t, ours("appliance", both()))
	appliance.join(Options{TLS: ours("itself", ca.Options{})})
	appliance.open(o)
	reads := func(name string, at func(int)) {
		t.Helper()
		client := dial(t, Options{TLS: ours(name, ca.Options{}), All: true, Patience: time.Minute, Silence: time.Minute}, appliance.url)
		c, err := cache.New(cache.Options{MemoryBytes: 64 << 20, Appliance: client, ApplianceTime: time.Minute, Log: quiet})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		root := c.Open(o)
		defer root.Close()
		if slowest, err := sweep(root.Reader(), o, 0, at); err != nil || slowest > 2*time.Second {
			t.Errorf("%s: the slowest read took %s, and %v", name, slowest, err)
		}
	}
	for i := range 3 {
		reads(fmt.Sprintf("node-%d", i), nil)
	}
	if times := o.times(); times < 1 || times > 1.05 {
		t.Errorf("the origin was read %.2f times", times)
	}
	kill := sync.OnceFunc(func() { appliance.server.http.Close() })
	reads("node-3", func(percent int) {
		if percent >= 50 {
			kill()
		}
	})
	if times := o.times(); times < 0.4 || times > 0.6 {
		t.Errorf("after the half the origin was read %.2f times", times)
	}
}

var (
	_ cache.Origin = (*origin)(nil)
	_ Local        = (*cache.Cache)(nil)
)
