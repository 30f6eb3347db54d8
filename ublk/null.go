package ublk

// Null is a device without content: it answers every request at once, reads are zeros and writes are
// forgotten. It shows what the data plane itself costs.
type Null struct{}

// nullTags remembers how much of each tag's buffer writes have filled, because reads must
// not show it again.
type nullTags []int64

// NewNull returns a Handler whose devices have no content.
func NewNull() *Null { return &Null{} }

// Attach implements [Handler].
func (*Null) Attach(q *Queue) error {
	q.SetLocal(make(nullTags, q.Depth()))
	return nil
}

// Detach implements [Handler].
func (*Null) Detach(*Queue) {}

// Serve implements [Handler].
func (*Null) Serve(r *Request) {
	used := r.Queue().Local().(nullTags)
	switch r.Op {
	case OpRead:
		clear(r.Buf[:min(r.Len, used[r.Tag()])])
	case OpWrite:
		used[r.Tag()] = max(used[r.Tag()], r.Len)
	}
	r.Complete(0)
}

// Resume implements [Handler]; nothing of Null ends there.
func (*Null) Resume(*Request, uint16, int32) {}

var _ Handler = (*Null)(nil)
