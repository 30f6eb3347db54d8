//go:build vm

package uapi

import (
	"testing"

	"github.com/cilium/ebpf/btf"

	"coppice/ublk/internal/layout"
)

var kernelLayouts = []layout.Pair{
	{Kernel: "ublksrv_ctrl_cmd", Value: CtrlCmd{}, Fields: []string{
		"dev_id", "queue_id", "len", "addr", "data", "dev_path_len", "pad", "reserved",
	}},
	{Kernel: "ublksrv_ctrl_dev_info", Value: DevInfo{}, Fields: []string{
		"nr_hw_queues", "queue_depth", "state", "pad0", "max_io_buf_bytes", "dev_id", "ublksrv_pid", "pad1",
		"flags", "ublksrv_flags", "owner_uid", "owner_gid", "reserved1", "reserved2",
	}},
	{Kernel: "ublksrv_io_desc", Value: IODesc{}, Fields: []string{"op_flags", "nr_sectors", "start_sector", "addr"}},
	{Kernel: "ublksrv_io_cmd", Value: IOCmd{}, Fields: []string{"q_id", "tag", "result", "addr"}},
	{Kernel: "ublk_param_basic", Value: ParamsBasic{}, Fields: []string{
		"attrs", "logical_bs_shift", "physical_bs_shift", "io_opt_shift", "io_min_shift",
		"max_sectors", "chunk_sectors", "dev_sectors", "virt_boundary_mask",
	}},
	{Kernel: "ublk_param_discard", Value: ParamsDiscard{}, Fields: []string{
		"discard_alignment", "discard_granularity", "max_discard_sectors", "max_write_zeroes_sectors",
		"max_discard_segments", "reserved0",
	}},
	{Kernel: "ublk_param_devt", Value: ParamsDevt{}, Fields: []string{"char_major", "char_minor", "disk_major", "disk_minor"}},
	{Kernel: "ublk_param_zoned", Value: ParamsZoned{}, Fields: []string{
		"max_open_zones", "max_active_zones", "max_zone_append_sectors", "reserved",
	}},
	{Kernel: "ublk_params", Value: Params{}, Prefix: true, Fields: []string{
		"len", "types", "basic", "discard", "devt", "zoned", "dma", "seg",
	}},
}

// TestLayoutAgainstBTF compares every structure with what the running kernel's driver was built with.
func TestLayoutAgainstBTF(t *testing.T) {
	spec, err := btf.LoadKernelModuleSpec("ublk_drv")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range kernelLayouts {
		for _, problem := range layout.Check(spec, p) {
			t.Error(problem)
		}
	}
}
