// Package peer lets nodes take chunks from each other and from appliances, so that a root is read from its origin once for all of them.
//
// # On the wire
//
// HTTP/1.1 over TLS 1.3, where both sides show a certificate of one authority, and trust no other:
//
//	GET /v1/chunks/DIGEST?root=CONTENTROOT&index=N&len=L    200 and the L bytes of a chunk, fetched for that where the image is open there
//	GET /v1/chunks/DIGEST?len=L                             the same, of what is in memory or on disk there
//
// A part of a page of an image's chunk table is asked for in the same way, by an index from [cache.TableIndex] on, and what describes the index of an image's files by [cache.SmallIndex] and the one after that.
//
// Whoever is asked for a chunk that it has to fetch says 102 (Processing) every 50 ms, so that one who is busy is told from one who is gone. 404 is the
// answer of one who has no such chunk, 503 of one who has too much to do, and still had after a moment in line, 508 of one who is asked by itself.
//
// # Who is asked
//
// All nodes order the peers for each chunk in the same way, by a hash of the peer's URL and the chunk's digest (rendezvous hashing). A node asks those
// that come before itself to fetch it, the first two that work and have the image open: [Client.Get]. The first of all asks nobody to fetch: it goes to the
// origin, once for everybody that asks it meanwhile. But before it does it asks the next one what it has already: [Client.Held]. That one was the first while this
// node was away, or before it opened the image. As a fetch is only ever asked for further up in one order, no request can come back to where it began, whatever
// lists the nodes have.
//
// # What is lost when
//
// A peer that is silent for 250 ms, breaks a connection, or answers nonsense is put aside after that one try, and so is one that gave wrong bytes, which the cache
// finds out and tells by [Client.Reject]. It is asked in the background, for the chunk that went wrong, until it is right about that. Whatever a peer does,
// [Client.Get] ends within 600 ms, and the cache goes on to its next tier. An appliance that has too much to do is asked again until then: if all who find it busy went to the origin at once, that would have to give everything.
// Of peers there are others to ask.
package peer
