package prefetch

import "sync"

// Streams finds sequential streams among the reads of one reader, and says how far ahead of them to read. Its methods may be called from any
// goroutine; they wait for nothing and allocate nothing.
type Streams struct {
	size, chunk, most int64

	mu    sync.Mutex // never waited for: a read that is not noted costs at most some readahead
	clock uint64
	start int64 // window that the next stream begins with
	all   [maxStreams]stream
}

// maxStreams is how many streams are told apart.
const maxStreams = 8

// stream is reads of which each goes on where the one before ended.
type stream struct {
	from   int64 // where it began
	next   int64 // where it goes on; 0: no stream
	ahead  int64 // up to where was read ahead; 0: nothing yet
	window int64
	used   uint64 // clock of the last read
}

// NewStreams makes one for a content of so many bytes in chunks of chunk bytes. It reads up to most bytes ahead; 0 means never.
func NewStreams(sizeBytes int64, chunk int, most int64) *Streams {
	s := &Streams{size: sizeBytes, chunk: int64(chunk), most: most / int64(chunk) * int64(chunk)}
	s.start = min(2*s.chunk, s.most)
	return s
}

// Note notes that n bytes from off on are read, and returns what is to be read ahead now, if anything: whole chunks, up to the end of the content.
func (s *Streams) Note(off, n int64) (Range, bool) {
	if s.most == 0 || !s.mu.TryLock() {
		return Range{}, false
	}
	defer s.mu.Unlock()
	s.clock++
	v := s.find(off)
	if v == nil {
		s.begin(off, n)
		return Range{}, false
	}
	v.used = s.clock
	v.next = max(v.next, off+n)
	return s.further(v)
}

// find returns the stream that a read goes on with. Once reading ahead has begun, the reads may come out of order by a chunk.
func (s *Streams) find(off int64) *stream {
	for i := range s.all {
		v := &s.all[i]
		if v.next == 0 {
			continue
		}
		if off == v.next || v.ahead > 0 && off >= v.next-s.chunk && off <= v.next+s.chunk {
			return v
		}
	}
	return nil
}

// begin takes the read for the beginning of a stream, in the place of the one that was read least lately.
func (s *Streams) begin(off, n int64) {
	v := &s.all[0]
	for i := range s.all {
		if s.all[i].used < v.used {
			v = &s.all[i]
		}
	}
	if v.ahead > v.next+v.window/2 { // half of what was read ahead was in vain
		s.start = max(s.start/2, min(s.chunk, s.most))
	}
	*v = stream{from: off, next: off + n, window: s.start, used: s.clock}
}

// further returns what to read ahead of a stream: nothing until it has gone through two chunks, then a window, which is doubled each time that half of it
// was read.
func (s *Streams) further(v *stream) (Range, bool) {
	switch {
	case v.ahead == 0 && v.next-v.from < 2*s.chunk, v.ahead >= s.size:
		return Range{}, false
	case v.ahead == 0:
		v.ahead = (v.next + s.chunk - 1) / s.chunk * s.chunk
	case v.ahead-v.next > v.window/2:
		return Range{}, false
	default:
		v.window = min(2*v.window, s.most)
		s.start = min(max(s.start, v.window/4), s.most)
		v.ahead = max(v.ahead, (v.next+s.chunk-1)/s.chunk*s.chunk)
	}
	from := v.ahead
	v.ahead = min((v.next+v.window+s.chunk-1)/s.chunk*s.chunk, s.size)
	if v.ahead <= from {
		v.ahead = from
		return Range{}, false
	}
	return Range{from, v.ahead - from}, true
}
