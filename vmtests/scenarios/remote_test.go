//go:build vm

package scenarios

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// useRemote puts a leaf store on a remote block device, works on a union device over it while breakOnce disturbs the
// connection, and finds all data again after the device was made anew.
func useRemote(t *testing.T, leaf string, breakOnce func()) {
	t.Helper()
	startDaemon(t)
	coppice(t, "store", "format", "--force", leaf)
	root := rawRoot(t, rawRootBytes)
	dev := rawDevice(t, root, leaf, 512, 1)
	disturbed := make(chan struct{})
	go func() {
		defer close(disturbed)
		for range 3 {
			time.Sleep(700 * time.Millisecond)
			breakOnce()
		}
	}()
	began := time.Now()
	fio(t, dev.Path, "remote", "--rw=randrw", "--offset=16M", fmt.Sprint("--size=", remoteMiB, "M"), "--bsrange=4k-16k", "--end_fsync=1")
	t.Logf("fio took %.1f s", time.Since(began).Seconds())
	models := workOn(t, dev.Path, 512, 1, nil)
	<-disturbed
	coppice(t, "delete", "raw")
	coppice(t, "store", "check", "--no-data", leaf)
	dev = rawDevice(t, root, leaf, 512, 1)
	workOn(t, dev.Path, 512, 2, models)
	coppice(t, "delete", "raw")
}

// TestLeafOnNBD has its leaf on the kernel's NBD client. The server answers late, and is killed and started again while
// writes are under way: the kernel waits for the new connection and sends again what had no answer.
func TestLeafOnNBD(t *testing.T) {
	sh(t, "modprobe nbd nbds_max=1")
	server := &nbdServer{t: t, port: 10809, disk: disk(t, "remote")}
	server.start()
	t.Cleanup(server.kill)
	client := attachNBD(t, server.port)
	useRemote(t, "/dev/nbd0", func() {
		server.kill()
		time.Sleep(200 * time.Millisecond)
		server.start()
		client.reconnect()
	})
}

// nbdServer is an nbdkit that serves a disk of the guest with a delay on every request.
type nbdServer struct {
	t    *testing.T
	port int
	disk string
	cmd  *exec.Cmd
}

func (s *nbdServer) start() {
	s.cmd = exec.Command("nbdkit", "-f", "-i", "127.0.0.1", "-p", strconv.Itoa(s.port), "--filter=delay", "file", s.disk,
		"rdelay=1ms", "wdelay=1ms")
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		s.t.Errorf("start nbdkit: %v", err)
		return
	}
	for range 1000 {
		conn, err := net.Dial("tcp", s.address())
		if err == nil {
			conn.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Error("nbdkit does not listen")
}

func (s *nbdServer) address() string { return "127.0.0.1:" + strconv.Itoa(s.port) }

func (s *nbdServer) kill() {
	if err := s.cmd.Process.Kill(); err == nil {
		_ = s.cmd.Wait()
	}
}

// TestLeafOnNVMeTCP has its leaf on NVMe over TCP: the guest's own kernel is target and initiator. The target drops its
// connections while writes are under way.
func TestLeafOnNVMeTCP(t *testing.T) {
	const (
		nqn    = "nqn.2026-11.test:leaf"
		nvmet  = "/sys/kernel/config/nvmet"
		export = nvmet + "/ports/1/subsystems/" + nqn
	)
	// Each lost connection counts against a command, and so does a keep-alive that an emulated machine answers late.
	sh(t, "modprobe nvmet-tcp; modprobe nvme-tcp; echo 100 >/sys/module/nvme_core/parameters/max_retries")
	subsystem := nvmet + "/subsystems/" + nqn
	sh(t, `mkdir -p `+subsystem+`/namespaces/1 `+nvmet+`/ports/1
echo 1 >`+subsystem+`/attr_allow_any_host
echo `+disk(t, "remote")+` >`+subsystem+`/namespaces/1/device_path
echo 1 >`+subsystem+`/namespaces/1/enable
cd `+nvmet+`/ports/1
echo tcp >addr_trtype
echo ipv4 >addr_adrfam
echo 127.0.0.1 >addr_traddr
echo 4420 >addr_trsvcid
ln -s `+subsystem+` `+export)
	sh(t, "echo transport=tcp,traddr=127.0.0.1,trsvcid=4420,nqn="+nqn+
		",hostnqn=nqn.2026-11.test:host,hostid=0a7a1d5c-5f0a-4b3e-9d0a-111111111111,reconnect_delay=1,ctrl_loss_tmo=120,keep_alive_tmo=60 >/dev/nvme-fabrics")
	t.Cleanup(func() {
		sh(t, "for c in /sys/class/nvme/nvme*; do echo 1 >$c/delete_controller; done")
		sh(t, "rm "+export+"; rmdir "+nvmet+"/ports/1; echo 0 >"+subsystem+"/namespaces/1/enable; rmdir "+subsystem+"/namespaces/1 "+subsystem)
	})
	namespace := strings.TrimSpace(sh(t, "cd /sys/class/nvme-subsystem; ls -d nvme-subsys*/nvme*n1 | head -1"))
	device := "/dev/" + namespace[strings.LastIndexByte(namespace, '/')+1:]
	waitForFile(t, device)
	useRemote(t, device, func() {
		if err := os.Remove(export); err != nil {
			t.Errorf("close the target's port: %v", err)
		}
		time.Sleep(300 * time.Millisecond)
		if err := os.Symlink(subsystem, export); err != nil {
			t.Errorf("open the target's port: %v", err)
		}
		waitForConnection(t)
	})
}

// waitForConnection returns when the initiator has its connection again: one that is cut while it is being made is waited for by the kernel
// for a minute.
func waitForConnection(t *testing.T) {
	t.Helper()
	for range 600 {
		states, _ := filepath.Glob("/sys/class/nvme/nvme*/state")
		if len(states) > 0 {
			if state, err := os.ReadFile(states[0]); err == nil && strings.TrimSpace(string(state)) == "live" {
				return
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error("the initiator has no connection after a minute")
}
