package union

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// silentBase is a root that says nothing until it is told to, or interrupted.
type silentBase struct {
	gatedBase
	mu          sync.Mutex
	silent      bool
	interrupted bool
	waiting     []func(error)
}

func (b *silentBase) ReadAsync(p []byte, off int64, done func(Origins, error)) {
	end := func(err error) {
		if err == nil {
			copy(p, b.content[off:])
		}
		done(FromRoot, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.interrupted:
		go end(context.Canceled)
	case b.silent:
		b.waiting = append(b.waiting, end)
	default:
		go end(nil)
	}
}

func (b *silentBase) asked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.waiting)
}

func (b *silentBase) Interrupt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.interrupted = true
	for _, end := range b.waiting {
		go end(context.Canceled)
	}
	b.waiting = nil
}

// speak makes it a root that answers, as the next program opens it.
func (b *silentBase) speak() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.silent, b.interrupted = false, false
}

// A device that is left waits neither for its root nor for space: the next program gets those requests again, and each is answered once, with the right
// content. The store is closed in order.
func TestLeaveWaitsForNobody(t *testing.T) {
	const size, quota, depth, queues = 8 << 20, 1 << 20, 8, 2
	dir := runDir(t)
	path := filepath.Join(dir, "leaf")
	_, err := Format(path, FormatOptions{SizeBytes: MinStoreBytes})
	b := &silentBase{gatedBase: gatedBase{content: make([]byte, size)}}
	for i := range b.content {
		b.content[i] = byte(i>>9) ^ byte(i>>17)
	}
	fake, fakeErr := ublktest.NewFake(ublktest.FakeConfig{SizeBytes: size, Depth: depth, Queues: queues})
	must(t, errors.Join(err, fakeErr))
	layerOptions := LayerOptions{Create: true, Pin: b.Pin(), SizeBytes: size, QuotaBytes: quota}
	s := serveLeaf(t, path, dir, b, fake, layerOptions)
	for off := int64(0); off < quota; off += 64 << 10 {
		_, err := fake.WriteAt(bytes.Repeat([]byte{0xee}, 64<<10), off)
		must(t, err)
	}
	b.silent = true

	var all sync.WaitGroup
	var answered atomic.Int32
	ask := func(queue int, d ublk.Descriptor, data, want []byte) {
		all.Add(1)
		fake.SubmitTo(queue, d, data, func(errno syscall.Errno, got []byte) {
			if errno != 0 || want != nil && !bytes.Equal(got, want) {
				t.Errorf("%v at %d: errno %d, or other content", d.Op, d.Off, errno)
			}
			answered.Add(1)
			all.Done()
		})
	}
	// In each queue a write waits for space, six requests have asked the root, and one is in line for that; more wait for a tag.
	for q := range queues {
		at := int64(q+1) * 2 << 20
		ask(q, ublk.Descriptor{Op: ublk.OpWrite, Off: at, Len: 4096}, bytes.Repeat([]byte{1}, 4096), nil)
		ask(q, ublk.Descriptor{Op: ublk.OpWrite, Off: at + 4096 + 512, Len: 512}, bytes.Repeat([]byte{2}, 512), nil)
		ask(q, ublk.Descriptor{Op: ublk.OpDiscard, Off: at + 8192 + 512, Len: 512}, nil, nil)
		for i := range int64(depth) {
			off := at + 64<<10 + i*4096
			ask(q, ublk.Descriptor{Op: ublk.OpRead, Off: off, Len: 4096}, make([]byte, 4096), b.content[off:off+4096])
		}
	}
	settled := func() bool {
		in, err := s.at.Requests(t.Context())
		must(t, err)
		waits := make(map[string]int)
		for _, r := range in {
			waits[r.Waits]++
		}
		return b.asked() == queues*maxMisses(depth) && waits["the root"] == queues*maxMisses(depth) &&
			waits["others to have read the root"] == queues && waits["space in the store"] == queues
	}
	for began := time.Now(); !settled(); time.Sleep(time.Millisecond) {
		if time.Since(began) > time.Minute {
			in, err := s.at.Requests(t.Context())
			t.Fatalf("%d asked of the root; in service: %v %v", b.asked(), in, err)
		}
	}
	s.leave(t)
	if n := answered.Load(); n != 0 {
		t.Errorf("%d requests answered that could not be", n)
	}
	if st := s.dev.Stats(); st.Errors != 0 || st.RootRefused != 0 {
		t.Errorf("counted %+v", st)
	}
	fake.Quiesce()

	b.speak()
	layerOptions.Create = false
	s = serveLeaf(t, path, dir, b, fake, layerOptions)
	if got := s.store.Info().Recovery; got.Records != 0 || got.FromProcess != 0 || got.Dropped != 0 {
		t.Errorf("the store was recovered as after a crash: %+v", got)
	}
	_, err = s.dev.Layer().SetQuota(size)
	must(t, err)
	all.Wait()
	for q := range queues {
		at := int64(q+1) * 2 << 20
		want := bytes.Clone(b.content[at : at+3*4096])
		copy(want, bytes.Repeat([]byte{1}, 4096))
		copy(want[4096+512:], bytes.Repeat([]byte{2}, 512))
		clear(want[8192+512 : 8192+1024])
		got := make([]byte, len(want))
		if _, err := fake.ReadAt(got, at); err != nil || !bytes.Equal(got, want) {
			t.Errorf("queue %d: %v, or other content", q, err)
		}
	}
	fake.Stop()
	<-s.at.Ended()
	s.leave(t)
	must(t, errors.Join(fake.Err(), fake.Close()))
	must(t, os.Remove(path))
}

// servedLeaf is a device on a store, in service.
type servedLeaf struct {
	store *Store
	dev   *Device
	rs    *ublk.Reactors
	at    *ublk.Attachment
}

func serveLeaf(t *testing.T, path, dir string, b Base, fake *ublktest.Fake, o LayerOptions) servedLeaf {
	t.Helper()
	store, err := OpenStore(path, StoreOptions{RunDir: dir, FullWait: time.Hour})
	must(t, err)
	layer, err := store.OpenLayer("web1", o)
	must(t, err)
	dev, err := NewDevice(layer, b, DeviceOptions{RootWait: time.Hour})
	must(t, err)
	rs, err := ublk.NewReactors(ublk.ReactorConfig{})
	must(t, err)
	at, err := fake.Start(rs, dev)
	must(t, err)
	return servedLeaf{store, dev, rs, at}
}

// leave ends the service and closes the store.
func (s servedLeaf) leave(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	must(t, errors.Join(s.at.Drain(ctx), s.rs.Close(), s.at.Err()))
	s.dev.Layer().Release()
	must(t, s.store.Close())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
