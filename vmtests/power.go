package vmtests

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"coppice/vmtests/wire"
)

// shutdownLimit is how long an orderly power-off may take before the VM is killed.
const shutdownLimit = 20 * time.Second

// Close switches the guest off and frees what the VM holds. Programs still running there are not waited for and nothing is
// synced: a test that wants its data unmounts first. A system that has booted by itself is killed; PowerOff shuts it down.
func (vm *VM) Close() error {
	if vm.conn != nil && !vm.own {
		_ = vm.conn.Send(wire.Request{Shutdown: &struct{}{}})
		select {
		case <-vm.exited:
		case <-time.After(shutdownLimit):
		}
	}
	return vm.Kill()
}

// systemOffLimit is how long a system may take to shut down.
const systemOffLimit = 5 * time.Minute

// PowerOff has a system that booted by itself shut down, and waits until the machine is off. What the VM holds stays, among it the console, until
// Kill.
func (vm *VM) PowerOff(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, systemOffLimit)
	defer cancel()
	if err := vm.conn.Send(wire.Request{Shutdown: &struct{}{}}); err != nil {
		return vm.gone(err)
	}
	select {
	case <-vm.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("shut the guest down: it is not off after %v\n%s", systemOffLimit, vm.Report())
	}
}

// Kill ends QEMU at once and frees what the VM holds. To the guest it is a power cut, except that writes which QEMU had
// handed to the host's page cache survive it. Kill after Close, or a second Kill, does nothing.
func (vm *VM) Kill() error {
	var err error
	vm.close.Do(func() {
		if vm.cmd != nil && vm.cmd.Process != nil {
			if killErr := vm.cmd.Process.Signal(syscall.SIGKILL); killErr == nil || errors.Is(killErr, os.ErrProcessDone) {
				<-vm.exited
			}
		}
		if vm.port != nil {
			err = vm.hangUp()
		}
		vm.unlock()
		if vm.kept != "" {
			err = errors.Join(err, os.WriteFile(vm.kept, []byte(vm.console()), 0o644))
		}
		err = errors.Join(err, os.RemoveAll(vm.dir))
	})
	return err
}

// hangUp closes the connection to the agent of a machine that is off, whether it has said hello or not.
func (vm *VM) hangUp() error {
	err := vm.port.Close()
	if g := <-vm.greeted; g.stream != nil {
		err = errors.Join(err, g.stream.Close())
	}
	return err
}
