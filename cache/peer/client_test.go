package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"coppice/cache"
)

// raw serves connections with a function that is called after a request's header has come.
func raw(t *testing.T, answer func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				header := make([]byte, 0, 4096)
				for !strings.HasSuffix(string(header), "\r\n\r\n") {
					b := make([]byte, 1)
					if _, err := c.Read(b); err != nil {
						return
					}
					header = append(header, b...)
				}
				answer(c)
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// drip writes a text in small pieces until the other side has had enough.
func drip(c net.Conn, text string, every time.Duration) {
	for {
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
		time.Sleep(every)
	}
}

// Whatever a peer answers, the try ends soon, takes no more memory than the chunk, and the peer is put aside.
func TestHostileAnswers(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n"
	text := func(s string) func(net.Conn) {
		return func(c net.Conn) { fmt.Fprint(c, s) }
	}
	half := strings.Repeat("x", 2048)
	var elsewhere atomic.Int32
	other := raw(t, func(c net.Conn) {
		elsewhere.Add(1)
		fmt.Fprint(c, head+"\r\n"+half+half)
	})
	for name, c := range map[string]struct {
		answer func(net.Conn)
		want   error
		state  State // "": on a machine that is busy, not to be told from others
	}{
		"closes":            {func(net.Conn) {}, nil, StateDown},
		"nonsense":          {text("hello\r\n\r\n"), nil, StateDown},
		"says nothing":      {func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }, nil, ""},
		"stops in the head": {func(c net.Conn) { text("HTTP/1.1 200")(c); _, _ = c.Read(make([]byte, 1)) }, nil, ""},
		"drips the head":    {func(c net.Conn) { text("HTTP/1.1 200 OK\r\nX: ")(c); drip(c, "y", 20*time.Millisecond) }, nil, ""},
		"huge head": {func(c net.Conn) {
			text("HTTP/1.1 200 OK\r\n")(c)
			drip(c, strings.Repeat("A: b\r\n", 1000), time.Millisecond)
		}, nil, StateDown},
		"stops in the body":  {func(c net.Conn) { text(head + "\r\n" + half)(c); _, _ = c.Read(make([]byte, 1)) }, nil, ""},
		"short body":         {text(head + "\r\n" + half), io.ErrUnexpectedEOF, StateDown},
		"drips the body":     {func(c net.Conn) { text(head + "\r\n")(c); drip(c, "x", 20*time.Millisecond) }, ErrSlow, StateSlow},
		"only promises":      {func(c net.Conn) { drip(c, "HTTP/1.1 102 Processing\r\n\r\n", 20*time.Millisecond) }, ErrSlow, StateSlow},
		"floods of promises": {func(c net.Conn) { drip(c, strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 100), time.Millisecond) }, ErrSlow, StateSlow},
		"huge length":        {text("HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n"), ErrProtocol, StateDown},
		"wrong length":       {text("HTTP/1.1 200 OK\r\nContent-Length: 4097\r\n\r\n" + half + half + "x"), ErrProtocol, StateDown},
		"no length":          {text("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + half + half), ErrProtocol, StateDown},
		"chunked":            {text("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n" + half + half + "\r\n0\r\n\r\n"), ErrProtocol, StateDown},
		"encoded":            {text(head + "Content-Encoding: gzip\r\n\r\n" + half + half), ErrProtocol, StateDown},
		"part":               {text("HTTP/1.1 206 Partial Content\r\nContent-Length: 4096\r\n\r\n" + half + half), ErrProtocol, StateDown},
		"redirect":           {text("HTTP/1.1 307 Temporary Redirect\r\nLocation: " + other + "/\r\nContent-Length: 0\r\n\r\n"), ErrProtocol, StateDown},
		"error":              {text("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"), ErrProtocol, StateDown},
		"forbidden":          {text("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), ErrProtocol, StateDown},
		"endless error": {func(c net.Conn) {
			text("HTTP/1.1 500 Internal Server Error\r\n\r\n")(c)
			drip(c, half, time.Millisecond)
		}, ErrProtocol, StateDown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			chunk := draw(20, 1, 4096).order[0]
			client := dial(t, prompt, raw(t, c.answer))
			took := start()
			_, err := take(client, chunk)
			if errors.Is(err, ErrSlow) { // or the machine is
				c.want, c.state = nil, StateSlow
			}
			if err == nil || isMiss(err) || took() > 1500*time.Millisecond || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%v after %s", err, took())
			}
			if s := only(t, client); s.State == StateReady || c.state != "" && s.State != c.state || s.Errors != 1 || s.Error == "" {
				t.Errorf("%+v", s)
			}
			if _, err := take(client, chunk); !isMiss(err) {
				t.Errorf("asked again: %v", err)
			}
			if elsewhere.Load() > 0 {
				t.Error("the redirect was followed")
			}
		})
	}
}

// A peer that is silent costs one wait, also of those who wait at the same time, and is back by itself.
func TestSilentPeerIsPutAside(t *testing.T) {
	pic := draw(21, 40, 4096)
	var silent atomic.Bool
	h := NewHandler(&shelf{picture: pic}, HandlerOptions{Log: quiet})
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if silent.Load() {
			<-r.Context().Done()
			return
		}
		h.ServeHTTP(w, r)
	}))
	c := dial(t, Options{Silence: defaultSilence}, url)
	if _, err := take(c, pic.order[0]); err != nil {
		t.Fatal(err)
	}
	silent.Store(true)
	took := start()
	ended := make(chan error, len(pic.order))
	for _, chunk := range pic.order {
		go func() {
			_, err := take(c, chunk)
			ended <- err
		}()
		time.Sleep(5 * time.Millisecond)
	}
	for range pic.order {
		if err := <-ended; err == nil {
			t.Error("nobody said anything")
		}
	}
	if took() > 2*time.Second {
		t.Errorf("took %s", took())
	}
	if s := only(t, c); s.State == StateReady || s.Errors != 1 {
		t.Errorf("%+v", s)
	}
	silent.Store(false)
	eventually(t, "it is back", func() bool { return only(t, c).State == StateReady })
	if _, err := take(c, pic.order[0]); err != nil {
		t.Error(err)
	}
}

// One who has to fetch is waited for as long as it says that it does.
func TestFetchesAreWaitedFor(t *testing.T) {
	pic := draw(22, 1, 4096)
	s := &shelf{picture: pic, held: never, delay: 400 * time.Millisecond}
	h := NewHandler(s, HandlerOptions{Log: quiet})
	url := serve(t, h)
	c := dial(t, Options{Silence: defaultSilence}, url)
	if _, err := take(c, pic.order[0]); err != nil {
		t.Fatal(err)
	}
	if p := only(t, c); p.State != StateReady || p.Latency < 350*time.Millisecond {
		t.Errorf("%+v", p)
	}
	s.delay = time.Hour
	c = dial(t, prompt, url)
	took := start()
	if _, err := take(c, pic.order[0]); !errors.Is(err, ErrSlow) || took() > 1500*time.Millisecond {
		t.Errorf("%v after %s", err, took())
	}
	if p := only(t, c); p.State != StateSlow {
		t.Errorf("%+v", p)
	}
}

func TestLiarIsPutAside(t *testing.T) {
	pic := draw(23, 2, 4096)
	s := &shelf{picture: pic}
	var lies atomic.Bool
	lies.Store(true)
	s.spoil = func(p []byte) {
		if lies.Load() {
			p[17] ^= 1
		}
	}
	c := dial(t, Options{liar: 20 * time.Millisecond}, serve(t, NewHandler(s, HandlerOptions{Log: quiet})))
	if _, err := take(c, pic.order[0]); !errors.Is(err, errWrong) {
		t.Fatal(err)
	}
	if p := only(t, c); p.State != StateLiar || p.Lies != 1 || !strings.Contains(p.Error, pic.order[0].Key.String()) {
		t.Errorf("%+v", p)
	}
	for range 10 {
		if _, err := take(c, pic.order[1]); !isMiss(err) {
			t.Errorf("asked again: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	lies.Store(false)
	eventually(t, "it is back", func() bool { return only(t, c).State == StateReady })
	if _, err := take(c, pic.order[0]); err != nil {
		t.Error(err)
	}
	c.Reject(cache.Chunk{Key: cache.Key{9}}) // which nobody gave
	if p := only(t, c); p.State != StateReady || p.Lies != 1 {
		t.Errorf("%+v", p)
	}
}

// One who has too much to do is left alone for a moment, and not put aside.
func TestBusyPeer(t *testing.T) {
	pic := draw(24, 1, 4096)
	h := NewHandler(&shelf{picture: pic}, HandlerOptions{MaxBytes: 1, Log: quiet})
	c := dial(t, Options{}, serve(t, h))
	if _, err := take(c, pic.order[0]); !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	leave := func(alone time.Duration) (before time.Time) {
		c.mu.Lock()
		defer c.mu.Unlock()
		before, c.list[0].busy = c.list[0].busy, time.Now().Add(alone)
		return before
	}
	if until := leave(time.Hour); until.IsZero() || time.Until(until) > busyTime {
		t.Errorf("left alone until %s", until)
	}
	if _, err := take(c, pic.order[0]); !isMiss(err) {
		t.Fatal(err)
	}
	h.mu.Lock()
	h.o.MaxBytes = 1 << 20
	h.mu.Unlock()
	leave(busyTime)
	eventually(t, "it is asked again", func() bool { _, err := take(c, pic.order[0]); return err == nil })
	if p := only(t, c); p.State != StateReady || p.Busy != 1 || p.Errors != 0 {
		t.Errorf("%+v", p)
	}
}

// An appliance that has too much to do is asked again for as long as there is patience; otherwise all would go to the origin at once. A peer is not: others fetch instead.
func TestBusyApplianceIsWaitedFor(t *testing.T) {
	pic := draw(46, 1, 4096)
	shelf := NewHandler(&shelf{picture: pic}, HandlerOptions{Log: quiet})
	var busy atomic.Int64
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if busy.Add(-1) >= 0 {
			answer(w, http.StatusServiceUnavailable)
			return
		}
		shelf.ServeHTTP(w, r)
	}))
	c := dial(t, Options{All: true}, url)
	busy.Store(3)
	if _, err := take(c, pic.order[0]); err != nil {
		t.Error(err)
	}
	if p := only(t, c); p.State != StateReady || p.Busy != 3 || p.Hits != 1 {
		t.Errorf("%+v", p)
	}
	busy.Store(1 << 30)
	hasty := dial(t, Options{All: true, Patience: 50 * time.Millisecond}, url)
	if _, err := take(hasty, pic.order[0]); !errors.Is(err, ErrBusy) {
		t.Errorf("without patience: %v", err)
	}
	busy.Store(1)
	peer := dial(t, Options{}, url)
	if _, err := take(peer, pic.order[0]); !errors.Is(err, ErrBusy) {
		t.Errorf("a peer: %v", err)
	}
}

// A node that is in the list under a name that it does not know finds out at the first request, and takes its place in the order then.
func TestNodeFindsItselfInTheList(t *testing.T) {
	pic := draw(25, 200, 64)
	id := NewID()
	own := serve(t, NewHandler(&shelf{picture: pic}, HandlerOptions{ID: id, Log: quiet}))
	other := serve(t, NewHandler(&shelf{picture: pic}, HandlerOptions{ID: NewID(), Log: quiet}))
	c := dial(t, Options{ID: id, Self: "http://node-1"}, own, other)
	if s := c.Stats(); s.Self != "" || len(s.Peers) != 2 {
		t.Errorf("before: %+v", s)
	}
	for _, chunk := range pic.order {
		if _, err := take(c, chunk); err != nil && !isMiss(err) && !errors.Is(err, errSelf) {
			t.Fatal(err)
		}
	}
	s := c.Stats()
	if s.Self != own || len(s.Peers) != 1 || s.Peers[0].URL != other || s.Peers[0].Hits < 60 {
		t.Errorf("after: %+v", s)
	}
}

// A peer that has not opened the image is not asked for it for a while, and is when it has.
func TestRootThatIsNotOpenThere(t *testing.T) {
	pic := draw(26, 1, 4096)
	s := &shelf{picture: draw(27, 1, 4096), held: never}
	c := dial(t, Options{}, serve(t, NewHandler(s, HandlerOptions{Log: quiet})))
	for range 20 {
		if _, err := take(c, pic.order[0]); !isMiss(err) {
			t.Fatal(err)
		}
		c.mu.Lock()
		k := c.list[0].roots
		p, known := k[pic.root]
		p.until = p.until.Add(time.Hour) // however busy the machine is
		k[pic.root] = p
		c.mu.Unlock()
		if !known || p.open {
			t.Fatalf("%+v is known of it", p)
		}
	}
	if p := only(t, c); p.Requests != 1 || p.Misses != 1 || p.State != StateReady {
		t.Errorf("%+v", p)
	}
	if _, err := take(c, s.order[0]); err != nil {
		t.Errorf("of another image: %v", err)
	}
}

func TestAbsenceIsAskedForSeldom(t *testing.T) { synctest.Test(t, askForAbsence) }

func askForAbsence(t *testing.T) {
	k := roots{}
	k.learn(cache.Key{1}, false)
	if !k.lacks(cache.Key{1}) || k.has(cache.Key{1}) || k.lacks(cache.Key{2}) {
		t.Error("not what was learnt")
	}
	waits := []time.Duration{}
	for range 7 {
		p := k[cache.Key{1}]
		waits = append(waits, p.wait)
		k.learn(cache.Key{1}, false) // at the same time: nothing new
		p.until = time.Now().Add(-time.Millisecond)
		k[cache.Key{1}] = p
		k.learn(cache.Key{1}, false)
	}
	if got := fmt.Sprint(waits); got != "[500ms 1s 2s 4s 5s 5s 5s]" {
		t.Error(got)
	}
	k.learn(cache.Key{1}, true)
	if k.lacks(cache.Key{1}) || !k.has(cache.Key{1}) {
		t.Error("not open")
	}
	for i := range 3 * maxRoots {
		k.learn(cache.Key{byte(i), byte(i >> 8)}, false)
	}
	if len(k) > maxRoots {
		t.Errorf("%d are remembered", len(k))
	}
}

// Who gives up is not a reason to put anybody aside.
func TestCallerMayGiveUp(t *testing.T) {
	pic := draw(28, 1, 4096)
	c := dial(t, Options{}, serve(t, NewHandler(&shelf{picture: pic, held: never, delay: time.Minute}, HandlerOptions{Log: quiet})))
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	took := start()
	if err := c.Get(ctx, pic.order[0], make([]byte, 4096)); !errors.Is(err, context.DeadlineExceeded) || took() > time.Second {
		t.Errorf("%v after %s", err, took())
	}
	if p := only(t, c); p.State != StateReady || p.Errors != 0 {
		t.Errorf("%+v", p)
	}
}

func TestClosedClientIsQuiet(t *testing.T) {
	pic := draw(29, 1, 4096)
	c := dial(t, Options{}, raw(t, func(c net.Conn) {}))
	if _, err := take(c, pic.order[0]); err == nil {
		t.Fatal("nothing was said")
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	for name, open := range map[string]func() (*Client, error){
		"no certificates": func() (*Client, error) { return New([]string{"https://a"}, Options{}) },
		"no URL":          func() (*Client, error) { return New([]string{"a"}, Options{Insecure: true}) },
		"twice":           func() (*Client, error) { return New([]string{"http://a", "http://a:80"}, Options{Insecure: true}) },
		"bad self":        func() (*Client, error) { return New(nil, Options{Insecure: true, Self: "me"}) },
	} {
		if c, err := open(); err == nil {
			c.Close()
			t.Errorf("%s is taken", name)
		}
	}
}

func BenchmarkTurns(b *testing.B) {
	c := dial(b, Options{Self: urlsOf(1)[0]}, urlsOf(20)...)
	chunk := draw(1, 1, 64).order[0]
	for b.Loop() {
		c.mu.Lock()
		c.fetchers(chunk)
		c.mu.Unlock()
	}
}
