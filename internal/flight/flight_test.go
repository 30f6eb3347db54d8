package flight

import (
	"context"
	"errors"
	"testing"
)

// One of those who want a thing fetches it for all.
func TestOneForAll(t *testing.T) {
	var g Group[string, int]
	fl, mine := g.Claim(context.Background(), "a")
	same, second := g.Claim(context.Background(), "a")
	if !mine || second || same != fl {
		t.Fatal("two flights for one thing")
	}
	if _, first := g.Claim(context.Background(), "b"); !first {
		t.Fatal("one flight for two things")
	}
	if fl.Landed() {
		t.Fatal("landed before it did")
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := same.Wait(ended); !errors.Is(err, context.Canceled) {
		t.Fatalf("a wait that was called off: %v", err)
	}
	g.Land("a", fl, 7, nil)
	if v, err := same.Wait(ended); v != 7 || err != nil || !fl.Landed() {
		t.Fatalf("landed with %d, %v", v, err)
	}
	if _, first := g.Claim(context.Background(), "a"); !first {
		t.Fatal("a flight that has landed is joined")
	}
}

// A flight is called off when the last one has left, and what fetches several goes on until all are.
func TestCalledOff(t *testing.T) {
	var g Group[int, int]
	a, _ := g.Claim(context.Background(), 1)
	_, _ = g.Claim(context.Background(), 1)
	b, _ := g.Claim(context.Background(), 2)
	both, cancel := Together(context.Background(), []*Flight[int]{a, b})
	defer cancel()
	g.Leave(1, a)
	if a.Context().Err() != nil {
		t.Fatal("called off while one waits")
	}
	g.Leave(1, a)
	if a.Context().Err() == nil || both.Err() != nil {
		t.Fatalf("a %v, both %v", a.Context().Err(), both.Err())
	}
	if _, first := g.Claim(context.Background(), 1); !first {
		t.Fatal("a flight that was called off is joined")
	}
	g.Leave(2, b)
	<-both.Done()
}
