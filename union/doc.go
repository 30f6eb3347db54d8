// Package union merges a read-only root image with a writable leaf, block by block, and
// presents the result as a [ublk.Handler].
//
// A leaf store is one partition or file, formatted once, that holds any number of
// layers sharing its space. A layer holds the 4 KiB blocks that its device wrote. The
// rest comes from the root, a [Base].
//
// # Write path
//
// Every write goes to a free slot (redirect on write): nothing live is overwritten in
// place, so an overwrite cannot tear. When the data has reached its slot, a record
// (layer, block, slot, CRC-32C) is appended to the modification log and the sector map
// is switched to the new slot. A flush writes the records to both copies of the log
// and then flushes the store's device once.
//
// # What survives
//
// Everything that a completed flush covered survives a power cut. Where the store was
// opened with a run directory, everything acknowledged survives the death of the process,
// because records live in a shared mapping on tmpfs until both log copies hold them.
//
// # Concurrency
//
// A [Store] and its [Layer] are safe for concurrent use. A [Device] is driven by the
// reactor threads of its queues. Lock order: store catalog, layer map, log, slots. No lock is held
// across I/O, except the catalog lock, which no request takes.
//
// # Failure model
//
// An error from a write or a flush of the store's device is sticky: from then on
// writes and flushes fail with EIO, and reads go on. A flush is never tried again, because
// the kernel may have dropped the pages that it could not write.
package union
