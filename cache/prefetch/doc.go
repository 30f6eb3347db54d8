// Package prefetch reads parts of a root before somebody asks for them: those that a device asked for in its first minutes, when the next one is made on
// the same content ([Recorder], [Trace]), and those that come next in a sequential stream ([Streams]). A [Job] does the reading, behind those
// who wait for what they read.
//
// It only ever reads. What it reads goes into whatever is read through, such as a cache; that it was in vain costs time of the network,
// and that it fails is nobody's error.
package prefetch
