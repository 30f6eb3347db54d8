// Package uapi is the binary interface of the kernel's ublk driver: structures,
// command numbers and flags of include/uapi/linux/ublk_cmd.h, as of Linux 7.1, of
// which older kernels know a prefix. Names follow the kernel's.
//
// Layouts are the same on all 64-bit little-endian machines. They are tested
// against literals, and in a guest that has the driver against its BTF.
package uapi
