package node

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice/ublk"
	"coppice/union"
)

func TestHeapLimit(t *testing.T) {
	for memory, want := range map[int64]int64{0: minHeapBytes, 4 << 30: 512 << 20, 1 << 40: maxHeapBytes} {
		if got := heapLimit(memory); got != want {
			t.Errorf("limit of %d for %d bytes of memory, not %d", got, memory, want)
		}
	}
	if memoryBytes() < minHeapBytes {
		t.Error("this machine has no memory")
	}
}

func TestSetUpProcess(t *testing.T) {
	procs := runtime.GOMAXPROCS(0)
	t.Cleanup(func() { runtime.GOMAXPROCS(procs) })
	t.Setenv("GOMAXPROCS", "")
	if err := SetUpProcess(); err != nil {
		t.Logf("not all was had: %v", err)
	}
	if got := runtime.GOMAXPROCS(0); got != 2*runtime.NumCPU()+2 {
		t.Errorf("GOMAXPROCS %d", got)
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur < min(l.Max, maxOpenFiles) {
		t.Errorf("RLIMIT_NOFILE %+v, %v", l, err)
	}
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil || l.Cur != l.Max {
		t.Errorf("RLIMIT_MEMLOCK %+v, %v", l, err)
	}
}

func TestRunLock(t *testing.T) {
	dir := t.TempDir()
	if daemonHolds(dir) {
		t.Fatal("held by nobody")
	}
	l, err := takeRunLock(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !daemonHolds(dir) {
		t.Error("not held")
	}
	if _, err := takeRunLock(dir, 30*time.Millisecond); !errors.Is(err, ErrRunning) {
		t.Errorf("taken twice: %v", err)
	}
	go func() {
		time.Sleep(10 * time.Millisecond)
		_ = l.release()
	}()
	again, err := takeRunLock(dir, 2*time.Minute) // waits for the other to end
	if err != nil {
		t.Fatal(err)
	}
	if err := again.release(); err != nil || daemonHolds(dir) {
		t.Errorf("held after release: %v", err)
	}
}

func TestCredentialsOfPeer(t *testing.T) {
	dir, err := os.MkdirTemp("", "peer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	pl := newPeerListener(l, 1)
	t.Cleanup(func() { pl.Close() })
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in, err := pl.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p, ok := peerOf(withPeer(t.Context(), in))
	if !ok || int(p.pid) != os.Getpid() || int(p.uid) != os.Geteuid() || !p.mayChange() {
		t.Errorf("peer %+v, %v", p, ok)
	}
	if pl.admit(p.uid) {
		t.Error("a second connection is admitted over the bound")
	}
	in.Close()
	in.Close() // gives its place back once
	if !pl.admit(p.uid) || pl.admit(p.uid) {
		t.Error("the place of a closed connection is not free, or twice so")
	}
	if (peer{uid: 4711}).mayChange() {
		t.Error("user 4711 may change devices")
	}
	if _, ok := peerOf(withPeer(t.Context(), c)); ok {
		t.Error("a connection that was not accepted has a peer")
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		code Code
	}{
		{fmt.Errorf("a: %w", ublk.ErrNoDriver), CodeNoDriver},
		{fmt.Errorf("a: %w", ublk.ErrPermission), CodeForbidden},
		{errors.Join(errors.New("a"), fmt.Errorf("b: %w", union.ErrNotFormatted)), CodeNotFormatted},
		{&union.CorruptError{Structure: "log", Detail: "torn"}, CodeCorrupt},
		{fmt.Errorf("a: %w", fail(CodeBusy, "wait", "b")), CodeBusy},
		{errors.New("a"), CodeFailed},
	} {
		e := Explain(c.err)
		if e.Code != c.code || e.Message == "" || (e.Hint == "") != (c.code == CodeFailed) {
			t.Errorf("%v: %+v", c.err, e)
		}
		if !errors.Is(e, c.err) && !errors.As(c.err, new(*Error)) {
			t.Errorf("%v lost its cause", c.err)
		}
		if statusOf(e.Code) < 400 {
			t.Errorf("%s is no HTTP error", e.Code)
		}
	}
}
