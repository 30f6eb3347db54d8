package faultproxy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// rig is a proxy in front of a server with two files.
type rig struct {
	*Proxy
	file, old []byte
	client    *http.Client
}

func newRig(t *testing.T) *rig {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	g := &rig{file: make([]byte, 100_000), old: []byte("the older version")}
	for i := range g.file {
		g.file[i] = byte(rng.Uint32())
	}
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content := g.file
		if r.URL.Path == "/old" {
			content = g.old
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	t.Cleanup(origin.Close)
	var err error
	if g.Proxy, err = Start("127.0.0.1:0", origin.URL); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	g.client = &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return g
}

// get asks for a range of 20,000 bytes.
func (g *rig) get(path string, from int) (*http.Response, []byte, error) {
	req, err := http.NewRequest(http.MethodGet, g.URL()+path, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, from+19_999))
	resp, err := g.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp, data, err
}

// differ counts the bytes that are not those of the range.
func (g *rig) differ(data []byte, from int) (n int) {
	for i := range data {
		if data[i] != g.file[from+i] {
			n++
		}
	}
	return n
}

func TestNothingGoesWrong(t *testing.T) {
	g := newRig(t)
	resp, data, err := g.get("/new", 1000)
	if err != nil || resp.StatusCode != 206 || len(data) != 20_000 || g.differ(data, 1000) > 0 || g.Requests() != 1 || g.URL() != "http://"+g.Addr() {
		t.Errorf("%v, %v, %d bytes", resp, err, len(data))
	}
}

func TestBadBytes(t *testing.T) {
	g := newRig(t)
	for name, c := range map[string]struct {
		fault     Fault
		bytes     int
		different int // at least
		header    string
		err       error
	}{
		"flip":        {Fault{Flip: true}, 20_000, 1, "bytes 1000-20999/100000", nil},
		"truncate":    {Fault{Truncate: true}, 10_000, 0, "bytes 1000-20999/100000", io.ErrUnexpectedEOF},
		"wrong range": {Fault{WrongRange: true}, 20_000, 10_000, "bytes 488-20487/100000", nil},
		"misdirect":   {Fault{Misdirect: true}, 20_000, 10_000, "bytes 1000-20999/100000", nil},
		"not this":    {Fault{Flip: true, Only: func(r *http.Request) bool { return r.URL.Path == "/old" }}, 20_000, 0, "bytes 1000-20999/100000", nil},
	} {
		g.Set(c.fault)
		resp, data, err := g.get("/new", 1000)
		if !errors.Is(err, c.err) || resp.Header.Get("Content-Range") != c.header || len(data) != c.bytes {
			t.Errorf("%s: %v, range %q, %d bytes", name, err, resp.Header.Get("Content-Range"), len(data))
			continue
		}
		if n := g.differ(data, 1000); n < c.different || c.different < 2 && n != c.different {
			t.Errorf("%s: %d bytes differ", name, n)
		}
	}
	g.Set(Fault{Misdirect: true})
	if _, data, err := g.get("/new", 0); err != nil || g.differ(data, 0) < 10_000 {
		t.Errorf("at the beginning: %v", err)
	}
}

func TestOtherAnswers(t *testing.T) {
	g := newRig(t)
	g.Set(Fault{Paths: map[string]string{"/new": "/old"}})
	if resp, err := g.client.Get(g.URL() + "/new"); err != nil {
		t.Error(err)
	} else if data, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(data, g.old) {
		t.Errorf("%q, %v", data, err)
	}
	g.Set(Fault{Redirect: "http://192.0.2.1"})
	if resp, _, err := g.get("/new?x=1", 0); err != nil || resp.StatusCode != 307 || resp.Header.Get("Location") != "http://192.0.2.1/new?x=1" {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestLateAndSlow(t *testing.T) {
	g := newRig(t)
	for _, f := range []Fault{{Delay: 100 * time.Millisecond}, {Rate: 200_000}} {
		g.Set(f)
		began := time.Now()
		_, data, err := g.get("/new", 0)
		if took := time.Since(began); err != nil || g.differ(data, 0) > 0 || took < 100*time.Millisecond {
			t.Errorf("%+v: %v after %s", f, err, took)
		}
	}
}

// Answers that share a link take as long together as one after the other.
func TestLink(t *testing.T) {
	g := newRig(t)
	_, all, err := g.get("/new", 0)
	if err != nil {
		t.Fatal(err)
	}
	const each = 50 * time.Millisecond
	g.Set(Fault{Link: int(int64(len(all)) * int64(time.Second) / int64(each))})
	began := time.Now()
	var answers sync.WaitGroup
	for range 4 {
		answers.Go(func() {
			if _, data, err := g.get("/new", 0); err != nil || g.differ(data, 0) > 0 {
				t.Errorf("%v", err)
			}
		})
	}
	answers.Wait()
	if took := time.Since(began); took < 4*each-each/10 {
		t.Errorf("four answers of %v each took %v", each, took)
	}
}

// under returns how a request ends that is under way when a fault comes.
func under(g *rig, f Fault) <-chan error {
	g.Set(Fault{Rate: 10_000})
	ended := make(chan error, 1)
	began := g.Requests()
	go func() {
		_, _, err := g.get("/new", 0)
		ended <- err
	}()
	for g.Requests() == began {
		time.Sleep(time.Millisecond)
	}
	g.Set(f)
	return ended
}

func TestResets(t *testing.T) {
	g := newRig(t)
	if err := <-under(g, Fault{Reset: true}); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v", err)
	}
	if _, _, err := g.get("/new", 0); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	g.Set(Fault{})
	if _, _, err := g.get("/new", 0); err != nil {
		t.Error(err)
	}
}

func TestSilence(t *testing.T) {
	g := newRig(t)
	g.client.Timeout = 300 * time.Millisecond
	for _, err := range []error{<-under(g, Fault{Blackhole: true}), <-under(g, Fault{Blackhole: true})} {
		if err == nil || !strings.Contains(err.Error(), "Timeout") && !strings.Contains(err.Error(), "deadline") {
			t.Errorf("%v", err)
		}
	}
	if _, _, err := g.get("/new", 0); err == nil {
		t.Error("a black hole answers")
	}
}

func TestBadTargets(t *testing.T) {
	for _, target := range []string{"", "::", "/dir"} {
		if _, err := Start("127.0.0.1:0", target); err == nil {
			t.Errorf("%q is taken", target)
		}
	}
	if _, err := Start("256.0.0.1:0", "http://127.0.0.1:1"); err == nil {
		t.Error("an address of nobody is listened at")
	}
}
