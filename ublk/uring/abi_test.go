package uring

import (
	"testing"
	"unsafe"
)

func TestLayouts(t *testing.T) {
	var s SQE
	var c CQE
	var p params
	var sq sqOffsets
	var cq cqOffsets
	var arg geteventsArg
	var u rsrcUpdate
	var u2 rsrcUpdate2
	var g rsrcRegister
	var pr probe
	for _, f := range []struct {
		name      string
		got, want uintptr
	}{
		{"sqe", unsafe.Sizeof(s), 64},
		{"sqe.fd", unsafe.Offsetof(s.FD), 4},
		{"sqe.off", unsafe.Offsetof(s.Off), 8},
		{"sqe.addr", unsafe.Offsetof(s.Addr), 16},
		{"sqe.len", unsafe.Offsetof(s.Len), 24},
		{"sqe.op_flags", unsafe.Offsetof(s.OpFlags), 28},
		{"sqe.user_data", unsafe.Offsetof(s.UserData), 32},
		{"sqe.buf_index", unsafe.Offsetof(s.BufIndex), 40},
		{"sqe.personality", unsafe.Offsetof(s.Personality), 42},
		{"sqe.splice_fd_in", unsafe.Offsetof(s.SpliceFDIn), 44},
		{"sqe.addr3", unsafe.Offsetof(s.Addr3), cmd16Off},
		{"cqe", unsafe.Sizeof(c), 16},
		{"cqe.res", unsafe.Offsetof(c.Res), 8},
		{"cqe.flags", unsafe.Offsetof(c.Flags), 12},
		{"params", unsafe.Sizeof(p), 120},
		{"params.flags", unsafe.Offsetof(p.flags), 8},
		{"params.features", unsafe.Offsetof(p.features), 20},
		{"params.sq_off", unsafe.Offsetof(p.sqOff), 40},
		{"params.cq_off", unsafe.Offsetof(p.cqOff), 80},
		{"sq_off.ring_mask", unsafe.Offsetof(sq.ringMask), 8},
		{"sq_off.flags", unsafe.Offsetof(sq.flags), 16},
		{"sq_off.array", unsafe.Offsetof(sq.array), 24},
		{"cq_off.overflow", unsafe.Offsetof(cq.overflow), 16},
		{"cq_off.cqes", unsafe.Offsetof(cq.cqes), 20},
		{"getevents_arg", unsafe.Sizeof(arg), 24},
		{"getevents_arg.ts", unsafe.Offsetof(arg.ts), 16},
		{"rsrc_update", unsafe.Sizeof(u), 16},
		{"rsrc_update.data", unsafe.Offsetof(u.data), 8},
		{"rsrc_update2", unsafe.Sizeof(u2), 32},
		{"rsrc_update2.tags", unsafe.Offsetof(u2.tags), 16},
		{"rsrc_update2.nr", unsafe.Offsetof(u2.nr), 24},
		{"rsrc_register", unsafe.Sizeof(g), 32},
		{"rsrc_register.flags", unsafe.Offsetof(g.flags), 4},
		{"rsrc_register.data", unsafe.Offsetof(g.data), 16},
		{"probe", unsafe.Sizeof(pr), 16 + 8*probeOps},
		{"probe.ops", unsafe.Offsetof(pr.ops), 16},
		{"timespec", unsafe.Sizeof(timespec{}), 16},
		{"iovec", unsafe.Sizeof(iovec{}), 16},
	} {
		if f.got != f.want {
			t.Errorf("%s is %d, want %d", f.name, f.got, f.want)
		}
	}
}

func TestCommandPayload(t *testing.T) {
	var pair [2]SQE
	s := &pair[0]
	s.PrepURingCmd(7, 0xC0107520)
	s.Cmd80()[0], s.Cmd80()[79] = 1, 2
	raw := (*[128]byte)(unsafe.Pointer(&pair))
	if s.Opcode != 46 || s.FD != 7 || s.Off != 0xC0107520 || raw[48] != 1 || raw[127] != 2 || s.Cmd16()[0] != 1 {
		t.Errorf("command entry % x", raw[:])
	}
}
