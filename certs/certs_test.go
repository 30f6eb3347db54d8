package certs_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"coppice/ca"
	"coppice/certs"
)

func TestFilesAreReadAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "authority")
	_, err := ca.Init(dir, ca.Options{})
	pair, issueErr := ca.Issue(dir, ca.Options{Name: "node", Lifetime: time.Hour})
	if err := errors.Join(err, issueErr); err != nil {
		t.Fatal(err)
	}
	f, err := certs.Open(filepath.Join(dir, "ca.crt"), pair.Cert, pair.Key)
	if err != nil {
		t.Fatal(err)
	}
	first, gen := f.Current()
	if again, same := f.Current(); again != first || same != gen {
		t.Error("nothing has changed")
	}
	if _, err := first.Fit(time.Now()); err != nil {
		t.Error(err)
	}
	for _, at := range []time.Time{time.Now().Add(2 * time.Hour), time.Now().Add(-48 * time.Hour)} {
		if _, err := first.Fit(at); !errors.Is(err, certs.ErrTime) {
			t.Errorf("at %s: %v", at, err)
		}
	}
	if err := os.Rename(pair.Key, pair.Key+".away"); err != nil {
		t.Fatal(err)
	}
	if now, same := f.Current(); now != first || same != gen {
		t.Error("without a key the pair from before is used")
	}
	if _, err := ca.Issue(dir, ca.Options{Name: "node", Renew: true}); err != nil {
		t.Fatal(err)
	}
	now, next := f.Current()
	if now == first || next == gen || now.Pair.Leaf.Equal(first.Pair.Leaf) {
		t.Error("not read again")
	}
	if now.Authorities().Equal((&certs.Content{}).Authorities()) {
		t.Error("no authority")
	}
}

func TestFilesThatAreOfNoUse(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, paths := range [][3]string{{text, "", ""}, {text + ".not", "", ""}, {"", text, text}, {"", text, ""}, {"", "", text}} {
		if _, err := certs.Open(paths[0], paths[1], paths[2]); err == nil {
			t.Errorf("%q are taken", paths)
		}
	}
	if f, err := certs.Open("", "", ""); err != nil {
		t.Error(err)
	} else if c, _ := f.Current(); c.CA != nil || c.Pair != nil {
		t.Errorf("%+v", c)
	}
}
