package node

import "time"

// pace says when it is time to tell the progress of something again. The zero pace says so at once. It is used from one goroutine at a time.
type pace struct{ last time.Time }

const paceTime = 200 * time.Millisecond

// newPace returns one that is due in a fifth of a second.
func newPace() pace { return pace{time.Now()} }

// due reports whether a fifth of a second has gone by since it last did.
func (p *pace) due() bool {
	now := time.Now()
	if now.Sub(p.last) < paceTime {
		return false
	}
	p.last = now
	return true
}
