//go:build vm && long

package main

// How often a supervised daemon is killed under load, and how long the load lasts for each.
const superviseKills, superviseSeconds = 50, 6
