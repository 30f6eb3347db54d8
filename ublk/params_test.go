package ublk

import (
	"strings"
	"testing"

	"coppice/ublk/uapi"
)

func validParams() Params { return Params{ID: AutoID, SizeBytes: 1 << 30} }

func TestParamsDefaults(t *testing.T) {
	p := validParams()
	if err := p.setDefaults(); err != nil {
		t.Fatal(err)
	}
	want := Params{
		ID: AutoID, SizeBytes: 1 << 30, BlockSize: 512, PhysBlockSize: 4096, MaxIOBytes: 512 << 10, Queues: 1, Depth: 128,
	}
	if p != want {
		t.Errorf("defaults are %+v, want %+v", p, want)
	}
}

func TestParamsValidation(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Params)
		want   string // part of the error; "": valid
	}{
		{"smallest", func(p *Params) { p.SizeBytes = 512 }, ""},
		{"largest", func(p *Params) { p.SizeBytes = maxSizeBytes }, ""},
		{"4096", func(p *Params) { p.BlockSize = 4096 }, ""},
		{"no size", func(p *Params) { p.SizeBytes = 0 }, "size of 0 bytes"},
		{"negative size", func(p *Params) { p.SizeBytes = -512 }, "size of -512 bytes"},
		{"odd size", func(p *Params) { p.SizeBytes = 1000 }, "size of 1000 bytes"},
		{"half block", func(p *Params) { p.SizeBytes, p.BlockSize = 6144, 4096 }, "size of 6144 bytes"},
		{"huge", func(p *Params) { p.SizeBytes = maxSizeBytes + 512 }, "size of"},
		{"block size", func(p *Params) { p.BlockSize = 1024 }, "block size 1024"},
		{"negative block size", func(p *Params) { p.BlockSize = -1 }, "block size -1"},
		{"physical below logical", func(p *Params) { p.BlockSize, p.PhysBlockSize = 4096, 512 }, "physical block size 512"},
		{"physical", func(p *Params) { p.PhysBlockSize = 3000 }, "physical block size 3000"},
		{"I/O", func(p *Params) { p.MaxIOBytes = 5000 }, "largest I/O of 5000"},
		{"big I/O", func(p *Params) { p.MaxIOBytes = 64 << 20 }, "largest I/O"},
		{"queues", func(p *Params) { p.Queues = 4097 }, "4097 queues"},
		{"depth", func(p *Params) { p.Depth = 4097 }, "depth 4097"},
		{"negative depth", func(p *Params) { p.Depth = -1 }, "depth -1"},
		{"id", func(p *Params) { p.ID = -2 }, "id -2"},
		{"big id", func(p *Params) { p.ID = 1 << 20 }, "id 1048576"},
	} {
		p := validParams()
		c.change(&p)
		err := p.setDefaults()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	p := Params{ID: -5, BlockSize: 7}
	if err := p.setDefaults(); strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("not all problems are told: %v", err)
	}
}

func TestDevInfoAsksForRecovery(t *testing.T) {
	const old = FeatureRecovery | FeatureReissue | FeatureEncoded
	for _, c := range []struct {
		recoverable bool
		have        Features
		flags       uint64
		queues      uint16
	}{
		{false, old, 0, 4},
		{true, old, uapi.FUserRecovery | uapi.FUserRecoveryReissue, 1},
		{true, old | FeatureQuiesce | FeaturePerIODaemon, uapi.FUserRecovery | uapi.FUserRecoveryReissue | uapi.FQuiesce, 4},
	} {
		p := Params{ID: 12, SizeBytes: 1 << 20, Queues: 4, Recoverable: c.recoverable, ServerData: 5}
		if err := p.setDefaults(); err != nil {
			t.Fatal(err)
		}
		info := p.devInfo(c.have)
		if info.Flags != c.flags || info.NrHWQueues != c.queues || info.DevID != 12 || info.ServerFlags != 5 || info.QueueDepth != 128 {
			t.Errorf("%+v: asks for %+v", c, info)
		}
	}
	p := validParams()
	if info := p.devInfo(0); info.DevID != uapi.AutoDevID {
		t.Errorf("automatic id is %d", info.DevID)
	}
}

// What the driver is told about a device is read back as the same parameters.
func TestDriverParamsRoundTrip(t *testing.T) {
	for _, p := range []Params{
		{SizeBytes: 512, BlockSize: 512},
		{ID: 3, SizeBytes: 1 << 50, BlockSize: 4096, MaxIOBytes: 32 << 20, Queues: 2, Depth: 4096, ReadOnly: true, Discard: true},
		{ID: 1, SizeBytes: 1 << 30, PhysBlockSize: 512, Recoverable: true, ServerData: 1 << 63},
	} {
		if err := p.setDefaults(); err != nil {
			t.Fatal(err)
		}
		u := p.driverParams()
		d := p.devInfo(FeaturePerIODaemon)
		info := Info{
			ID: int(d.DevID), Queues: int(d.NrHWQueues), Depth: int(d.QueueDepth), MaxIOBytes: int(d.MaxIOBufBytes),
			Flags: Features(d.Flags), ServerData: d.ServerFlags,
		}
		if got := paramsFrom(&info, &u); got != p {
			t.Errorf("%+v comes back as %+v", p, got)
		}
		if u.Basic.Attrs&(uapi.AttrVolatileCache|uapi.AttrFUA) != uapi.AttrVolatileCache|uapi.AttrFUA {
			t.Errorf("attributes %b lack the volatile cache", u.Basic.Attrs)
		}
		if p.Discard && (u.Discard.MaxDiscardSectors%8 != 0 || u.Discard.MaxDiscardSectors < 1<<23-8 || u.Discard.MaxSegments != 1) {
			t.Errorf("discard is %+v", u.Discard)
		}
	}
}

func TestParamsTakeTheSmallerMaxIO(t *testing.T) {
	p := validParams()
	if err := p.setDefaults(); err != nil {
		t.Fatal(err)
	}
	u := p.driverParams()
	if got := paramsFrom(&Info{MaxIOBytes: 65536}, &u); got.MaxIOBytes != 65536 {
		t.Errorf("largest I/O is %d, the kernel rounded it to 65536", got.MaxIOBytes)
	}
}
