package powercut

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Kind tells what an event says.
type Kind string

// Kinds of events. Those about files and ranges are written before it is done, the others after the promise was given.
const (
	Ready   Kind = "ready"   // everything is set up: cuts make sense from here on
	Create  Kind = "create"  // a file that did not exist gets content ID, Size bytes of it
	Append  Kind = "append"  // a file is extended to Size bytes of the content that it has
	Replace Kind = "replace" // a complete and synced file with content ID is renamed to Name
	Remove  Kind = "remove"  // a file is unlinked
	Synced  Kind = "synced"  // all earlier events of the file Name are durable
	Write   Kind = "write"   // bytes Off to Off+Size of the device get content ID
	Zero    Kind = "zero"    // bytes Off to Off+Size of the device become zeros
	Flushed Kind = "flushed" // all earlier events of the client are durable
)

// Event is one mark.
type Event struct {
	Client string `json:"client"`
	Kind   Kind   `json:"kind"`
	Name   string `json:"name,omitempty"`
	ID     uint64 `json:"id,omitempty"`
	Off    int64  `json:"off,omitempty"`
	Size   int64  `json:"size,omitempty"`
}

// MarkBytes is the size of an event on the disk.
const MarkBytes = 4096

const markMagic = "coppice powercut mark 1\n"

var errNoMark = errors.New("not a mark")

// Encode lays the event out as it is written: magic, JSON, zeros.
func (e Event) Encode(p []byte) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if len(p) != MarkBytes || len(markMagic)+len(text) >= MarkBytes {
		return fmt.Errorf("encode event: %d bytes into %d", len(markMagic)+len(text), len(p))
	}
	clear(p[copy(p, markMagic+string(text)):])
	return nil
}

// decodeEvent reads what Encode wrote.
func decodeEvent(p []byte) (Event, error) {
	text, ok := bytes.CutPrefix(p, []byte(markMagic))
	if !ok {
		return Event{}, errNoMark
	}
	var e Event
	if err := json.Unmarshal(bytes.TrimRight(text, "\x00"), &e); err != nil {
		return Event{}, fmt.Errorf("decode event: %w", err)
	}
	return e, nil
}
