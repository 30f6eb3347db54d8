package main

import (
	"io"
	"slices"
	"testing"
	"time"
)

// watchdogRun starts a watchdog over two file systems and returns its input and what it thaws.
func watchdogRun(limit time.Duration) (in *io.PipeWriter, thawed chan int, ended chan struct{}) {
	r, in := io.Pipe()
	thawed, ended = make(chan int, 100), make(chan struct{})
	w := watchdog{limit: limit, again: time.Millisecond, armed: make([]bool, 2), thaw: func(i int) {
		select {
		case thawed <- i:
		default:
		}
	}}
	go func() {
		defer close(ended)
		w.run(r)
	}()
	return in, thawed, ended
}

func send(t *testing.T, in io.Writer, messages ...byte) {
	t.Helper()
	if _, err := in.Write(messages); err != nil {
		t.Fatal(err)
	}
}

func TestWatchdogThawsWhatADeadFreezerLeft(t *testing.T) {
	in, thawed, ended := watchdogRun(time.Hour)
	send(t, in, msgArm, 0, msgArm, 1, msgDisarm, 0)
	in.Close()
	<-ended
	close(thawed)
	if got := slices.Collect(values(thawed)); !slices.Equal(got, []int{1}) {
		t.Errorf("thawed %v", got)
	}
}

func TestWatchdogLeavesAloneWhatIsThawed(t *testing.T) {
	in, thawed, ended := watchdogRun(time.Hour)
	send(t, in, msgArm, 0, msgDisarm, 0, msgArm, 9)
	in.Close()
	<-ended
	if len(thawed) != 0 {
		t.Error("thawed")
	}
}

// A freezer that hangs does not hold the file system for longer than the limit, nor one whose freeze ends after it.
func TestWatchdogThawsAgainAndAgainAfterTheLimit(t *testing.T) {
	in, thawed, ended := watchdogRun(10 * time.Millisecond)
	began := time.Now()
	send(t, in, msgArm, 1)
	for range 3 {
		if i := <-thawed; i != 1 {
			t.Errorf("thawed %d", i)
		}
	}
	if took := time.Since(began); took < 10*time.Millisecond {
		t.Errorf("thawed after %s", took)
	}
	in.Close()
	<-ended
}

func values(c chan int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for v := range c {
			if !yield(v) {
				return
			}
		}
	}
}
