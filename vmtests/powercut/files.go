package powercut

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

// Files knows what one file system may hold.
type Files map[string]file

// file is what is known of a name.
type file struct {
	sure    outcome // what it is without the events below
	pending []Event // since the last that is durable
}

// outcome is one legal state of a name.
type outcome struct {
	any    bool // whatever there is
	exists bool
	exact  bool // has Size bytes; false: that many at least
	id     uint64
	size   int64
}

// Found is a file as it was read.
type Found struct {
	Name  string `json:"name"`
	ID    uint64 `json:"id"`
	Size  int64  `json:"size"`
	Valid int64  `json:"valid"`           // that many bytes at its beginning are as content ID has them
	Err   string `json:"error,omitempty"` // why it could not be read
}

// Apply takes note of an event of this file system.
func (fs Files) Apply(e Event) {
	f := fs[e.Name]
	if e.Kind != Synced {
		f.pending = append(slices.Clip(f.pending), e)
	} else {
		for _, p := range f.pending {
			f.sure = f.sure.after(p)
		}
		f.pending = nil
	}
	fs[e.Name] = f
}

// Clone returns a copy that further events do not change.
func (fs Files) Clone() Files { return maps.Clone(fs) }

// after is what an event leads to once it is complete.
func (o outcome) after(e Event) outcome {
	switch e.Kind {
	case Remove:
		return outcome{}
	case Append:
		return outcome{exists: true, exact: true, id: o.id, size: e.Size}
	default:
		return outcome{exists: true, exact: true, id: e.ID, size: e.Size}
	}
}

// legal are the states that a name may be found in.
func (f file) legal() []outcome {
	all := []outcome{f.sure}
	for _, e := range f.pending {
		switch e.Kind {
		case Create:
			all = append(all, outcome{any: true})
		case Append:
			for i := range all {
				all[i].exact = false
			}
		default:
			all = append(all, outcome{}.after(e))
		}
	}
	return all
}

func (o outcome) allows(have *Found) bool {
	switch {
	case o.any:
		return true
	case have == nil || !o.exists:
		return have == nil && !o.exists
	case o.exact && have.Size != o.size:
		return false
	default:
		return have.ID == o.id && have.Valid >= o.size
	}
}

func (o outcome) String() string {
	switch {
	case o.any:
		return "anything"
	case !o.exists:
		return "nothing"
	case o.exact:
		return fmt.Sprintf("%d bytes of content %d", o.size, o.id)
	default:
		return fmt.Sprintf("%d bytes of content %d and more", o.size, o.id)
	}
}

// Check compares what was found with what is legal, and returns a line for each violation. Files that no event named are not judged,
// but they must be readable.
func (fs Files) Check(found []Found) []string {
	var wrong []string
	there := make(map[string]*Found, len(found))
	for i, have := range found {
		there[have.Name] = &found[i]
		if have.Err != "" {
			wrong = append(wrong, fmt.Sprintf("file %s: %s", have.Name, have.Err))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fs)) {
		legal := fs[name].legal()
		have := there[name]
		if slices.ContainsFunc(legal, func(o outcome) bool { return o.allows(have) }) {
			continue
		}
		text := "is not there"
		if have != nil {
			text = fmt.Sprintf("has %d bytes, of which %d are of content %d", have.Size, have.Valid, have.ID)
		}
		wrong = append(wrong, fmt.Sprintf("file %s %s; legal: %v", name, text, legal))
	}
	return wrong
}

// Durable is how many files must be there.
func (fs Files) Durable() int {
	n := 0
	for _, f := range fs {
		if slices.IndexFunc(f.legal(), func(o outcome) bool { return o.any || !o.exists }) < 0 {
			n++
		}
	}
	return n
}

// byName orders what was found.
func byName(a, b Found) int { return cmp.Compare(a.Name, b.Name) }
