package node_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice/node"
)

// freeze seals a device in its two steps.
func (r *rig) freeze(name, as string) node.SealedFreeze {
	r.t.Helper()
	c, ctx := r.client(), context.Background()
	p, err := c.PrepareFreeze(ctx, name, node.FreezeRequest{As: as})
	check(r.t, err)
	sealed, err := c.Seal(ctx, name, p.Token)
	check(r.t, err)
	return sealed
}

// refused asserts the code of a refusal, what it says, and that it says what to do.
func (r *rig) refused(err error, code node.Code, say string) {
	r.t.Helper()
	if err == nil || node.CodeOf(err) != code || !strings.Contains(err.Error(), say) || node.HintOf(err) == "" {
		r.t.Errorf("%s: %v (%s), want %s", node.CodeOf(err), err, node.HintOf(err), code)
	}
}

// A frozen device goes on; devices from the sealed layer have what it held, across restarts, at any depth.
func TestFreezeAndBranch(t *testing.T) {
	r := newRig(t)
	d := r.start()
	web := r.create(r.request("web1"))
	for i := range 5 {
		r.write(web.ID, fmt.Sprint("state ", i), 0)
		sealed := r.freeze("web1", fmt.Sprint("cut", i))
		if !sealed.Layer.Sealed || sealed.Layer.DataBytes != 4096 || sealed.SealMS <= 0 {
			t.Errorf("sealed %+v", sealed)
		}
	}
	r.write(web.ID, "onwards", 0)
	back := r.create(r.from("back", "cut2"))
	check(t, d.Stop())
	r.start()
	for id, want := range map[int]string{web.ID: "onwards", back.ID: "state 2"} {
		if got := r.read(id, 0, 7); got != want {
			t.Errorf("device %d has %q, not %q", id, got, want)
		}
	}
	if l := r.openLayers("web1"); len(l) != 7 || l["web1"].Parent != "cut4" || l["cut4"].Parent != "cut3" || l["back"].Parent != "cut2" {
		t.Errorf("layers %+v", l)
	}
}

func TestFreezeRefusals(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create(r.request("web1"))
	r.freeze("web1", "cut")
	c, ctx := r.client(), context.Background()
	prepare := func(name, as string) error {
		_, err := c.PrepareFreeze(ctx, name, node.FreezeRequest{As: as})
		return err
	}
	r.refused(prepare("web1", "cut"), node.CodeNameTaken, "layer exists")
	r.refused(prepare("web1", "web1"), node.CodeNameTaken, "layer exists")
	r.refused(prepare("web1", "a/b"), node.CodeBadRequest, "layer name")
	r.refused(prepare("web1", ""), node.CodeBadRequest, "layer name")
	r.refused(prepare("web1", "export-x"), node.CodeBadRequest, "belong to exports")
	r.refused(prepare("web2", "x"), node.CodeNotFound, "no such device")

	p, err := c.PrepareFreeze(ctx, "web1", node.FreezeRequest{As: "x"})
	check(t, err)
	r.refused(prepare("web1", "y"), node.CodeBusy, "is freezing")
	_, err = c.Delete(ctx, "web1")
	r.refused(err, node.CodeBusy, "is freezing")
	_, err = c.Seal(ctx, "web2", p.Token)
	r.refused(err, node.CodeTimeout, "no freeze")
	_, err = c.Seal(ctx, "web1", "guessed")
	r.refused(err, node.CodeTimeout, "no freeze")
	check(t, c.CancelFreeze(ctx, "web1", p.Token))
	_, err = c.Seal(ctx, "web1", p.Token)
	r.refused(err, node.CodeTimeout, "no freeze")
	if l := r.openLayers("web1"); len(l) != 2 {
		t.Errorf("layers %v", l)
	}
	if s := state(t, r, "web1").State; s != node.StateLive {
		t.Error(s)
	}
}

// A freeze whose client has gone is cancelled by itself. Requests go on all the while.
func TestFreezeExpires(t *testing.T) {
	r := newRig(t)
	r.start()
	web := r.create(r.request("web1"))
	began := time.Now()
	p, err := r.client().PrepareFreeze(context.Background(), "web1", node.FreezeRequest{As: "x"})
	check(t, err)
	if limit := node.FreezeLimit.Seconds() * 1000; p.ExpiresMS != limit {
		t.Errorf("expires in %v ms", p.ExpiresMS)
	}
	r.write(web.ID, "meanwhile", 0)
	r.log.waitFor(t, func() bool { return strings.Contains(r.log.String(), "freeze was not sealed in time") })
	if took := time.Since(began); took < node.FreezeLimit || took > 2*node.FreezeLimit {
		t.Errorf("expired after %s", took)
	}
	_, err = r.client().Seal(context.Background(), "web1", p.Token)
	r.refused(err, node.CodeTimeout, "no freeze")
	r.freeze("web1", "x")
}

// A list of devices does not wait for a store, though somebody who inspects a device does, and somebody else wants to change it.
func TestListDoesNotWaitForFreeze(t *testing.T) {
	r := newRig(t)
	r.start()
	r.create(r.request("web1"))
	c, ctx := r.client(), context.Background()
	p, err := c.PrepareFreeze(ctx, "web1", node.FreezeRequest{As: "x"})
	check(t, err)
	inspected := make(chan error, 2)
	go func() {
		_, err := r.client().Inspect(ctx, "web1")
		inspected <- err
	}()
	began := time.Now()
	for n := 0; n < 30 && time.Since(began) < node.FreezeLimit/2; n++ {
		_, err := c.Delete(ctx, "web1")
		r.refused(err, node.CodeBusy, "is freezing")
		if all, err := c.List(ctx); err != nil || len(all) != 1 || all[0].State != node.StateFreezing {
			t.Fatalf("list: %v, %v", all, err)
		}
	}
	check(t, c.CancelFreeze(ctx, "web1", p.Token))
	check(t, <-inspected)
}

// A daemon that is told to end waits for a freeze under way.
func TestStopWaitsForFreeze(t *testing.T) {
	r := newRig(t)
	d := r.start()
	r.create(r.request("web1"))
	p, err := r.client().PrepareFreeze(context.Background(), "web1", node.FreezeRequest{As: "x"})
	check(t, err)
	d.Signal()
	r.log.waitFor(t, func() bool { return strings.Contains(r.log.String(), "daemon stopping") })
	_, err = r.client().Seal(context.Background(), "web1", p.Token)
	check(t, err)
	<-d.Ended()
	check(t, d.Stop())
	if l := r.layers(); len(l) != 2 {
		t.Errorf("layers %v", l)
	}
}

// Writers, freezes and looks at the same devices, all at once.
func TestFreezeUnderLoad(t *testing.T) {
	r := newRig(t)
	r.start()
	const devices, rounds = 3, 10
	var wg sync.WaitGroup
	for i := range devices {
		name := fmt.Sprint("web", i)
		id := r.create(r.request(name)).ID
		stop := make(chan struct{})
		wg.Go(func() {
			defer close(stop)
			for k := range rounds {
				r.freeze(name, fmt.Sprint(name, "-", k))
			}
		})
		wg.Go(func() {
			for n := int64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
					r.write(id, name, n%512*4096)
				}
			}
		})
		wg.Go(func() {
			for range rounds {
				if _, err := r.client().Inspect(context.Background(), name); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if l := r.openLayers("web0"); len(l) != devices*(rounds+1) {
		t.Errorf("%d layers", len(l))
	}
}

// A device that is lost while it is being frozen is reported as lost afterwards.
func TestDeviceLostWhileFreezing(t *testing.T) {
	r := newRig(t)
	r.start()
	web := r.create(r.request("web1"))
	p, err := r.client().PrepareFreeze(context.Background(), "web1", node.FreezeRequest{As: "x"})
	check(t, err)
	r.kernel.Snatch(web.ID)
	check(t, r.client().CancelFreeze(context.Background(), "web1", p.Token))
	r.log.waitFor(t, func() bool { return state(t, r, "web1").State == node.StateFailed })
	_, err = r.client().PrepareFreeze(context.Background(), "web1", node.FreezeRequest{As: "x"})
	r.refused(err, node.CodeBusy, "is failed")
}
