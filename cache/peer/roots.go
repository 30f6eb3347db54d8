package peer

import (
	"time"

	"coppice/image"
)

const (
	// maxRoots is of how many roots it is remembered whether a peer has them open.
	maxRoots = 1024
	// A peer that has not opened a root is asked again after minAbsence, then twice as long each time, up to maxAbsence.
	minAbsence, maxAbsence = 500 * time.Millisecond, 5 * time.Second
)

// roots is what is known of the images that a peer has open. The client's mu guards it.
type roots map[image.Digest]presence

type presence struct {
	open  bool
	until time.Time // it is not asked before, where it is not open
	wait  time.Duration
}

// has reports whether a peer is known to have an image open, lacks whether it is known not to.
func (k roots) has(root image.Digest) bool { return k[root].open }

func (k roots) lacks(root image.Digest) bool {
	p, known := k[root]
	return known && !p.open && time.Now().Before(p.until)
}

// learn takes down what an answer to the request for a fetch says.
func (k roots) learn(root image.Digest, open bool) {
	before, known := k[root]
	if !known && len(k) >= maxRoots {
		clear(k)
	}
	if open {
		k[root] = presence{open: true}
		return
	}
	if !known || before.open {
		before = presence{wait: minAbsence}
	} else if now := time.Now(); now.Before(before.until) {
		return // the answer to somebody who asked at the same time
	} else {
		before.wait = min(2*before.wait, maxAbsence)
	}
	before.until = time.Now().Add(before.wait)
	k[root] = before
}
