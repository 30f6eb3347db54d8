//go:build vm && !long

package main

import "time"

// How often a supervised daemon is killed under load, and how long the load lasts for each.
const superviseKills, superviseSeconds = 3, 6

// rootSize is how large a root is. All of it is digested again and again, at some 10 MB/s where the CPU is emulated.
const rootSize = "24M"

// The root that is detached, how much of it is not zeros, and how much is copied in a second.
const detachedRoot, detachedData, detachRate = "24M", "6M", "512K"

// freezeStep is how much longer than the last one each frozen command lives.
const freezeStep = 24 * time.Millisecond
