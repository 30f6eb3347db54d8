package uring

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// oldKernel refuses all flags but the known ones, as io_uring_setup does.
func oldKernel(known uint32, seen *[]uint32) setupFunc {
	return func(_ uint32, p *params) (int, unix.Errno) {
		*seen = append(*seen, p.flags)
		if p.flags&^known != 0 || (p.flags&SetupDeferTaskrun != 0 && p.flags&SetupSingleIssuer == 0) ||
			(p.flags&SetupTaskrunFlag != 0 && p.flags&SetupDeferTaskrun == 0) ||
			(p.flags&SetupCQSize == 0 && p.cqEntries != 0) {
			return -1, unix.EINVAL
		}
		return 99, 0
	}
}

func TestSetupGivesUpFlagsOneByOne(t *testing.T) {
	const base = SetupClamp | SetupSQE128
	const all = base | SetupCQSize | SetupSubmitAll | SetupSingleIssuer | SetupDeferTaskrun | SetupTaskrunFlag | SetupNoSQArray
	for _, known := range []uint32{
		all,
		all &^ SetupNoSQArray,
		all &^ (SetupNoSQArray | SetupTaskrunFlag),
		all &^ (SetupNoSQArray | SetupTaskrunFlag | SetupDeferTaskrun),
		all &^ (SetupNoSQArray | SetupTaskrunFlag | SetupDeferTaskrun | SetupSingleIssuer),
		base | SetupCQSize,
		base,
	} {
		var seen []uint32
		_, want := (&Config{SQE128: true, SingleIssuer: true}).params()
		fd, got, err := setup(oldKernel(known, &seen), 8, want)
		if fd != 99 || err != nil || got.flags != known {
			t.Errorf("known %b: got %b, %v", known, got.flags, err)
		}
		for i := 1; i < len(seen); i++ {
			if dropped := seen[i-1] &^ seen[i]; dropped&(dropped-1) != 0 || dropped == 0 {
				t.Errorf("step %d dropped %b", i, dropped)
			}
		}
	}
}

func TestSetupKeepsWhatIsNotOptional(t *testing.T) {
	var seen []uint32
	_, want := (&Config{SQE128: true}).params()
	if _, _, err := setup(oldKernel(SetupClamp, &seen), 8, want); !errors.Is(err, unix.EINVAL) {
		t.Errorf("kernel without 128-byte entries: %v", err)
	}
}

func TestSetupErrors(t *testing.T) {
	for errno, unavailable := range map[unix.Errno]bool{
		unix.EPERM: true, unix.ENOSYS: true, unix.ENOMEM: false, unix.EMFILE: false,
	} {
		call := func(uint32, *params) (int, unix.Errno) { return -1, errno }
		_, want := (&Config{}).params()
		_, _, err := setup(call, 8, want)
		if !errors.Is(err, errno) || errors.Is(err, ErrUnavailable) != unavailable {
			t.Errorf("errno %v gives %v", errno, err)
		}
	}
}

func TestSetupRetriesInterrupts(t *testing.T) {
	calls := 0
	call := func(uint32, *params) (int, unix.Errno) {
		if calls++; calls < 4 {
			return -1, unix.EINTR
		}
		return 5, 0
	}
	if fd, _, err := setup(call, 8, params{}); fd != 5 || err != nil {
		t.Errorf("descriptor %d, %v", fd, err)
	}
}

// Rings of kernels without NO_SQARRAY find their entries through an index array.
func TestRingWithIndexArray(t *testing.T) {
	p := params{flags: SetupClamp}
	fd, errno := sysSetup(4, &p)
	if errno != 0 {
		t.Fatal(errno)
	}
	r := &Ring{fd: fd, enterFD: uintptr(fd), flags: p.flags}
	defer r.Close()
	mustOK(t, r.mapRings(&p))
	for i := range uint64(11) {
		s := r.SQE()
		s.PrepNop()
		s.SetUserData(i)
		if c := one(t, r); c.UserData != i {
			t.Fatalf("completion %+v of nop %d", c, i)
		}
	}
}

func TestGrantedSizes(t *testing.T) {
	r := newRing(t, Config{Entries: 5, CQEntries: 60})
	if r.Entries() != 8 || r.CQEntries() != 64 {
		t.Errorf("%d entries, %d completions", r.Entries(), r.CQEntries())
	}
	if r := newRing(t, Config{}); r.Entries() != defaultEntries || r.CQEntries() != 2*defaultEntries {
		t.Errorf("%d entries, %d completions by default", r.Entries(), r.CQEntries())
	}
	if r.Features()&FeatExtArg == 0 {
		t.Error("kernel without extended arguments")
	}
}

func TestAncientKernelIsRefused(t *testing.T) {
	r := &Ring{fd: -1}
	if err := r.mapRings(&params{}); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("kernel without single mmap: %v", err)
	}
}
