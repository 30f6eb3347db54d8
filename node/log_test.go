package node_test

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

// logBuffer collects a daemon's log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) contains(s string) bool { return strings.Contains(l.String(), s) }

func (l *logBuffer) wait(t *testing.T, s string) {
	t.Helper()
	l.waitFor(t, func() bool { return l.contains(s) })
}

// waitFor waits until cond holds.
func (l *logBuffer) waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain; log:\n%s", l)
		}
		time.Sleep(time.Millisecond)
	}
}
