// Package faultproxy is an HTTP proxy that stands in front of a web server or a registry and makes the faults of networks and servers: answers that
// are late, slow, cut short, damaged, of something else, or do not come at all. It is for tests of those who read through it.
//
// A [Fault] is switched while the proxy runs. Silence and resets concern also what is under way. The proxy is safe for concurrent use.
package faultproxy
