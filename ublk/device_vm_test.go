//go:build vm

package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/ublk/uapi"
)

const vmPatience = 60 * time.Second

func vmContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), vmPatience)
	t.Cleanup(cancel)
	return ctx
}

func openControl(t testing.TB) *Control {
	t.Helper()
	c, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func vmReactors(t testing.TB) *Reactors {
	t.Helper()
	rs, err := NewReactors(ReactorConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rs.Close(); err != nil {
			t.Error(err)
		}
	})
	return rs
}

func vmDisk(t testing.TB, sizeBytes int64) *Mem {
	t.Helper()
	m, err := NewMem(sizeBytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func createDevice(t testing.TB, c *Control, rs *Reactors, p Params, h Handler) *Device {
	t.Helper()
	d, err := c.Create(vmContext(t), p, h, rs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopDevice(t, d) })
	return d
}

func stopDevice(t testing.TB, d *Device) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), vmPatience)
	defer cancel()
	if err := d.Stop(ctx); err != nil {
		t.Error(err)
	}
	if err := d.Err(); err != nil {
		t.Errorf("device %d: %v", d.ID(), err)
	}
}

// wantNoDevices fails where the kernel or /dev has a ublk device left.
func wantNoDevices(t testing.TB, c *Control) {
	t.Helper()
	all, err := c.List(context.Background())
	if err != nil || len(all) != 0 {
		t.Errorf("devices left: %+v, %v", all, err)
	}
	nodes, err := filepath.Glob("/dev/ublk[bc]*")
	if err != nil || len(nodes) != 0 {
		t.Errorf("device nodes left: %v, %v", nodes, err)
	}
}

func knob(t testing.TB, d *Device, name string) string {
	t.Helper()
	v, err := readKnob(filepath.Dir(queueDir(sysRoot, d.ID())), name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCreateAndStop(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	for _, p := range []Params{
		{ID: AutoID, SizeBytes: 1 << 20},
		{ID: AutoID, SizeBytes: 1<<20 + 512, BlockSize: 512, Queues: 2, Depth: 1},
		{ID: AutoID, SizeBytes: 64 << 20, BlockSize: 4096, Queues: 2, Depth: 64, Discard: true},
		{ID: AutoID, SizeBytes: 1 << 50, BlockSize: 4096, Depth: 4096, MaxIOBytes: 4096, ReadOnly: true},
		{ID: 41, SizeBytes: 1 << 30, MaxIOBytes: 1 << 20, Recoverable: true, ServerData: 0xC0FFEE},
		{ID: 7, SizeBytes: 1 << 30, PhysBlockSize: 512, Depth: 3, Recoverable: true, Discard: true},
	} {
		t.Run(fmt.Sprintf("%d bytes %d queues", p.SizeBytes, p.Queues), func(t *testing.T) {
			d, err := c.Create(vmContext(t), p, NewNull(), rs)
			if err != nil {
				t.Fatal(err)
			}
			checkParams(t, d, p)
			checkKernelView(t, d)
			stopDevice(t, d)
			stopDevice(t, d)
			select {
			case <-d.Done():
			default:
				t.Error("stopped device is not done")
			}
			wantNoDevices(t, c)
		})
	}
}

func checkParams(t *testing.T, d *Device, asked Params) {
	t.Helper()
	if err := asked.setDefaults(); err != nil {
		t.Fatal(err)
	}
	if asked.ID == AutoID {
		asked.ID = d.ID()
	}
	if asked.Recoverable && !d.control.Features().Has(FeaturePerIODaemon) {
		asked.Queues = 1
	}
	if d.Params() != asked || d.Path() != fmt.Sprintf("/dev/ublkb%d", asked.ID) {
		t.Errorf("%s has %+v, want %+v", d.Path(), d.Params(), asked)
	}
}

// checkKernelView compares what the block layer shows with the device's parameters.
func checkKernelView(t *testing.T, d *Device) {
	t.Helper()
	p := d.Params()
	boolean := map[bool]string{false: "0", true: "1"}
	want := map[string]string{
		"size":                      strconv.FormatInt(p.SizeBytes/512, 10),
		"ro":                        boolean[p.ReadOnly],
		"queue/logical_block_size":  strconv.Itoa(p.BlockSize),
		"queue/physical_block_size": strconv.Itoa(p.PhysBlockSize),
		"queue/max_hw_sectors_kb":   strconv.Itoa(p.MaxIOBytes / 1024),
		"queue/scheduler":           "[none]",
		"queue/write_cache":         "write back",
		"queue/fua":                 "1",
		"queue/rotational":          "0",
	}
	if p.Recoverable {
		want["queue/io_timeout"] = "3000"
		if p.Depth > minRequests {
			want["queue/nr_requests"] = strconv.Itoa(p.Depth - 1)
		}
	}
	for name, value := range want {
		if have := knob(t, d, name); have != value && !(name == "queue/scheduler" && len(have) > len(value)) {
			t.Errorf("%s is %q, want %q", name, have, value)
		}
	}
	if have := knob(t, d, "queue/discard_max_bytes"); (have != "0") != p.Discard {
		t.Errorf("discard_max_bytes is %s, discard %v", have, p.Discard)
	}
	queues, err := filepath.Glob(filepath.Join(sysRoot, "block", filepath.Base(d.Path()), "mq", "*"))
	if err != nil || len(queues) != p.Queues {
		t.Errorf("kernel has %d queues, want %d", len(queues), p.Queues)
	}
}

func TestInfoAndList(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	a := createDevice(t, c, rs, Params{ID: 5, SizeBytes: 1 << 20, Depth: 16, ServerData: 99}, NewNull())
	b := createDevice(t, c, rs, Params{ID: 3, SizeBytes: 1 << 20, Recoverable: true}, NewNull())
	all, err := c.List(vmContext(t))
	if err != nil || len(all) != 2 || all[0].ID != b.ID() || all[1].ID != a.ID() {
		t.Fatalf("list is %+v, %v", all, err)
	}
	got := all[1]
	if got.State != StateLive || got.PID != os.Getpid() || got.Depth != 16 || got.Queues != 1 || got.MaxIOBytes != defaultMaxIO || got.ServerData != 99 {
		t.Errorf("info is %+v", got)
	}
	if got.Flags.Has(FeatureRecovery) || !all[0].Flags.Has(FeatureRecovery|FeatureReissue) || !got.Flags.Has(FeatureEncoded) {
		t.Errorf("flags are %v and %v", got.Flags, all[0].Flags)
	}
	if _, err := c.GetInfo(vmContext(t), 1234); !errors.Is(err, ErrNoDevice) || !errors.Is(err, syscall.ENODEV) {
		t.Errorf("info of a missing device: %v", err)
	}
	if _, err := c.Create(vmContext(t), Params{ID: 5, SizeBytes: 1 << 20}, NewNull(), rs); !errors.Is(err, ErrIDTaken) {
		t.Errorf("second device 5: %v", err)
	}
}

func TestFeaturesOfKernel(t *testing.T) {
	c := openControl(t)
	if !c.Features().Has(FeatureRecovery | FeatureReissue | FeatureEncoded) {
		t.Errorf("driver offers %v", c.Features())
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	t.Logf("Linux %s offers %v", unix.ByteSliceToString(u.Release[:]), c.Features())
}

func TestQueueAffinityCoversCPUs(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: 1 << 20, Queues: 2}, NewNull())
	var all []int
	for i := range d.Params().Queues {
		cpus, err := c.QueueAffinity(vmContext(t), d.ID(), i)
		if err != nil || len(cpus) == 0 {
			t.Fatalf("queue %d: CPUs %v, %v", i, cpus, err)
		}
		all = append(all, cpus...)
	}
	slices.Sort(all)
	have, err := allowedCPUs()
	if err != nil || !slices.Equal(slices.Compact(all), have) {
		t.Errorf("queues cover CPUs %v of %v, %v", all, have, err)
	}
	if _, err := c.QueueAffinity(vmContext(t), d.ID(), 2); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("affinity of a missing queue: %v", err)
	}
}

func TestParamsAreFixedOnceStarted(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: 1 << 20, Discard: true}, NewNull())
	u, err := c.GetParams(vmContext(t), d.ID())
	if err != nil {
		t.Fatal(err)
	}
	if u.Types&uapi.ParamDevt == 0 || u.Devt.DiskMajor == 0 || u.Basic.DevSectors != 2048 || u.Discard.Granularity != 4096 {
		t.Errorf("parameters are %+v", u)
	}
	if err := c.SetParams(vmContext(t), d.ID(), u); !errors.Is(err, syscall.EACCES) || errors.Is(err, ErrPermission) {
		t.Errorf("parameters of a started device: %v", err)
	}
}

// refusing is a Handler that fails to attach to one queue.
type refusing struct {
	Null
	queue int
}

var errRefused = errors.New("refused")

func (h *refusing) Attach(q *Queue) error {
	if q.Index() == h.queue {
		return errRefused
	}
	return h.Null.Attach(q)
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	for queue := range 2 {
		_, err := c.Create(vmContext(t), Params{ID: AutoID, SizeBytes: 1 << 20, Queues: 2}, &refusing{queue: queue}, rs)
		if !errors.Is(err, errRefused) {
			t.Errorf("handler that refuses queue %d: %v", queue, err)
		}
		wantNoDevices(t, c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Create(ctx, Params{ID: AutoID, SizeBytes: 1 << 20}, NewNull(), rs); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled create: %v", err)
	}
	wantNoDevices(t, c)
}

// A device whose bring-up fails after its requests were fetched, when the driver refuses to start it.
func TestFailedStartLeavesNothing(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	p := Params{ID: AutoID, SizeBytes: 1 << 20, Queues: 2}
	if err := p.setDefaults(); err != nil {
		t.Fatal(err)
	}
	info, err := c.Add(vmContext(t), p.devInfo(c.Features()))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetParams(vmContext(t), info.ID, p.driverParams()); err != nil {
		t.Fatal(err)
	}
	d := &Device{control: c, id: info.ID, flags: info.Flags, gone: make(chan struct{})}
	if err := d.serve(vmContext(t), &info, NewNull(), rs); err != nil {
		t.Fatal(err)
	}
	if err := d.undo(context.Background()); err != nil {
		t.Error(err)
	}
	wantNoDevices(t, c)
}

func TestCancelledStartIsInterrupted(t *testing.T) {
	c := openControl(t)
	info, err := c.Add(vmContext(t), uapi.DevInfo{NrHWQueues: 1, QueueDepth: 1, MaxIOBufBytes: 4096, DevID: uapi.AutoDevID})
	if err != nil {
		t.Fatal(err)
	}
	p := Params{ID: AutoID, SizeBytes: 1 << 20, MaxIOBytes: 4096}
	if err := p.setDefaults(); err != nil {
		t.Fatal(err)
	}
	if err := c.SetParams(vmContext(t), info.ID, p.driverParams()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	err = c.Start(ctx, info.ID) // waits for a FETCH that never comes
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrStuck) {
		t.Errorf("cancelled start: %v after %v", err, time.Since(begin))
	}
	if err := c.Remove(vmContext(t), info.ID); err != nil {
		t.Error(err)
	}
	wantNoDevices(t, c)
}

// stalling is a disk that answers reads only when it is let.
type stalling struct {
	*Mem
	stall atomic.Bool
	held  chan *Request
}

func (h *stalling) Serve(r *Request) {
	if r.Op == OpRead && h.stall.Load() {
		h.held <- r
		return
	}
	h.Mem.Serve(r)
}

func (h *stalling) Resume(r *Request, _ uint16, _ int32) { h.Mem.Serve(r) }

func TestDeviceIsRemovedWhenItsScanEndsAtLast(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	h := &stalling{Mem: vmDisk(t, 1<<20), held: make(chan *Request, 128)}
	h.stall.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	go func() {
		r := <-h.held
		time.Sleep(cancelGrace + time.Second)
		h.stall.Store(false)
		for {
			r.Post(0, 0)
			r = <-h.held
		}
	}()
	if _, err := c.Create(ctx, Params{ID: AutoID, SizeBytes: 1 << 20}, h, rs); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("create with a stalled handler: %v", err)
	}
	wantNoDevices(t, c)
}

func TestStopRefusesDeviceInUse(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	m := vmDisk(t, 1<<20)
	d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: m.Size(), Recoverable: true}, m)
	f, err := os.OpenFile(d.Path(), os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(vmContext(t)); !errors.Is(err, ErrInUse) {
		t.Errorf("stop of a device in use: %v", err)
	}
	if err := c.Remove(vmContext(t), d.ID()); !errors.Is(err, ErrInUse) {
		t.Errorf("removal of a served device: %v", err)
	}
	// It goes on, and what is only in the page cache when it stops is not lost.
	if _, err := f.WriteAt([]byte("dirty"), 4096); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	stopDevice(t, d)
	if string(m.slab[4096:4101]) != "dirty" {
		t.Errorf("disk has %q", m.slab[4096:4101])
	}
	wantNoDevices(t, c)
}

func TestStopWritesBackBufferedData(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	for _, recoverable := range []bool{false, true} {
		m := vmDisk(t, 4<<20)
		d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: m.Size(), Recoverable: recoverable}, m)
		data := make([]byte, 3<<20)
		for i := range data {
			data[i] = byte(i * 31 >> 3)
		}
		f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		// Another reader keeps the last close from writing back.
		other, err := os.Open(d.Path())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(data, 8192); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(200 * time.Millisecond)
			_ = other.Close()
		}()
		stopDevice(t, d)
		if !slices.Equal(m.slab[8192:8192+len(data)], data) {
			t.Errorf("recoverable %v: page cache was lost", recoverable)
		}
	}
}

func TestDeviceRemovedBySomebodyElse(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: 1 << 20, Queues: 2}, NewNull())
	if err := c.Delete(vmContext(t), d.ID()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.Done():
	case <-time.After(vmPatience):
		t.Fatal("device is not done")
	}
	stopDevice(t, d)
	wantNoDevices(t, c)
}

func TestAbortDoesNotAsk(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: 1 << 20}, NewNull())
	f, err := os.OpenFile(d.Path(), os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		_ = f.Close()
	}()
	if err := d.Abort(vmContext(t)); err != nil {
		t.Error(err)
	}
	wantNoDevices(t, c)
}

func TestManyDevicesShareReactors(t *testing.T) {
	c, rs := openControl(t), vmReactors(t)
	for i := range 70 { // more than the 64 that some kernels allow to the unprivileged
		m := vmDisk(t, 1<<20)
		d := createDevice(t, c, rs, Params{ID: AutoID, SizeBytes: m.Size(), Depth: 8, MaxIOBytes: 4096}, m)
		f, err := os.OpenFile(d.Path(), os.O_RDWR|unix.O_SYNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{byte(i + 1)}, 512); err != nil || m.slab[512] != byte(i+1) {
			t.Errorf("device %d: wrote %d, %v", i, m.slab[512], err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
