package boot

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// wires are interfaces of which some get a carrier when they are switched on.
type wires struct {
	all     []net.Interface
	cabled  map[string]bool
	raised  []string
	lists   int
	appears net.Interface // at the third look
}

func (w *wires) links() links {
	return links{
		interfaces: func() ([]net.Interface, error) {
			if w.lists++; w.lists == 3 && w.appears.Name != "" {
				w.all = append(w.all, w.appears)
			}
			return append([]net.Interface(nil), w.all...), nil
		},
		raise: func(name string) error {
			for i := range w.all {
				if w.all[i].Name == name {
					w.raised = append(w.raised, w.all[i].Name)
					w.all[i].Flags |= net.FlagUp
					if w.cabled[w.all[i].Name] {
						w.all[i].Flags |= net.FlagRunning
					}
				}
			}
			return nil
		},
	}
}

func wire(index int, name string, flags net.Flags) net.Interface {
	return net.Interface{Index: index, Name: name, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, byte(index)}, Flags: flags}
}

func TestLinksAreRaisedUntilOneHasACarrier(t *testing.T) {
	loop := net.Interface{Index: 1, Name: "lo", Flags: net.FlagUp | net.FlagRunning | net.FlagLoopback}
	for _, tt := range []struct {
		name   string
		w      wires
		only   string
		raised string
		err    string
	}{
		{name: "both, one cable", w: wires{all: []net.Interface{loop, wire(2, "eth0", 0), wire(3, "eth1", 0)}, cabled: map[string]bool{"eth1": true}}, raised: "eth0 eth1"},
		{name: "named", w: wires{all: []net.Interface{loop, wire(2, "eth0", 0), wire(3, "eth1", 0)}, cabled: map[string]bool{"eth1": true}}, only: "eth1", raised: "eth1"},
		{name: "works already", w: wires{all: []net.Interface{loop, wire(2, "eth0", net.FlagUp|net.FlagRunning)}}},
		{name: "appears", w: wires{all: []net.Interface{loop}, appears: wire(4, "usb0", 0), cabled: map[string]bool{"usb0": true}}, raised: "usb0"},
		{name: "no cable", w: wires{all: []net.Interface{loop, wire(2, "eth0", 0), wire(3, "eth1", net.FlagUp)}}, raised: "eth0", err: "no carrier at eth0, eth1"},
		{name: "none", w: wires{all: []net.Interface{loop}}, err: "there is no network interface"},
		{name: "other named", w: wires{all: []net.Interface{loop, wire(2, "eth0", net.FlagUp|net.FlagRunning)}}, only: "eth7", err: "no network interface eth7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			l := tt.w.links()
			if list := l.interfaces; tt.err != "" {
				l.interfaces = func() ([]net.Interface, error) {
					if tt.w.lists == 2 {
						cancel()
					}
					return list()
				}
			}
			err := l.await(ctx, tt.only)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if got := strings.Join(tt.w.raised, " "); got != tt.raised {
				t.Errorf("raised %q, want %q", got, tt.raised)
			}
		})
	}
}

func TestLinkThatCannotBeRaisedIsNamed(t *testing.T) {
	l := links{
		interfaces: func() ([]net.Interface, error) { return []net.Interface{wire(2, "eth0", 0)}, nil },
		raise:      func(string) error { return unix.EPERM },
	}
	if err := l.await(t.Context(), ""); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("error %v", err)
	}
}

func TestInterfaceOfIP(t *testing.T) {
	for line, want := range map[string]string{
		"root=/dev/ublkb0 quiet": "",
		"ip=dhcp":                "",
		"ip=10.0.0.2::10.0.0.1:255.255.255.0:node:eth3:off":      "eth3",
		"ip=:::::enp1s0:dhcp quiet":                              "enp1s0",
		"ip=:::::enp1s0:dhcp ip=dhcp":                            "",
		"ip=10.0.0.2::10.0.0.1:255.255.255.0::eth1:off:10.0.0.3": "eth1",
	} {
		if got := ipInterface(line); got != want {
			t.Errorf("%q: interface %q, want %q", line, got, want)
		}
	}
}

// The loopback of a network namespace of its own is off at first.
func TestRaiseLinkOfANamespace(t *testing.T) {
	done := make(chan struct{})
	go func() { // its thread ends with it
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("make a network namespace (which takes root, or CAP_SYS_ADMIN): %v", err)
			return
		}
		before, err := net.InterfaceByName("lo")
		if err != nil || before.Flags&net.FlagUp != 0 {
			t.Errorf("lo: %+v, %v", before, err)
			return
		}
		if err := raiseLink("lo"); err != nil {
			t.Error(err)
		}
		if after, err := net.InterfaceByName("lo"); err != nil || after.Flags&net.FlagUp == 0 {
			t.Errorf("lo: %+v, %v", after, err)
		}
		if err := raiseLink("none7"); !errors.Is(err, unix.ENODEV) {
			t.Errorf("an interface that is not there: %v", err)
		}
	}()
	<-done
}

func TestRaiseLinksReadsTheCommandLine(t *testing.T) {
	root := t.TempDir()
	if err := RaiseLinks(t.Context(), root); err == nil {
		t.Error("there is no command line")
	}
	if err := writeFile(filepath.Join(root, procCommandLine), []byte("ip=:::::none7:dhcp\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := RaiseLinks(ctx, root); err == nil || !strings.Contains(err.Error(), "none7") {
		t.Errorf("error %v", err)
	}
}
