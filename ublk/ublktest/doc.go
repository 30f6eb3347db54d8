// Package ublktest serves block devices without a kernel driver, for tests and benchmarks.
//
// [Sim] executes a Handler in one thread over disks in memory, in an order that a seed decides. It
// calls hooks around every write and flush, injects errors and short transfers, and
// knows what each disk may hold after a power cut ([Disk.Crash]).
//
// [Fake] is a driver in shared memory for the real reactors: it speaks the kernel's protocol with them, and
// checks theirs. Its clients submit requests as a file system would.
package ublktest
