package wire

import (
	"errors"
	"io"
	"net"
	"reflect"
	"testing"
	"time"
)

func TestMessagesArriveAsSent(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	sent := []Event{
		{Hello: &Hello{Kernel: "6.12", CPUs: 2, Uptime: "1"}},
		{ID: 3, Output: []byte("any bytes \x00\xff\n")},
		{ID: 3, Exit: &Exit{Code: -1, Signal: "SIGKILL", TimedOut: true, Faults: []string{"BUG: x"}}},
		{ID: 4, Dump: "state"},
	}
	go func() {
		defer b.Close()
		conn := NewConn(b)
		for _, ev := range sent {
			if err := conn.Send(ev); err != nil {
				t.Error(err)
			}
		}
	}()
	conn := NewConn(a)
	for i, want := range sent {
		var got Event
		if err := conn.Receive(&got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("message %d: %+v, error %v, want %+v", i, got, err, want)
		}
	}
	if err := conn.Receive(&Event{}); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v, want io.EOF", err)
	}
}

func TestRequestKeepsDurations(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	want := Request{ID: 9, Run: &Run{Argv: []string{"x"}, Timeout: 90 * time.Second}}
	go func() {
		defer b.Close()
		if err := NewConn(b).Send(want); err != nil {
			t.Error(err)
		}
	}()
	var got Request
	if err := NewConn(a).Receive(&got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("request %+v, error %v, want %+v", got, err, want)
	}
}

func TestExit(t *testing.T) {
	tests := []struct {
		exit Exit
		ok   bool
		text string
	}{
		{Exit{}, true, "exit status 0"},
		{Exit{Code: 3}, false, "exit status 3"},
		{Exit{Code: -1, Signal: "SIGQUIT", TimedOut: true}, false, "killed by SIGQUIT after the time-out"},
		{Exit{Code: -1, Err: "start command: no"}, false, "start command: no"},
		{Exit{Faults: []string{"BUG: x"}}, false, `exit status 0; kernel: ["BUG: x"]`},
	}
	for _, tt := range tests {
		if tt.exit.OK() != tt.ok || tt.exit.String() != tt.text {
			t.Errorf("%+v: OK %v, %q; want %v, %q", tt.exit, tt.exit.OK(), tt.exit, tt.ok, tt.text)
		}
	}
}
