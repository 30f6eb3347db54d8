// Package ebpf measures in the kernel how long the requests of block devices take, by where their data came from.
//
// # How
//
// A program at the tracepoint block_rq_complete (c/latency.bpf.c) counts each request of the disks that are entered in a table in a histogram of its disk, operation and
// source, by how long ago the kernel made it. Three maps are memory that the programs share with the daemon: the table of
// disks, a word per tag in which the daemon says where the data came from before it answers the request ([Disk.Marks]), and the histograms. So the daemon makes
// no system call for any of that, neither per request nor to read the numbers.
//
// # Who may do what
//
// [Load] is for a process with CAP_BPF and CAP_PERFMON (or root) that ends at once: it loads and attaches the programs, and pins them below [DefaultPins], so that
// they stay until [Unload], whatever becomes of the daemon. [Maps.Send] hands the three maps to the daemon over a Unix socket. The daemon needs no capability
// and no call of bpf(): it maps what it was given ([Receive], [Open]), and finds out what that is from /proc.
//
// # What is not trusted
//
// The programs compare each number that they find in the table with the map that it leads to, so a broken table costs figures and nothing else. What is read from
// the histograms is added up and never used as an index. Sizes are those that the kernel says the maps have.
//
// # Kernel
//
// Linux 6.1 is the oldest. [Probe] says what a machine lacks; without it everything else works.
//
// # Concurrency
//
// Methods of [Tables] and [Disk] may be called from any goroutine. The slices that [Disk.Marks] returns belong to the threads that serve the queues, which
// must have let them go before [Tables.Close].
package ebpf
