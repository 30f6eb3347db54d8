//go:build vm

package scenarios

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"coppice/image"
	"coppice/image/faultproxy"
	"coppice/node"
)

// The part of the Debian root that is compared, which holds data, and the part behind it that fio writes to.
const (
	probedOff, probedBytes = 16 << 20, 128 << 20
	probeBytes             = 16 << 10
	probers                = 3
)

// comparer reads a device here and there and compares what it reads with the disk that its root was made of.
type comparer struct {
	device, want *os.File
	stop         atomic.Bool
	reads        atomic.Int64
	longest      atomic.Int64 // of a read, in ns
	group        errgroup.Group
}

func startComparing(t *testing.T, device, want string) *comparer {
	t.Helper()
	p := &comparer{}
	for path, f := range map[string]**os.File{device: &p.device, want: &p.want} {
		var err error
		if *f, err = os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*f).Close() })
	}
	for i := range probers {
		p.group.Go(func() error { return p.run(rand.New(rand.NewPCG(uint64(i), 7))) })
	}
	t.Cleanup(func() { p.stop.Store(true) })
	return p
}

func (p *comparer) run(rng *rand.Rand) error {
	buf, err := unix.Mmap(-1, 0, 2*probeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	got, want := buf[:probeBytes], buf[probeBytes:]
	for !p.stop.Load() {
		off := probedOff + rng.Int64N(probedBytes/probeBytes)*probeBytes
		began := time.Now()
		if _, err := p.device.ReadAt(got, off); err != nil {
			return err
		}
		took := time.Since(began).Nanoseconds()
		for before := p.longest.Load(); took > before && !p.longest.CompareAndSwap(before, took); before = p.longest.Load() {
		}
		if _, err := p.want.ReadAt(want, off); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("wrong bytes at %d", off)
		}
		p.reads.Add(1)
	}
	return nil
}

// phase lets some time pass and prints how reads went.
func (p *comparer) phase(t *testing.T, name string, length time.Duration) {
	t.Helper()
	before := p.reads.Load()
	p.longest.Store(0)
	time.Sleep(length)
	t.Logf("%-32s %5.0f reads a second, the longest %d ms", name, float64(p.reads.Load()-before)/length.Seconds(), time.Duration(p.longest.Load()).Milliseconds())
}

// replicas are places where one root is, each behind a proxy that makes faults.
type replicas []*faultproxy.Proxy

func (r replicas) ref(i int) string { return r[i].URL() + "/copied:debian:1" }

func (r replicas) set(f faultproxy.Fault, which ...int) {
	for _, i := range which {
		r[i].Set(f)
	}
}

// await waits until the device's root says that a replica has a state.
func (r replicas) await(t *testing.T, i int, want image.State) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		var d node.Device
		if err := json.Unmarshal([]byte(coppice(t, "inspect", "web1", "-o", "json")), &d); err != nil {
			t.Fatal(err)
		}
		for _, status := range d.Root.Replicas {
			if status.Ref == r.ref(i) && status.State == want {
				t.Logf("replica %d is %s after %d ms %s", i, want, time.Since(began).Milliseconds(), status.Error)
				return
			}
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("replica %d is not %s: %+v", i, want, d.Root.Replicas)
		}
	}
}

// TestImageReplicas reads a root from three replicas while fio verifies what it writes, and other readers compare all that they read. Replicas
// die, are slow and lie, one is added, all are gone and one comes back.
func TestImageReplicas(t *testing.T) {
	network(t)
	var r replicas
	for range 4 {
		proxy, err := faultproxy.Start("127.0.0.1:0", lab(t, "web"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { proxy.Close() })
		r = append(r, proxy)
	}
	leaf := disk(t, "leaf")
	format(t, leaf)
	startDaemon(t)
	dev := createForTest(t, "web1", r.ref(0), leaf, "--root", r.ref(1), "--root", r.ref(2))
	p := startComparing(t, dev.Path, disk(t, "debian"))
	jobs := startFioAt(dev.Path, (probedOff+probedBytes)>>20, "512-2k") // less than a block: the rest of it comes from the root
	p.phase(t, "three replicas", 3*time.Second)
	r.set(faultproxy.Fault{Reset: true}, 0)
	p.phase(t, "one resets connections", 3*time.Second)
	r.set(faultproxy.Fault{Blackhole: true}, 1)
	p.phase(t, "and one says nothing", 4*time.Second)
	r.set(faultproxy.Fault{Delay: 50 * time.Millisecond}, 2)
	p.phase(t, "and the last is 50 ms late", 3*time.Second)
	r.set(faultproxy.Fault{}, 0, 1, 2)
	r.await(t, 0, image.StateReady)
	r.await(t, 1, image.StateReady)

	r.set(faultproxy.Fault{Flip: true}, 0)
	r.await(t, 0, image.StateLiar)
	p.phase(t, "one lies", 2*time.Second)
	coppice(t, "root", "remove", "web1", r.ref(0))

	coppice(t, "root", "add", "web1", r.ref(3))
	p.phase(t, "one is added", 5*time.Second)
	before := [3]int64{r[1].Requests(), r[2].Requests(), r[3].Requests()}
	var added, all int64
	for all < 300 { // of fewer, chance takes more than a fifth
		p.phase(t, "it has been there for 5 s", time.Second)
		added = r[3].Requests() - before[2]
		all = added + r[1].Requests() - before[0] + r[2].Requests() - before[1]
	}
	share := float64(added) / float64(all) * 3
	t.Logf("5 s after it was added: %d of %d requests, %.2f of its fair share", added, all, share)
	if share < 0.8 {
		t.Errorf("the added replica gets %.2f of its fair share", share)
	}

	r.set(faultproxy.Fault{Reset: true}, 1, 2, 3)
	p.phase(t, "all are gone", 3*time.Second)
	reads := p.reads.Load()
	r.set(faultproxy.Fault{}, 2)
	for began := time.Now(); p.reads.Load() < reads+20; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatal("reads do not go on")
		}
	}
	p.phase(t, "one is back", 2*time.Second)
	p.stop.Store(true)
	if err := p.group.Wait(); err != nil {
		t.Error(err)
	}
	jobs.finish(t)
	t.Logf("%d reads compared; %s", p.reads.Load(), strings.TrimSpace(coppice(t, "inspect", "web1")))
}
