package powercut

import (
	"bytes"
	"fmt"
	"slices"
)

// BlockBytes is the unit that is old or new as a whole.
const BlockBytes = 4096

// Blocks knows what a device without a file system may hold. Clients own ranges of their own and do one thing at a time.
type Blocks struct {
	blocks map[int64][]value // the last durable value, then those that came since
	root   func(p []byte, block int64) error
}

// value is the content of a block at some time.
type value struct {
	client string
	data   []byte // nil: the root's. It is never changed
}

// NewBlocks makes the model of a device over a root that root reads one block of.
func NewBlocks(root func(p []byte, block int64) error) *Blocks {
	return &Blocks{blocks: make(map[int64][]value), root: root}
}

// Clone returns a copy that further events do not change.
func (m *Blocks) Clone() *Blocks {
	c := NewBlocks(m.root)
	for b, values := range m.blocks {
		c.blocks[b] = slices.Clip(values)
	}
	return c
}

// Apply takes note of an event of a client of this device.
func (m *Blocks) Apply(e Event) error {
	if e.Kind == Flushed {
		for b, values := range m.blocks {
			if last := values[len(values)-1]; last.client == e.Client {
				m.blocks[b] = []value{last}
			}
		}
		return nil
	}
	for b := e.Off / BlockBytes; b*BlockBytes < e.Off+e.Size; b++ {
		if err := m.change(b, e); err != nil {
			return err
		}
	}
	return nil
}

// change adds the value that a block has after the event.
func (m *Blocks) change(b int64, e Event) error {
	values := m.blocks[b]
	if values == nil {
		values = []value{{client: e.Client}}
	}
	old, err := m.content(b, values[len(values)-1])
	if err != nil {
		return err
	}
	data := bytes.Clone(old)
	from, to := max(e.Off-b*BlockBytes, 0), min(e.Off+e.Size-b*BlockBytes, BlockBytes)
	if e.Kind == Zero {
		clear(data[from:to])
	} else {
		Fill(data[from:to], e.ID, b*BlockBytes+from)
	}
	m.blocks[b] = append(slices.Clip(values), value{client: e.Client, data: data})
	return nil
}

func (m *Blocks) content(b int64, v value) ([]byte, error) {
	if v.data != nil {
		return v.data, nil
	}
	p := make([]byte, BlockBytes)
	return p, m.root(p, b)
}

// Check compares the first count blocks with what is legal, and returns a line for each violation.
func (m *Blocks) Check(read func(p []byte, block int64) error, count int64) ([]string, error) {
	var wrong []string
	have := make([]byte, BlockBytes)
	for b := range count {
		if err := read(have, b); err != nil {
			return nil, err
		}
		values := m.blocks[b]
		if values == nil {
			values = []value{{}}
		}
		legal := false
		for _, v := range values {
			want, err := m.content(b, v)
			if err != nil {
				return nil, err
			}
			legal = legal || bytes.Equal(have, want)
		}
		if !legal {
			wrong = append(wrong, fmt.Sprintf("block %d holds none of %d legal values, but %x...", b, len(values), have[:24]))
		}
	}
	return wrong, nil
}
