package union

import (
	"sync"
	"testing/synctest"
)

// gate makes a goroutine that does blocking I/O take turns with the simulator: the test lets it go on from one write or
// sync to the next. All of it happens in a bubble of testing/synctest, which tells when the goroutine waits.
type gate struct {
	mu      sync.Mutex
	waiting []chan struct{}
	open    bool // nobody waits
	halted  bool // everything fails
	busy    bool // a goroutine is at work
	ended   func()
}

func (g *gate) pass() error {
	g.mu.Lock()
	if g.halted {
		g.mu.Unlock()
		return errHalted
	}
	if g.open {
		g.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	g.waiting = append(g.waiting, turn)
	g.mu.Unlock()
	<-turn
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.halted {
		return errHalted
	}
	return nil
}

// start runs work beside the requests up to its first write. When work has come to its end, next calls what it returned.
func (g *gate) start(work func() (ended func())) {
	g.busy = true
	go func() {
		ended := func() { panic("the call did not come to its end") }
		defer func() {
			if p := recover(); p != nil {
				ended = func() { panic(p) } // where the test can deal with it
			}
			g.mu.Lock()
			g.ended = ended
			g.mu.Unlock()
		}()
		ended = work()
	}()
	synctest.Wait()
	g.settle()
}

// ready tells whether the goroutine waits to go on.
func (g *gate) ready() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting) > 0
}

// next lets one waiting call through. The simulator stands still meanwhile.
func (g *gate) next(i int) {
	g.mu.Lock()
	i %= len(g.waiting)
	turn := g.waiting[i]
	g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
	g.mu.Unlock()
	close(turn)
	synctest.Wait()
	g.settle()
}

// settle ends the work that has come to its end. A step of the simulator may have let it go on.
func (g *gate) settle() {
	g.mu.Lock()
	ended := g.ended
	g.ended = nil
	g.mu.Unlock()
	if ended != nil {
		g.busy = false
		ended()
	}
}

// halt makes everything that waits, and all later calls, fail.
func (g *gate) halt() {
	g.mu.Lock()
	g.halted = true
	for _, turn := range g.waiting {
		close(turn)
	}
	g.waiting = nil
	g.mu.Unlock()
}
