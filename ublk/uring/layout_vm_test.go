//go:build vm

package uring

import (
	"testing"

	"github.com/cilium/ebpf/btf"

	"coppice/ublk/internal/layout"
)

var kernelLayouts = []layout.Pair{
	{Kernel: "io_uring_sqe", Value: SQE{}, Fields: []string{
		"opcode", "flags", "ioprio", "fd", "off", "addr", "len", "rw_flags", "user_data",
		"buf_index", "personality", "splice_fd_in", "addr3", "",
	}},
	{Kernel: "io_uring_cqe", Value: CQE{}, Fields: []string{"user_data", "res", "flags"}},
	{Kernel: "io_uring_params", Value: params{}, Fields: []string{
		"sq_entries", "cq_entries", "flags", "sq_thread_cpu", "sq_thread_idle", "features", "wq_fd", "resv", "sq_off", "cq_off",
	}},
	{Kernel: "io_sqring_offsets", Value: sqOffsets{}, Fields: []string{
		"head", "tail", "ring_mask", "ring_entries", "flags", "dropped", "array", "resv1", "user_addr",
	}},
	{Kernel: "io_cqring_offsets", Value: cqOffsets{}, Fields: []string{
		"head", "tail", "ring_mask", "ring_entries", "overflow", "cqes", "flags", "resv1", "user_addr",
	}},
	{Kernel: "io_uring_getevents_arg", Value: geteventsArg{}, Fields: []string{"sigmask", "sigmask_sz", "", "ts"}},
	{Kernel: "io_uring_rsrc_register", Value: rsrcRegister{}, Fields: []string{"nr", "flags", "resv2", "data", "tags"}},
	{Kernel: "io_uring_rsrc_update2", Value: rsrcUpdate2{}, Fields: []string{"offset", "resv", "data", "tags", "nr", "resv2"}},
	{Kernel: "io_uring_rsrc_update", Value: rsrcUpdate{}, Fields: []string{"offset", "resv", "data"}},
	{Kernel: "io_uring_probe_op", Value: probeOp{}, Fields: []string{"op", "resv", "flags", "resv2"}},
	{Kernel: "__kernel_timespec", Value: timespec{}, Fields: []string{"tv_sec", "tv_nsec"}},
	{Kernel: "iovec", Value: iovec{}, Fields: []string{"iov_base", "iov_len"}},
}

// TestLayoutAgainstBTF compares every structure with the running kernel's.
func TestLayoutAgainstBTF(t *testing.T) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range kernelLayouts {
		for _, problem := range layout.Check(spec, p) {
			t.Error(problem)
		}
	}
}
