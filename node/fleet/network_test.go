package fleet_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// hubAddr is the address of the network's middle. Members have the ones after it, each in a namespace of its own.
const hubAddr = "10.83.0.1"

// hub is the middle of a network that the test made: a network namespace with a bridge. Nothing of it has a name outside, so that all of it goes with the
// processes in it, however they end.
type hub struct{ work chan func() }

// newHub makes the middle of a network. It is there until the test ends.
func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{work: make(chan func())}
	made := make(chan error)
	go h.run(made)
	if err := <-made; err != nil {
		t.Fatalf("make a network namespace (which takes root, or CAP_SYS_ADMIN and CAP_NET_ADMIN, a kernel with bridge and veth, and iproute2): %v", err)
	}
	t.Cleanup(func() { close(h.work) })
	return h
}

// run does the work of a thread that is in the namespace. The thread ends with it, as it must not do anything else any more.
func (h *hub) run(made chan<- error) {
	runtime.LockOSThread()
	err := syscall.Unshare(syscall.CLONE_NEWNET)
	if err == nil {
		err = ip("link set lo up", "link add hub address "+hardware(hubAddr)+" type bridge", "link set hub up", "addr add "+hubAddr+"/16 dev hub")
	}
	if made <- err; err != nil {
		return
	}
	for do := range h.work {
		do()
	}
}

// do calls a function on the thread in the namespace: sockets that it makes, and processes that it starts, are in there.
func (h *hub) do(f func() error) error {
	ended := make(chan error)
	h.work <- func() { ended <- f() }
	return <-ended
}

// hardware is the hardware address that goes with an address. Without one of its own a bridge has that of one of its wires, and another one when that wire
// goes, which may be a while after its process: the others would not find it for most of a minute. Likewise for addresses that are used again.
func hardware(addr string) string {
	ip4 := netip.MustParseAddr(addr).As4()
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", ip4[0], ip4[1], ip4[2], ip4[3])
}

// connect connects the namespaces of processes with the bridge. Each finds its end of the wire under the name "wire".
func (h *hub) connect(all []*process) error {
	var commands []string
	for _, p := range all {
		pid := p.cmd.Process.Pid
		commands = append(commands, fmt.Sprintf("link add p%d type veth peer name wire address %s netns %d", pid, hardware(p.addr), pid), fmt.Sprintf("link set p%d master hub up", pid),
			neighbour(p.addr, "hub"))
	}
	return h.do(func() error { return ip(commands...) })
}

// join gives the process's end of the wire an address, and tells it where the others are.
func join(addr string, others []string) error {
	commands := []string{"link set lo up", "addr add " + addr + "/16 dev wire", "link set wire up", neighbour(hubAddr, "wire")}
	for _, other := range others {
		if other != addr {
			commands = append(commands, neighbour(other, "wire"))
		}
	}
	return ip(commands...)
}

// neighbour is the command that makes an address known for good. All namespaces of a kernel together look up at most net.ipv4.neigh.default.gc_thresh3 others, 1024 as a rule: 64 nodes that know
// each other are four times as many, and would take each other, and the origin, for dead ("neighbor table overflow" in the kernel's log). What was not looked up does not count.
func neighbour(addr, device string) string {
	return "neigh replace " + addr + " lladdr " + hardware(addr) + " dev " + device + " nud permanent"
}

// ip runs commands of ip(8) in the namespace of the calling thread.
func ip(commands ...string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	said, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w: make deps installs it", err)
	}
	if err != nil {
		return fmt.Errorf("ip: %w: %s", err, said)
	}
	return nil
}
