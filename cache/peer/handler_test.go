package peer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"coppice/cache"
	"coppice/image"
)

func get(t *testing.T, url string) (*http.Response, []byte) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, data
}

func TestHandlerGivesWhatIsThere(t *testing.T) {
	pic := draw(1, 3, 64<<10)
	here := pic.order[0]
	s := &shelf{picture: pic, held: func(c cache.Chunk) bool { return c.Key == here.Key }}
	h := NewHandler(s, HandlerOptions{Log: quiet})
	url := serve(t, h)
	for _, held := range []bool{true, false} {
		if resp, data := get(t, url+target(here, held)); resp.StatusCode != 200 || !bytes.Equal(data, pic.chunks[here.Key]) {
			t.Errorf("%s, %d bytes", resp.Status, len(data))
		}
	}
	there := pic.order[1]
	if resp, data := get(t, url+target(there, true)); resp.StatusCode != 404 || len(data) > 0 || s.fetches > 0 {
		t.Errorf("not to be fetched: %s, %d bytes, %d fetches", resp.Status, len(data), s.fetches)
	}
	if resp, data := get(t, url+target(there, false)); resp.StatusCode != 200 || !bytes.Equal(data, pic.chunks[there.Key]) || s.fetches != 1 {
		t.Errorf("to be fetched: %s, %d bytes, %d fetches", resp.Status, len(data), s.fetches)
	}
	there.Root[0]++
	if resp, _ := get(t, url+target(there, false)); resp.StatusCode != 404 {
		t.Errorf("of another root: %s", resp.Status)
	}
	s.err = errors.New("the origin is gone")
	if resp, _ := get(t, url+target(pic.order[2], false)); resp.StatusCode != 502 {
		t.Errorf("not fetched: %s", resp.Status)
	}
	want := HandlerStats{Requests: 6, Hits: 3, Misses: 2, Errors: 1, Bytes: 3 * 64 << 10}
	eventually(t, "all answers have ended", func() bool { return h.Stats().Now == 0 })
	if got := h.Stats(); got != want {
		t.Errorf("%+v, not %+v", got, want)
	}
}

func TestHandlerRefuses(t *testing.T) {
	pic := draw(2, 1, 4096)
	h := NewHandler(&shelf{picture: pic}, HandlerOptions{ID: "me", Log: quiet})
	good := target(pic.order[0], false)
	for name, c := range map[string]struct {
		method, to, id string
		status         int
	}{
		"nothing wrong":      {"GET", good, "you", 200},
		"itself":             {"GET", good, "me", 508},
		"long id":            {"GET", good, strings.Repeat("x", 65), 400},
		"post":               {"POST", good, "", 405},
		"delete":             {"DELETE", good, "", 405},
		"elsewhere":          {"GET", "/v1/chunks", "", 404},
		"above":              {"GET", "/", "", 404},
		"deeper":             {"GET", chunksPath + pic.order[0].Key.String() + "/x?len=4096", "", 404},
		"no length":          {"GET", chunksPath + pic.order[0].Key.String(), "", 400},
		"no digest":          {"GET", chunksPath + "x?len=4096", "", 400},
		"other hash":         {"GET", chunksPath + "sha512:" + strings.Repeat("0", 64) + "?len=4096", "", 400},
		"length 0":           {"GET", strings.Replace(good, "len=4096", "len=0", 1), "", 400},
		"negative length":    {"GET", strings.Replace(good, "len=4096", "len=-1", 1), "", 400},
		"huge length":        {"GET", strings.Replace(good, "len=4096", "len=1048577", 1), "", 400},
		"length beyond int":  {"GET", strings.Replace(good, "len=4096", "len=99999999999999999999", 1), "", 400},
		"length twice":       {"GET", good + "&len=4096", "", 400},
		"negative index":     {"GET", strings.Replace(good, "index=0", "index=-1", 1), "", 400},
		"huge index":         {"GET", strings.Replace(good, "index=0", fmt.Sprintf("index=%d", int64(maxIndex)), 1), "", 400},
		"root without index": {"GET", strings.Replace(good, "&index=0", "", 1), "", 400},
		"zero root":          {"GET", strings.Replace(good, pic.root.String(), image.Digest{}.String(), 1), "", 400},
		"zero chunk":         {"GET", strings.Replace(good, pic.order[0].Key.String(), image.Digest{}.String(), 1), "", 400},
		"something else":     {"GET", good + "&path=/etc/passwd", "", 400},
		"bad escape":         {"GET", good + "&%zz", "", 400},
		"long query":         {"GET", good + "&len=" + strings.Repeat("0", maxQuery), "", 400},
	} {
		r := httptest.NewRequest(c.method, "http://peer"+c.to, nil)
		if c.id != "" {
			r.Header.Set(idHeader, c.id)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("%s: %d, not %d", name, w.Code, c.status)
		}
		if c.status != 200 && c.status != 405 && strings.Contains(w.Body.String(), "sha") {
			t.Errorf("%s: echoes %q", name, w.Body)
		}
	}
}

// gate is a [Local] that holds requests up until it is opened.
type gate struct{ open chan struct{} }

func (g gate) Serve(ctx context.Context, _ cache.Chunk, _ []byte) error {
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestHandlerIsBounded(t *testing.T) {
	for name, o := range map[string]HandlerOptions{"requests": {MaxRequests: 3}, "bytes": {MaxBytes: 3*4096 + 1}} {
		g := gate{make(chan struct{})}
		o.Log = quiet
		h := NewHandler(g, o)
		url := serve(t, h)
		chunk := draw(3, 1, 4096).order[0]
		ended := make(chan int, 3)
		for range 3 {
			go func() {
				resp, err := http.Get(url + target(chunk, false))
				if err != nil {
					ended <- 0
					return
				}
				resp.Body.Close()
				ended <- resp.StatusCode
			}()
		}
		eventually(t, "three are answered", func() bool { return h.Stats().Now == 3 })
		if resp, _ := get(t, url+target(chunk, false)); resp.StatusCode != 503 {
			t.Errorf("%s: the fourth got %s", name, resp.Status)
		}
		close(g.open)
		for range 3 {
			if status := <-ended; status != 200 {
				t.Errorf("%s: status %d", name, status)
			}
		}
		eventually(t, "the answers have ended", func() bool { return h.Stats().Now == 0 })
		if resp, _ := get(t, url+target(chunk, false)); resp.StatusCode != 200 {
			t.Errorf("%s: afterwards %s", name, resp.Status)
		}
	}
}

// Who finds all places taken waits for one, in line.
func TestPlacesAreWaitedFor(t *testing.T) {
	pic := draw(45, 16, 4096)
	h := NewHandler(&shelf{picture: pic, held: never, delay: 10 * time.Millisecond}, HandlerOptions{MaxRequests: 2, Log: quiet})
	url := serve(t, h)
	statuses := make(chan int)
	for _, chunk := range pic.order {
		go func() {
			resp, err := http.Get(url + target(chunk, false))
			if err != nil {
				statuses <- 0
				return
			}
			resp.Body.Close()
			statuses <- resp.StatusCode
		}()
	}
	for range pic.order {
		if status := <-statuses; status != 200 {
			t.Errorf("status %d", status)
		}
	}
	if s := h.Stats(); s.Refused > 0 || s.Hits != int64(len(pic.order)) {
		t.Errorf("%+v", s)
	}
	eventually(t, "the answers have ended", func() bool { return h.Stats().Now == 0 })
}

// A fetch ends with the connection of the only one who waits for it, and when it has taken too long.
func TestFetchEndsWithWhoWantsIt(t *testing.T) {
	h := NewHandler(gate{}, HandlerOptions{MaxTime: 200 * time.Millisecond, Log: quiet})
	url := serve(t, h)
	chunk := draw(4, 1, 4096).order[0]
	if resp, _ := get(t, url+target(chunk, false)); resp.StatusCode != 502 {
		t.Errorf("%s", resp.Status)
	}
	h.o.MaxTime = time.Hour
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", target(chunk, false))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 102 ") {
		t.Errorf("while it is fetched: %q, %v", line, err)
	}
	conn.Close()
	eventually(t, "the fetch has ended", func() bool { return h.Stats().Now == 0 })
}

func TestRequestsWithBodiesAreRefused(t *testing.T) {
	url := serve(t, NewHandler(&shelf{picture: draw(5, 1, 4096)}, HandlerOptions{Log: quiet}))
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/chunks/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx")
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	data, err := io.ReadAll(conn)
	if err != nil || !bytes.HasPrefix(data, []byte("HTTP/1.1 413 ")) {
		t.Errorf("%q, %v", data, err)
	}
}

// A connection beyond the bound takes the place of the one that has been idle for longest, and is closed where all are in use.
func TestConnectionsAreBounded(t *testing.T) {
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &boundedListener{Listener: at, most: 2}
	wait, used, idle := make(chan struct{}), make(chan struct{}), make(chan struct{}, 64)
	s := http.Server{
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				used <- struct{}{}
				<-wait
			}
		}),
		ConnState: func(c net.Conn, state http.ConnState) {
			if l.changed(c, state); state == http.StateIdle {
				idle <- struct{}{}
			}
		},
	}
	go func() { _ = s.Serve(l) }()
	defer s.Close()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", at.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
	ask := func(c net.Conn, path string) { fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path) }
	hear := func(c net.Conn) error { // the whole answer, which is short
		_, err := c.Read(make([]byte, 1024))
		return err
	}
	speak := func(c net.Conn) error {
		ask(c, "/")
		err := hear(c)
		if err == nil {
			<-idle
		}
		return err
	}
	a, b := dial(), dial()
	if err := errors.Join(speak(a), speak(b), speak(a)); err != nil {
		t.Fatal(err)
	}
	c := dial()
	if err := speak(c); err != nil {
		t.Errorf("a third, with two that are idle: %v", err)
	}
	if err := speak(a); err != nil {
		t.Errorf("the one that was used last: %v", err)
	}
	if err := hear(b); err == nil {
		t.Error("three are open")
	}
	ask(a, "/wait")
	ask(c, "/wait")
	<-used
	<-used
	if err := speak(dial()); err == nil {
		t.Error("a third is served where two are in use")
	}
	close(wait)
	if err := errors.Join(hear(a), hear(c)); err != nil {
		t.Errorf("the ones that were in use: %v", err)
	}
	a.Close()
	eventually(t, "there is room again", func() bool { return speak(dial()) == nil })
}

// A node whose connections were closed for those of others notices nothing of it.
func TestManyNodesShareFewConnections(t *testing.T) {
	pic := draw(44, 64, 4096)
	s, err := Listen("127.0.0.1:0", NewHandler(&shelf{picture: pic}, HandlerOptions{Log: quiet}), ServerOptions{MaxConnections: 8, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	nodes := make([]*Client, 16)
	for i := range nodes {
		nodes[i] = dial(t, Options{}, "http://"+s.Addr().String())
	}
	for _, chunk := range pic.order {
		for i, c := range nodes {
			if _, err := take(c, chunk); err != nil {
				t.Fatalf("node %d: %v", i, err)
			}
		}
	}
	for i, c := range nodes {
		if p := c.Stats().Peers[0]; p.State != StateReady || p.Errors > 0 || int(p.Hits) != len(pic.order) {
			t.Errorf("node %d: %+v", i, p)
		}
	}
}

// No request makes the handler panic, and what it takes is what was meant.
func FuzzRequest(f *testing.F) {
	c := draw(6, 1, 4096).order[0]
	for _, held := range []bool{true, false} {
		to := target(c, held)
		digest, query, _ := strings.Cut(strings.TrimPrefix(to, chunksPath), "?")
		f.Add(digest, query)
	}
	f.Add("sha256:", "len=1&root=&index=")
	f.Fuzz(func(t *testing.T, digest, query string) {
		c, err := parseRequest(digest, query)
		if err != nil {
			if !errors.Is(err, ErrBadRequest) || c != (cache.Chunk{}) {
				t.Errorf("%v, %v", c, err)
			}
			return
		}
		if c.Len < 1 || c.Len > image.MaxChunkSize || c.Index < 0 || c.Index >= maxIndex || c.Key == (image.Digest{}) {
			t.Errorf("%+v", c)
		}
		held := c.Root == image.Digest{}
		again, query, _ := strings.Cut(strings.TrimPrefix(target(c, held), chunksPath), "?")
		if other, err := parseRequest(again, query); err != nil || other != c {
			t.Errorf("%+v, %v, not %+v", other, err, c)
		}
	})
}
