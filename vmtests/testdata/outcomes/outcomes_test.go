//go:build vm

// Package outcomes has one test for each way in which a test can end. The harness runs them to see that it reports each
// as what it is.
package outcomes

import (
	"fmt"
	"os"
	"testing"
	"time"
)

func TestPass(t *testing.T) {
	t.Log("all is well")
}

func TestFail(t *testing.T) {
	t.Run("deep", func(t *testing.T) {
		t.Run("down", func(t *testing.T) { t.Error("wrong on purpose") })
		t.Run("beside", func(t *testing.T) {})
	})
}

func TestSkip(t *testing.T) {
	t.Skip("not today")
}

func TestHang(t *testing.T) {
	fmt.Println("about to hang")
	select {
	case <-time.After(time.Hour):
	case <-make(chan int):
	}
}

func TestExit(t *testing.T) {
	os.Exit(0)
}

func TestGuest(t *testing.T) {
	if os.Getenv("COPPICE_VM") != "1" {
		t.Error("not inside a guest")
	}
	if _, err := os.ReadFile("testdata/here"); err != nil {
		t.Errorf("read test data: %v", err)
	}
}
