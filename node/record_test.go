package node

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"coppice/image"
)

func TestRecordsRoundTrip(t *testing.T) {
	s := records{t.TempDir()}
	want := record{
		Version: recordVersion, Phase: phaseActive, BootID: "b", Token: 1<<64 - 1, NewLayer: true, CreateMS: 1.5,
		Device: CreateRequest{Name: "web1", Root: "/r", Store: "/s", Layer: "l", SizeBytes: 512, Queues: 1, Depth: 2, BlockSize: 512, ID: 3,
			Roots: []string{"/r", "oci:/i:a:1"}, Hydrate: true},
		Manifests: map[string]image.Digest{"oci:/i:a:1": {7}},
		Created:   time.Date(2026, 11, 20, 1, 2, 3, 0, time.UTC),
	}
	for range 2 { // to replace one, too
		if err := s.save(want); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.load()
	if err != nil || len(all) != 1 || all[0].err != nil || !reflect.DeepEqual(all[0].record, want) {
		t.Fatalf("loaded %+v, %v", all, err)
	}
	for range 2 { // the second time there is none
		if err := s.remove("web1"); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := s.load(); err != nil || len(all) != 0 {
		t.Fatalf("loaded %+v, %v", all, err)
	}
}

func TestLoadRemovesWhatACrashLeft(t *testing.T) {
	s := records{t.TempDir()}
	torn := filepath.Join(s.dir, tempPrefix+"123")
	put(t, torn, "{")
	put(t, filepath.Join(s.dir, "README"), "no record")
	all, err := s.load()
	if err != nil || len(all) != 0 {
		t.Fatalf("loaded %+v, %v", all, err)
	}
	if _, err := os.Stat(torn); err == nil {
		t.Error("temporary file left")
	}
}

func TestFailedSaveLeavesTheOldRecord(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.json")
	put(t, filepath.Join(path, "in the way"), "") // a directory cannot be replaced by a file
	if err := writeAtomically(path, []byte("new")); err == nil {
		t.Fatal("replaced a directory")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left %v, %v", entries, err)
	}
}
