package cache

import (
	"sync"
	"testing"
)

// What is put in comes out once, in the order of each who puts; what there is no room for is counted.
func TestSamplerKeepsOrder(t *testing.T) {
	var s sampler
	s.init()
	const putters, each = 4, 20_000
	var work sync.WaitGroup
	for i := range uint32(putters) {
		work.Go(func() {
			for n := range uint32(each) {
				s.put(access{hash: i, stream: n})
			}
		})
	}
	done := make(chan struct{})
	go func() {
		work.Wait()
		close(done)
	}()
	next, came := [putters]uint32{}, uint64(0)
	take := func() {
		for a, ok := s.next(); ok; a, ok = s.next() {
			if a.stream < next[a.hash] {
				t.Errorf("putter %d: %d came after %d", a.hash, a.stream, next[a.hash])
			}
			next[a.hash] = a.stream + 1
			came++
		}
	}
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		default:
		}
		take()
	}
	take()
	if lost := s.lost.Load(); came+lost != putters*each || came < samplerSize {
		t.Errorf("%d came and %d were lost, of %d", came, lost, putters*each)
	}
}
