// Package cachepeers measures a hit of the block cache beside other caches. It is a module of its own, so that nothing else depends on them.
package cachepeers
