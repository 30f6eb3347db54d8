package node

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"coppice/ublk"
)

// brokenDisk is a disk that the data plane gave up.
type brokenDisk struct{ Disk }

func (brokenDisk) Path() string        { return "/dev/ublkb0" }
func (brokenDisk) ID() int             { return 0 }
func (brokenDisk) Params() ublk.Params { return ublk.Params{} }
func (brokenDisk) Err() error          { return errors.New("tag 3 refused") }

func TestBrokenDeviceIsReportedWhileItIsServed(t *testing.T) {
	var log bytes.Buffer
	d := &Daemon{log: slog.New(slog.NewTextHandler(&log, nil))}
	v := &device{state: StateLive, disk: brokenDisk{}, rec: record{Device: CreateRequest{Name: "web1"}}}
	d.broken(v, brokenDisk{})
	r := v.report(readUsage())
	if r.State != StateLive || !strings.Contains(r.Error, "tag 3 refused") || r.Hint == "" {
		t.Errorf("reported as %+v", r)
	}
	if !strings.Contains(log.String(), "device broken") {
		t.Errorf("log: %s", &log)
	}
}
