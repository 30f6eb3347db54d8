//go:build mutants

package union

// mutant is the bug that this process has. It changes only while no store is open.
var mutant bug

func seeded(b bug) bool { return mutant == b }
