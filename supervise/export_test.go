package supervise

import "time"

// MountsBelow is [mountsBelow].
var MountsBelow = mountsBelow

// Mount is a [mount].
type Mount = mount

// OnDisk is a mount of a disk, and InMemory one of none.
func OnDisk(path string) Mount   { return mount{path, true} }
func InMemory(path string) Mount { return mount{path, false} }

// Pauses are those before daemons that have lived so long each, one after the other.
func Pauses(lived ...time.Duration) (waits []time.Duration) {
	var p pace
	for _, l := range lived {
		waits = append(waits, p.after(l))
	}
	return waits
}
