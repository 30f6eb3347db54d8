package ublk_test

import (
	"errors"
	"slices"
	"testing"

	"coppice/ublk"
	"coppice/ublk/ublktest"
)

// marking answers at once, and says the length of the request in sectors.
type marking struct{ asked bool }

func (*marking) Attach(*ublk.Queue) error { return nil }
func (*marking) Detach(*ublk.Queue)       {}
func (m *marking) Serve(r *ublk.Request) {
	m.asked = r.Marked()
	r.Mark(uint8(r.Len / 512))
	r.Complete(0)
}
func (*marking) Resume(*ublk.Request, uint16, int32) {}

// What a Handler says of its requests is in the words of their queue, from when they are given until they are taken back.
func TestMarks(t *testing.T) {
	const depth = 4
	rs := newReactors(t, ublk.ReactorConfig{CPUs: []int{0}})
	h := &marking{}
	f, err := ublktest.NewFake(ublktest.FakeConfig{SizeBytes: 1 << 20, Depth: depth, MaxIO: 4096})
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.Start(rs, h)
	if err != nil {
		t.Fatal(err)
	}
	p, words := make([]byte, 1024), make([]uint64, depth)
	read := func() {
		t.Helper()
		if _, err := f.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if h.asked {
		t.Error("asked for marks before anybody wants to know")
	}
	for queue, m := range map[int][]uint64{0: make([]uint64, depth-1), 1: words, -1: words} {
		if err := a.SetMarks(queue, m); err == nil {
			t.Errorf("%d words for queue %d are taken", len(m), queue)
		}
	}
	if err := a.SetMarks(0, words); err != nil {
		t.Fatal(err)
	}
	read()
	if !h.asked || !slices.Contains(words, 2) {
		t.Errorf("said %v", words)
	}
	if err := a.SetMarks(0, nil); err != nil {
		t.Fatal(err)
	}
	clear(words)
	read()
	if h.asked || slices.Contains(words, 2) {
		t.Errorf("said %v after it was taken back", words)
	}
	f.Stop()
	<-a.Ended()
	if err := rs.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.SetMarks(0, nil); !errors.Is(err, ublk.ErrReactorsClosed) {
		t.Errorf("after the end: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
