package trace_test

import (
	"fmt"

	lru "github.com/hashicorp/golang-lru/v2"

	"coppice/cache/trace"
)

// touched goes through the chunks that hold data, as reads come to them.
func touched(t *trace.Trace, size int64, visit func(index int64)) {
	held := t.Held(size)
	for _, r := range t.Reads {
		for i := r.Off / size; i*size < r.Off+r.Len; i++ {
			if held[i] {
				visit(i)
			}
		}
	}
}

// index is what a cache of whole chunks knows, to be compared with: it reports whether it has a chunk, and takes it in where it has not.
type index interface {
	touch(key int64) bool
}

type lruIndex struct{ *lru.Cache[int64, struct{}] }

func (x lruIndex) touch(key int64) bool {
	_, ok := x.Get(key)
	if !ok {
		x.Add(key, struct{}{})
	}
	return ok
}

type twoQueueIndex struct {
	*lru.TwoQueueCache[int64, struct{}]
}

func (x twoQueueIndex) touch(key int64) bool {
	_, ok := x.Get(key)
	if !ok {
		x.Add(key, struct{}{})
	}
	return ok
}

// indexes are those of golang-lru, with room for so many chunks.
func indexes(chunks int) map[string]index {
	least, err := lru.New[int64, struct{}](chunks)
	if err != nil {
		panic(err)
	}
	queues, err := lru.New2Q[int64, struct{}](chunks)
	if err != nil {
		panic(err)
	}
	return map[string]index{"golang-lru, LRU": lruIndex{least}, "golang-lru, 2Q": twoQueueIndex{queues}}
}

// share counts hits of tries.
type share struct{ hits, tries uint64 }

func (s share) percent() float64 { return 100 * float64(s.hits) / float64(max(s.tries, 1)) }

func (s share) String() string { return fmt.Sprintf("%.1f %%", s.percent()) }

// bootOn replays a trace on an index.
func bootOn(x index, t *trace.Trace) (s share) {
	touched(t, chunk, func(i int64) {
		s.tries++
		if x.touch(i) {
			s.hits++
		}
	})
	return s
}
