// Package resident keeps a process that serves disks from ever waiting for them: its program is in memory ([Program],
// [LockMemory]), and the kernel does not write to disks when one of its threads wants memory ([BecomeFlusher]).
//
// Nothing here keeps state. All functions are for the start of a process, before other goroutines depend on what they change.
package resident
