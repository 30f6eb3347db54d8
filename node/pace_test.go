package node

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at pace
		later := newPace()
		if !at.due() || later.due() {
			t.Error("the zero pace is due at once, and one that has just told something is not")
		}
		told := 0
		for range 1000 {
			time.Sleep(time.Millisecond)
			if at.due() {
				told++
			}
		}
		if told != 5 {
			t.Errorf("%d times in a second", told)
		}
		time.Sleep(time.Hour)
		if !later.due() || later.due() {
			t.Error("after an hour it is due once")
		}
	})
}
