// Package boottrace is about the requests that a device had, as the kernel saw them: a file with all of them in order ([Trace], [Decode]), what they come to ([Trace.Summary]),
// and which chunks of the root they asked for, which is what another node has read before it is asked for it ([Trace.Prefetch]).
//
// The events come from the eBPF programs of package ebpf ([New]). What a file says is not trusted: every number is compared with what it leads to, and a file is
// advice about what to read, and nothing else.
//
// A Trace is not changed once it is made: its methods may be called from any goroutine.
package boottrace
