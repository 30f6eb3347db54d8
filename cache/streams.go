package cache

import "sync"

const (
	// streamCount is how many sequential streams of one device are known at a time.
	streamCount = 8
	// streamSlack is how far from its end, in bytes, a read may begin that goes on with a stream: readers read ahead, and a part may be in memory.
	streamSlack = 1 << 20
	// A stream of at least so many bytes, or one in scanShare of the threshold where that is less, is a scan.
	scanBytes = 8 << 20
	scanShare = 32
)

// scanLimit is how long a stream is that is no scan yet, in bytes, at a threshold.
func scanLimit(threshold int64) int64 { return min(scanBytes, threshold/scanShare) }

// streams finds out which reads of a device go on where others ended. It knows only of those that memory did not serve. The zero value is ready. It is
// safe for concurrent use.
type streams struct {
	mu    sync.Mutex
	all   [streamCount]stream
	reads uint64
}

type stream struct {
	next  int64  // where it goes on
	bytes int64  // so far
	last  uint64 // number of its last read
}

// note takes in a read, and returns how long the stream is that it is part of.
func (s *streams) note(off, n int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	oldest := &s.all[0]
	for i := range s.all {
		st := &s.all[i]
		if st.last > 0 && off >= st.next-streamSlack && off <= st.next+streamSlack {
			st.next, st.bytes, st.last = max(st.next, off+n), st.bytes+n, s.reads
			return st.bytes
		}
		if st.last < oldest.last {
			oldest = st
		}
	}
	*oldest = stream{off + n, n, s.reads}
	return n
}
