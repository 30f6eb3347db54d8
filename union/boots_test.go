package union

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

var writeBootGolden = flag.Bool("write-boot-golden", false, "write testdata/boots-v1 anew: only before version 1 is released")

// bootStore is a store with the layers web over the sealed layer base over the sealed layer older, and other over the root.
func bootStore(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "leaf")
	if _, err := Format(path, FormatOptions{SizeBytes: MinStoreBytes, UUID: testUUID}); err != nil {
		t.Fatal(err)
	}
	withStore(t, path, func(s *Store) error {
		return errors.Join(addSealed(s, "older", ""), addSealed(s, "base", "older"), addLayer(s, "web", "base"), addLayer(s, "other", ""))
	})
	return path
}

func withStore(t *testing.T, path string, do func(*Store) error) {
	t.Helper()
	s, err := OpenStore(path, StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(do(s), s.Close()); err != nil {
		t.Fatal(err)
	}
}

// addLayer makes a layer over a sealed one, or over the root.
func addLayer(s *Store, name, from string) error {
	o := LayerOptions{Create: true, From: from, Pin: goldenBase().Pin()}
	if from == "" {
		o.SizeBytes = goldenSize
	}
	l, err := s.OpenLayer(name, o)
	if err == nil {
		l.Release()
	}
	return err
}

// addSealed makes a sealed layer over another one, or over the root.
func addSealed(s *Store, name, from string) error {
	const active = "active"
	if err := addLayer(s, active, from); err != nil {
		return err
	}
	l, err := s.OpenLayer(active, LayerOptions{Pin: goldenBase().Pin()})
	if err != nil {
		return err
	}
	f, err := l.PrepareFreeze(name)
	if err == nil {
		_, err = f.Seal()
	}
	l.Release()
	return errors.Join(err, s.RemoveLayer(active))
}

func count(t *testing.T, path, layer string, tries int) BootPlan {
	t.Helper()
	p, err := CountBoot(path, layer, tries, Digest{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A layer whose place was taken is booted from again where that is asked for, and gives its place again where it fails again.
func TestRetryBoot(t *testing.T) {
	path := bootStore(t)
	for range 2 {
		count(t, path, "web", 1)
	}
	if err := RetryBoot(path, "web"); err != nil {
		t.Fatal(err)
	}
	r, err := ReadBoots(path)
	if got := r.Layers["web"]; err != nil || got.Layer != "web" || got.Attempts != 0 || !slices.Equal(got.Failed, []string{"web.boot1"}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, want := range []string{"web<", "web.boot1<base"} {
		if p := count(t, path, "web", 1); p.Layer+"<"+p.From != want {
			t.Errorf("booted %s<%s, want %s", p.Layer, p.From, want)
		}
	}
}

// After as many boots as it is told a machine boots from what is below its layer, one level after the other, and stays with the root.
func TestFailedBootsFallBack(t *testing.T) {
	path := bootStore(t)
	var got []string
	for range 9 {
		p := count(t, path, "web", 2)
		got = append(got, fmt.Sprintf("%s<%s %d %s %v", p.Layer, p.From, p.Attempts, p.Replaced, p.Exhausted))
		withStore(t, path, func(s *Store) error { // what the boot does
			if _, err := s.LayerInfo(p.Layer); errors.Is(err, ErrNoLayer) {
				return addLayer(s, p.Layer, p.From)
			}
			return nil
		})
	}
	want := []string{
		"web< 1  false", "web< 2  false", "web.boot1<base 1 web false", "web.boot1<base 2  false", "web.boot2<older 1 web.boot1 false",
		"web.boot2<older 2  false", "web.boot3< 1 web.boot2 false", "web.boot3< 2  false", "web.boot3< 3  true",
	}
	if !slices.Equal(got, want) {
		t.Errorf("booted\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r, err := ReadBoots(path)
	if err != nil || !slices.Equal(r.Layers["web"].Failed, []string{"web.boot1", "web.boot2"}) {
		t.Errorf("%+v, %v", r, err)
	}
	withStore(t, path, func(s *Store) error { // what failed is there
		_, err := s.LayerInfo("web")
		return err
	})
}

// A good boot ends the count, also one of a replacement, and also while the store is open.
func TestGoodBootEndsTheCount(t *testing.T) {
	path := bootStore(t)
	if counted, err := BootGood(path, "web"); counted || err != nil {
		t.Errorf("never booted: %v, %v", counted, err)
	}
	for range 3 {
		count(t, path, "web", 3)
	}
	p := count(t, path, "web", 3)
	withStore(t, path, func(s *Store) error {
		if err := addLayer(s, p.Layer, p.From); err != nil {
			return err
		}
		for _, want := range []bool{true, false} {
			if counted, err := BootGood(path, p.Layer); counted != want || err != nil {
				t.Errorf("counted %v, %v; want %v", counted, err, want)
			}
		}
		return nil
	})
	if p := count(t, path, "web", 3); p.Layer != "web.boot1" || p.Attempts != 1 {
		t.Errorf("%+v", p)
	}
	for range 5 {
		if p := count(t, path, "other", 0); p.Layer != "other" {
			t.Errorf("replaced without being asked to: %+v", p)
		}
	}
	if p := count(t, path, "never made", 1); p.Layer != "never made" {
		t.Errorf("%+v", p)
	}
	if p := count(t, path, "never made", 1); p.Layer != "never made" || !p.Exhausted {
		t.Errorf("a layer that does not exist is replaced: %+v", p)
	}
}

// The record is what a map would be, however it is torn in between; the rest of the store stays.
func TestBootsModel(t *testing.T) {
	path := bootStore(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		clearBoots(rt, path)
		model, former := map[string]int{}, map[string]int{}
		steps := rapid.SliceOfN(rapid.SampledFrom([]string{"web", "other", "third", "good web", "good other", "tear"}), 1, 30).Draw(rt, "steps")
		for _, step := range steps {
			name, good := strings.CutPrefix(step, "good ")
			now := map[string]int{}
			for k, v := range model {
				now[k] = v
			}
			switch {
			case step == "tear":
				if tear(rt, path) {
					model, former = former, map[string]int{}
				}
			case good && model[name] > 0:
				now[name] = 0
				former, model = model, now
				fallthrough
			case good:
				if _, err := BootGood(path, name); err != nil {
					rt.Fatal(err)
				}
			default:
				now[name]++
				former, model = model, now
				if err := ChangeBoots(path, name, func(s *BootState) error { s.Attempts++; return nil }); err != nil {
					rt.Fatal(err)
				}
			}
			r, err := ReadBoots(path)
			if err != nil {
				rt.Fatal(err)
			}
			for k, v := range model {
				if r.Layers[k].Attempts != v {
					rt.Fatalf("%s: %d attempts, want %d, after %v", k, r.Layers[k].Attempts, v, steps)
				}
			}
		}
	})
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range before {
		if block := int64(i >> blockShift); before[i] != after[i] && !slices.Contains(bootBlocks[:], block) {
			t.Fatalf("byte %d of block %d is changed", i, block)
		}
	}
}

func clearBoots(t *rapid.T, path string) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range bootBlocks {
		if _, err := f.WriteAt(make([]byte, blockSize), block<<blockShift); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// tear spoils the end of the newer of two blocks, as a write that did not complete does, and reports whether there were two.
func tear(t *rapid.T, path string) bool {
	b, err := openBoots(path, os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.f.Close() }()
	if b.newer < 0 || b.block[1-b.newer].generation == 0 {
		return false
	}
	p := alignedBuffer(blockSize)
	_, err = b.f.ReadAt(p, bootBlocks[b.newer]<<blockShift)
	p[bootTextAt+2] ^= 1
	if err == nil {
		_, err = b.f.WriteAt(p, bootBlocks[b.newer]<<blockShift)
	}
	if err != nil {
		t.Fatal(err)
	}
	return true
}

// The bytes of a record never change, and other stores' records, later versions and small stores are told apart.
func TestBootBlockFormat(t *testing.T) {
	path := bootStore(t)
	for _, layer := range []string{"web", "web", "other"} {
		count(t, path, layer, 1)
	}
	const golden = "testdata/boots-v1"
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	blocks := slices.Concat(all[bootBlocks[0]<<blockShift:][:blockSize], all[bootBlocks[1]<<blockShift:][:blockSize])
	if *writeBootGolden {
		if err := os.WriteFile(golden, blocks, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || !bytes.Equal(blocks, want) {
		t.Errorf("the blocks are others than those of version 1: %v", err)
	}
	put := func(block int64, p []byte) {
		t.Helper()
		if err := os.WriteFile(path, slices.Concat(all[:block<<blockShift], p, all[(block+1)<<blockShift:]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	later := bytes.Clone(want[:blockSize])
	le.PutUint16(later[8:], bootVersion+1)
	le.PutUint32(later[bootSumField:], blockChecksum(later, bootSumField))
	put(bootBlocks[0], later)
	if _, err := ReadBoots(path); !errors.Is(err, ErrVersion) {
		t.Errorf("later version: %v", err)
	}
	foreign := alignedBuffer(blockSize)
	(&bootBlock{9, []byte("{}")}).encode(foreign, uuid.Max)
	put(bootBlocks[0], foreign)
	if r, err := ReadBoots(path); err != nil || len(r.Layers) == 0 {
		t.Errorf("another store's record: %+v, %v", r, err)
	}
	if err := os.WriteFile(path, make([]byte, MinStoreBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := CountBoot(path, "web", 1, Digest{}); !errors.Is(err, ErrNotFormatted) {
		t.Errorf("no store: %v", err)
	}
}

// A store remembers some layers, of which the one that is booted from is one, and has room for the longest names.
func TestBootRecordIsBounded(t *testing.T) {
	path := bootStore(t)
	for i := range 3 * maxBootNames {
		name := fmt.Sprintf("%0*d", MaxLayerName, i)
		err := ChangeBoots(path, name, func(s *BootState) error {
			s.Layer, s.From = name, name
			s.Failed = slices.Repeat([]string{name}, 2*maxFailed)
			s.Attempts++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		r, err := ReadBoots(path)
		if err != nil || len(r.Layers) > maxBootNames || r.Layers[name].Attempts != 1 {
			t.Fatalf("%d layers, %v", len(r.Layers), err)
		}
	}
}
