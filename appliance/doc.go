// Package appliance serves nodes from one machine: directories with images, as a web server does, and chunks of images from its cache, which it fills
// from their origins once for all nodes.
//
// It answers at one address, over TLS 1.3, who has a certificate of its authority:
//
//	/NAME/index.json, /NAME/oci-layout, /NAME/blobs/sha256/…    the directory whose last part is NAME; nothing else of it, and no list
//	/v1/chunks/…                                                chunks: see package peer
//	/v1/stats                                                   what it does, in JSON
//
// Losing an appliance costs nodes time: they read from another one, or from the origin.
package appliance
