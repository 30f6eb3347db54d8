// Package image keeps root images: named and versioned, cut into chunks, each verified by its SHA-256
// before anybody sees it.
//
// An image is an OCI artifact. Its config has a content root, the root of a hash tree over the digests
// of all chunks, which identifies the content however it is packed and wherever it lies. Its table is that
// tree, in pages that are fetched when they are asked for. Its packs hold the chunks, compressed one by
// one. docs/image-format.md describes all of it.
//
// [Build] makes an image in an OCI layout, [Open] reads one from any [Source], [Copy] carries one
// from a source to a [Target], and [Verify] reads all of one.
//
// # Trust
//
// Nothing that a source answers is believed: a manifest asked for by digest is compared with it, the config is
// compared with the manifest, every page of the table with the page above it up to the content root in the
// config, and every chunk with its page. A source that answers wrongly gives a [CorruptError], never wrong bytes.
// Whoever opens an image by a tag believes the source in what the tag means, and compares the content root.
//
// # Concurrency
//
// An [Image] and its Source are safe for concurrent use. A page or chunk that several callers want at once is fetched once. A caller
// whose context ends stops waiting; what nobody waits for any more is called off. A [Layout] is safe for use by any number of processes:
// its index is changed under a lock, and blobs appear under their names when they are complete and durable.
//
// # Failure model
//
// A fetch of an [Image] that fails is not tried again here, and its error is not remembered: the next caller fetches again. A [Set] reads one content from
// several images of it, its replicas: it asks another one where one fails, is slow, silent or lies, and waits where none answers. docs/architecture.md
// says how. Close of an image or a set waits for requests that are under way; those to a directory cannot be called off.
package image
