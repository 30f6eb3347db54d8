// Command guest is everything the harness runs in a VM: as PID 1 it starts itself again as the agent and reaps
// orphans; as the agent it prepares the machine and runs what the host asks for. As a service of a system that boots by itself it is the agent, and prepares nothing.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The first argument: for the agent that PID 1 starts, and for one that is a service of a system.
const agentArg, serviceArg = "agent", "service"

func main() {
	switch {
	case len(os.Args) > 1 && os.Args[1] == agentArg:
		if err := agent(strings.Join(os.Args[2:], " ")); err != nil {
			fmt.Fprintln(os.Stderr, "guest agent:", err)
			os.Exit(1)
		}
	case len(os.Args) == 2 && os.Args[1] == serviceArg:
		if err := service(); err != nil {
			fmt.Fprintln(os.Stderr, "guest agent:", err)
			os.Exit(1)
		}
	case os.Getpid() == 1:
		firstProcess()
	default:
		fmt.Fprintln(os.Stderr, "guest: runs only inside a VM of the harness, as its first process or as a service")
		os.Exit(2)
	}
}

// firstProcess prepares the machine, reaps children until the agent is gone, then switches the machine off. It never
// returns: the kernel would panic. The root is changed here and not in the agent because the kernel's own helpers
// (modprobe) share this process's root directory (init/main.c, rest_init: CLONE_FS).
func firstProcess() {
	if err := mountBasics(); err != nil {
		fmt.Fprintln(os.Stderr, "guest init:", err)
		powerOff()
	}
	cmd := exec.Command("/proc/self/exe", agentArg)
	if err := setup(); err != nil {
		cmd.Args = append(cmd.Args, err.Error())
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
		"TMPDIR=/tmp", "LC_ALL=C.UTF-8", "TERM=dumb", "COPPICE_VM=1"}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "guest init: start agent:", err)
		powerOff()
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == unix.ECHILD || pid == cmd.Process.Pid {
			powerOff()
		}
	}
}

// powerOff ends the machine without syncing: a device that waits for a dead server must not keep it alive.
func powerOff() {
	for {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		time.Sleep(time.Second)
	}
}
