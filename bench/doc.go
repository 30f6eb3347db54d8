// Package bench measures Coppice's block devices beside the kernel's own.
//
// One run is one virtual machine. In it, every subject (null, memory and union devices,
// the kernel's loop device, dm-snapshot) does every job that makes sense for it, once per round;
// the order of the subjects is reversed every other round. All stores are RAM disks
// of the guest, so that what is measured is software. A ratio is taken between a subject and the loop device
// in the same round, and reported as the median over rounds with a 95 % bootstrap
// interval. Absolute figures of an emulated machine do not carry over to a real one.
//
// Two vCPU threads that share one host core, or wait for another process, spoil a
// job without leaving a trace in the guest. The host therefore watches how long they wait to run
// and voids the jobs in which they did; the report says how many.
//
// The subjects and jobs are in plan.go. Command benchguest runs them inside the machine and
// prints one [Event] per line; command benchhost boots the machine, reads the events and
// writes the report.
package bench
