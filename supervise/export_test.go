package supervise

import "time"

// Pauses are those before daemons that have lived so long each, one after the other.
func Pauses(lived ...time.Duration) (waits []time.Duration) {
	var p pace
	for _, l := range lived {
		waits = append(waits, p.after(l))
	}
	return waits
}
