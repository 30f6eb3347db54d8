// Package cache keeps chunks of root images near whoever reads them: in memory, on a disk of this machine, at other nodes and at appliances. A chunk
// is known by the digest of its content, so devices, branches and versions share it, and whatever a tier gives is verified before it goes anywhere.
//
// A read asks the tiers in this order, for just the chunks that the one before did not have:
//
//	memory ─ disk ─ peers ─ appliance ─ origin
//
// Losing a tier costs time. It is never an error.
package cache
