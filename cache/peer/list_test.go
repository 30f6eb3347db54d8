package peer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseList(t *testing.T) {
	urls, err := ParseList([]byte("# peers\nhttps://Node-1.example\n\n  https://node-2.example:8443/ # the second\r\nhttps://[FD00::0:7]:443\nhttps://10.0.0.1"), false)
	want := []string{"https://node-1.example:443", "https://node-2.example:8443", "https://[fd00::7]:443", "https://10.0.0.1:443"}
	if err != nil || !slices.Equal(urls, want) {
		t.Errorf("%q, %v", urls, err)
	}
	if urls, err := ParseList(nil, false); err != nil || len(urls) > 0 {
		t.Errorf("%q, %v", urls, err)
	}
	if urls, err := ParseList([]byte("http://a"), true); err != nil || !slices.Equal(urls, []string{"http://a:80"}) {
		t.Errorf("%q, %v", urls, err)
	}
	var many strings.Builder
	for i := range MaxPeers + 1 {
		fmt.Fprintf(&many, "https://n%d\n", i)
	}
	for text, says := range map[string]string{
		"https://a\nnode-2":                      "line 2",
		"http://a":                               "TLS",
		"ftp://a":                                "https",
		"https://":                               "host",
		"https://a:0":                            "port",
		"https://a:65536":                        "port",
		"https://a:x":                            "URL",
		"https://a/b":                            "only host",
		"https://u:secret@a":                     "only host",
		"https://a?x":                            "only host",
		"https://a#b":                            "", // a comment
		"https://a\nhttps://A:443":               "line 2: https://a:443 is in line 1",
		"https://a b":                            "URL",
		"https://-a":                             "no host",
		"https://[fe80::1%25eth0]":               "no host",
		"https://" + strings.Repeat("a", maxURL): "longer",
		strings.Repeat("#", maxList+1):           "longer",
		many.String():                            "more than 1024",
	} {
		_, err := ParseList([]byte(text), false)
		if says == "" && err == nil {
			continue
		}
		if !errors.Is(err, ErrBadList) || !strings.Contains(err.Error(), says) {
			t.Errorf("%.40q: %v, not about %s", text, err, says)
		}
	}
}

func FuzzList(f *testing.F) {
	f.Add([]byte("# peers\nhttps://node-1\nhttps://[fd00::7]:8443/ # x\n"), false)
	f.Add([]byte("http://a\nhttps://b:1"), true)
	f.Fuzz(func(t *testing.T, data []byte, insecure bool) {
		urls, err := ParseList(data, insecure)
		if err != nil {
			if !errors.Is(err, ErrBadList) || urls != nil {
				t.Errorf("%q, %v", urls, err)
			}
			return
		}
		again, err := ParseList([]byte(strings.Join(urls, "\n")), insecure)
		if err != nil || !slices.Equal(again, urls) {
			t.Errorf("%q, %v, not %q", again, err, urls)
		}
	})
}

// The list is read again when it changes, and the last good one stays.
func TestListChangesWhileItIsUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "peers")
	write := func(text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	pic := draw(7, 1, 4096)
	url := serve(t, NewHandler(&shelf{picture: pic}, HandlerOptions{Log: quiet}))
	c, err := Open(path, Options{Insecure: true, Log: quiet, Silence: time.Minute, Patience: time.Minute, look: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peers := func(n int) func() bool { return func() bool { return len(c.Stats().Peers) == n } }
	fails := func(about string) func() bool { return func() bool { return strings.Contains(c.Stats().Error, about) } }
	if s := c.Stats(); len(s.Peers) > 0 || !strings.Contains(s.Error, "no such file") {
		t.Errorf("without a file: %+v", s)
	}
	if _, err := take(c, pic.order[0]); !isMiss(err) {
		t.Errorf("without a file: %v", err)
	}
	write(url)
	eventually(t, "it is read", peers(1))
	if _, err := take(c, pic.order[0]); err != nil || c.Stats().Error != "" {
		t.Errorf("%v, %+v", err, c.Stats())
	}
	write(url + "\nnonsense")
	eventually(t, "nonsense is told", fails("line 2"))
	if s := only(t, c); s.URL != url || s.Hits != 1 {
		t.Errorf("%+v", s)
	}
	write(url + "\nhttp://127.0.0.1:1")
	eventually(t, "another is there", peers(2))
	if s := c.Stats(); s.Peers[0].Hits != 1 || s.Error != "" {
		t.Errorf("what was counted is gone: %+v", s)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is gone", fails("no such file"))
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is a pipe", fails("not a file"))
	if n := len(c.Stats().Peers); n != 2 {
		t.Errorf("%d peers", n)
	}
	write("# nobody")
	eventually(t, "it is empty", peers(0))
	if _, err := take(c, pic.order[0]); !isMiss(err) {
		t.Errorf("with an empty list: %v", err)
	}
}
