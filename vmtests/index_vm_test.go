//go:build vm && long

package vmtests

import (
	"testing"
	"time"
)

// mutatedLimit is how long TestMutatedDevices may take in the guest: a device takes half a minute, or a whole one where this machine has much else to do.
const mutatedLimit = time.Hour

// TestMutatedDevices changes files on devices at random in a VM, and compares what the index says of them.
func TestMutatedDevices(t *testing.T) {
	t.Parallel()
	m := &testVM{t: t, b: newBuild(t), cfg: Config{Name: "mutated", Files: make(map[string]string)}}
	tests := m.add(commandPackage)
	if err := tests.Select(mutatedTests); err != nil {
		t.Fatal(err)
	}
	m.run(t, tests, mutatedLimit)
}
