//go:build vm && !long

package scenarios

// comparedParts are the directories whose files TestImageRoot compares. The whole system, through TLS under emulation, takes minutes.
var comparedParts = []string{"etc", "usr/bin", "usr/sbin", "var"}
