package ebpf

// The sources, by what the programs count them as: 0 for requests of which nothing was said, and i for those whose mark has bit i-1 as the highest one. They
// are those of union.Origins, the nearest first.
var sources = [...]string{"unknown", "zero", "leaf", "branch", "memory", "disk", "peer", "appliance", "root"}

// The operations, by what the programs count them as.
var operations = [...]string{"read", "write", "flush", "discard"}

// Sources returns the names of the sources, the nearest first. "unknown" is where the daemon said nothing: it did not have the maps yet.
func Sources() []string { return sources[:] }

// Operations returns the names of the operations; write-zeroes are counted as discards.
func Operations() []string { return operations[:] }
