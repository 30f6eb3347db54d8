package vmtests

import (
	"errors"
	"os"
	"syscall"
	"time"

	"coppice/vmtests/wire"
)

// shutdownLimit is how long an orderly power-off may take before the VM is killed.
const shutdownLimit = 20 * time.Second

// Close switches the guest off and frees what the VM holds. Programs still running there are not waited for and nothing is
// synced: a test that wants its data unmounts first.
func (vm *VM) Close() error {
	if vm.conn != nil {
		_ = vm.conn.Send(wire.Request{Shutdown: &struct{}{}})
		select {
		case <-vm.exited:
		case <-time.After(shutdownLimit):
		}
	}
	return vm.Kill()
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
		if vm.stream != nil {
			err = vm.stream.Close()
		}
		vm.unlock()
		err = errors.Join(err, os.RemoveAll(vm.dir))
	})
	return err
}
