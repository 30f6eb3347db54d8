package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// linePrefix marks the lines of the guest's output that carry an event.
const linePrefix = "bench-event "

// Kinds of events.
const (
	KindStart = "start" // a job is about to begin
	KindEnd   = "end"   // it has ended; Figure is set
	KindCount = "count" // a pass that counts system calls has ended; Figure has nothing else to go by
	KindInfo  = "info"  // Key and Value describe the machine
	KindDone  = "done"  // the plan is complete
)

// An Event is one line from the guest.
type Event struct {
	Kind    string      `json:"kind"`
	Round   int         `json:"round,omitempty"`
	Subject SubjectName `json:"subject,omitempty"`
	Job     string      `json:"job,omitempty"`
	Figure  *Figure     `json:"figure,omitempty"`
	Key     string      `json:"key,omitempty"`
	Value   string      `json:"value,omitempty"`
}

// Emit writes the event as one line.
func (e Event) Emit(w io.Writer) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	if _, err := fmt.Fprintf(w, "%s%s\n", linePrefix, data); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}

// ParseEvent reads a line of the guest's output. Lines that are no events are not ok and no
// error either.
func ParseEvent(line string) (e Event, ok bool, err error) {
	_, data, found := strings.Cut(line, linePrefix)
	if !found {
		return Event{}, false, nil
	}
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return Event{}, false, fmt.Errorf("parse event %q: %w", clip(data), err)
	}
	return e, true, nil
}
