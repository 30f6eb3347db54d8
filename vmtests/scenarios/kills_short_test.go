//go:build vm && !long

package scenarios

// kills is how often TestDaemonIsKilledUnderLoad does it; some successors are killed besides.
const kills = 30
