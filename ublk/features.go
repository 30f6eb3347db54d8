package ublk

import (
	"fmt"
	"strings"

	"coppice/ublk/uapi"
)

// Features is a set of the driver's UBLK_F_* bits: what a kernel offers, or what a device has.
type Features uint64

// Features that this package makes use of where the kernel has them.
const (
	FeatureRecovery    = Features(uapi.FUserRecovery)        // a device can outlive its server (Linux 6.1)
	FeatureReissue     = Features(uapi.FUserRecoveryReissue) // its requests then go to the successor (6.1)
	FeatureEncoded     = Features(uapi.FCmdIoctlEncode)      // commands are ioctl-encoded (6.4)
	FeatureQuiesce     = Features(uapi.FQuiesce)             // one device can be quiesced by command (6.16)
	FeaturePerIODaemon = Features(uapi.FPerIODaemon)         // recovery of several queues is safe at any time (6.16)
)

// featuresBeforeProbe is what drivers from before GET_FEATURES offer (Linux 6.1).
const featuresBeforeProbe = FeatureRecovery | FeatureReissue

var featureNames = [...]string{
	"zero-copy", "comp-in-task", "need-get-data", "recovery", "reissue", "unprivileged", "ioctl-encode",
	"user-copy", "zoned", "fail-io", "update-size", "auto-buf-reg", "quiesce", "per-io-daemon",
	"buf-reg-off-daemon", "batch-io", "integrity", "safe-stop", "no-auto-part-scan", "shmem-zc",
}

// Has tells whether all features of g are in f.
func (f Features) Has(g Features) bool { return f&g == g }

// String lists the features by name, separated by commas.
func (f Features) String() string {
	var names []string
	for i := range 64 {
		switch bit := Features(1) << i; {
		case f&bit == 0:
		case i < len(featureNames):
			names = append(names, featureNames[i])
		default:
			names = append(names, fmt.Sprintf("bit%d", i))
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, ",")
}

// State is where a device is in its life, as the kernel tells.
type State uint16

// The states of a device.
const (
	StateDead     = State(uapi.StateDead)     // not started yet, or stopped
	StateLive     = State(uapi.StateLive)     // served, as far as the kernel knows
	StateQuiesced = State(uapi.StateQuiesced) // its server is gone, I/O waits for the next one
	StateFailIO   = State(uapi.StateFailIO)   // its server is gone, I/O fails until the next one comes
)

// String is the state's name in lower case.
func (s State) String() string {
	switch s {
	case StateDead:
		return "dead"
	case StateLive:
		return "live"
	case StateQuiesced:
		return "quiesced"
	case StateFailIO:
		return "fail-io"
	}
	return fmt.Sprintf("state %d", uint16(s))
}
