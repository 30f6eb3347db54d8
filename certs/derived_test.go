package certs_test

import (
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"coppice/ca"
	"coppice/certs"
)

func TestDerivedIsMadeAnewWhenFilesChange(t *testing.T) {
	f, renew := authority(t)
	var dropped []*certs.Content
	d := certs.Derive(f, func(c *certs.Content) *certs.Content { return c }, func(c *certs.Content) { dropped = append(dropped, c) })
	first := d.Current()
	if d.Current() != first || len(dropped) > 0 {
		t.Fatalf("nothing has changed, and %d were dropped", len(dropped))
	}
	renew()
	next := d.Current()
	if now, _ := f.Current(); next == first || next != now {
		t.Error("not made of what the files say now")
	}
	if !slices.Equal(dropped, []*certs.Content{first}) {
		t.Errorf("%d dropped, and not the first one alone", len(dropped))
	}
}

// Whoever asks after a change gets what was made of it, whoever made it.
func TestDerivedIsOneForAll(t *testing.T) {
	f, renew := authority(t)
	made := 0 // guarded by the value's lock, as the race detector sees
	d := certs.Derive(f, func(*certs.Content) int { made++; return made }, nil)
	for want := 1; want <= 2; want++ {
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				if got := d.Current(); got != want {
					t.Errorf("%d instead of %d", got, want)
				}
			})
		}
		group.Wait()
		renew()
	}
}

func TestDerivedOfNoFiles(t *testing.T) {
	made := 0
	d := certs.Derive(nil, func(c *certs.Content) bool { made++; return c == nil }, func(bool) { t.Error("dropped") })
	for range 2 {
		if !d.Current() || made != 1 {
			t.Errorf("made %d times", made)
		}
	}
}

// authority returns the files of a node's certificate, and what renews it.
func authority(t *testing.T) (*certs.Files, func()) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "authority")
	if _, err := ca.Init(dir, ca.Options{}); err != nil {
		t.Fatal(err)
	}
	issue := func(renew bool) ca.Pair {
		pair, err := ca.Issue(dir, ca.Options{Name: "node", Lifetime: time.Hour, Renew: renew})
		if err != nil {
			t.Fatal(err)
		}
		return pair
	}
	pair := issue(false)
	f, err := certs.Open(filepath.Join(dir, "ca.crt"), pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	return f, func() { issue(true) }
}
