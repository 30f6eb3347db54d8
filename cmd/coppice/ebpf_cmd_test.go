package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"coppice/ebpf"
	"coppice/node"
)

func TestWriteLatency(t *testing.T) {
	var out bytes.Buffer
	writeLatency(&out, node.LatencyReport{})
	if out.String() != "no requests yet\n" {
		t.Errorf("of none: %q", out.String())
	}
	out.Reset()
	writeLatency(&out, node.LatencyReport{Latencies: []ebpf.Latency{{
		Op: "read", Source: "root", Count: 100, Mixed: 3, Errors: 1, Seconds: 2,
		Buckets: []ebpf.Bucket{{Index: 0, Count: 60}, {Index: 20, Count: 39}, {Index: 49, Count: 1}},
	}}})
	fields := strings.Fields(strings.SplitAfter(out.String(), "\n")[1])
	if want := "read root 100 3 1 20ms <953ns <977µs <977µs >16s"; strings.Join(fields, " ") != want {
		t.Errorf("%q, want %q", fields, want)
	}
}

func TestShowShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 953: "953ns", 1234567: "1.23ms", 123456789: "123ms", 12345 * time.Millisecond: "12.35s", 345678 * time.Nanosecond: "346µs",
	} {
		if got := showShort(d); got != want {
			t.Errorf("%d is %s, want %s", d, got, want)
		}
	}
}
