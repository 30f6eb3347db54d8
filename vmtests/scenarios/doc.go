// Package scenarios holds the tests that use coppice as a person would: they run inside a guest (build tag vm), as root,
// and drive the real command line and the real daemon over the real ublk driver, with a Debian system as root image.
//
// The host side is TestScenarios, TestScenariosOfTrouble and TestScenariosOfStorage in package vmtests, with a VM each. They attach these disks, all but "repo"
// writable and the first one alone more than "debian" of the root images, and compare the digests of the root images when the guest is gone:
//
//	debian  ext4, no partition table          gpt   the same as the only partition
//	xfs     xfs, no partition table           pair  the same as first of two partitions; the second is empty
//	repo    flat apt repository, read-only    leaf, remote   empty
//
// Tests of one VM run one after the other; each formats the leaf disk anew.
//
// The tests whose names begin with TestImage have another host side, TestImages, and a VM with a network to servers on the host, which the
// files in /lab tell of. They find the disks "debian" and "repo", both read-only, "leaf", and "images", a file system with an OCI layout.
package scenarios
