//go:build vm && long

package vmtests

import "testing"

// TestCounted runs the VM tests that measure in instructions, whatever else this machine does meanwhile.
func TestCounted(t *testing.T) {
	t.Parallel()
	m := &testVM{t: t, b: newBuild(t), cfg: Config{Name: "counted", Counted: true, Modules: []string{"brd rd_nr=1 rd_size=262144"}}}
	tests := m.add(commandPackage)
	if err := tests.Select(countedTests); err != nil {
		t.Fatal(err)
	}
	m.run(t, tests, packageLimit)
}
