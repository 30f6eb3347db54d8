package vmtests

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"coppice/cache/trace"
)

// What nbdkit 1.32 logs, with two reads the wrong way round.
const nbdkitLog = `2026-11-21 19:53:14.381995 Ready thread_model=3
2026-11-21 19:53:15.405691 connection=1 Connect export="" tls=0 size=0x40000000 minsize=0x0 prefsize=0x0 maxsize=0x0 write=0 flush=1 rotational=0
2026-11-21 19:53:15.406173 connection=1 Read id=1 offset=0x0 count=0x1000 ...
2026-11-21 19:53:15.406187 connection=1 ...Read id=1 return=0
2026-11-21 19:53:15.406746 connection=1 Read id=3 offset=0x3000 count=0xd000 ...
2026-11-21 19:53:15.406729 connection=1 Read id=2 offset=0x0 count=0x2000 ...
2026-11-21 19:53:15.406755 connection=1 ...Read id=3 return=0
2026-11-21 19:53:17.406755 connection=1 Read id=4 offset=0x3000 count=0xd000 ...
2026-11-21 19:53:17.409681 connection=1 Disconnect transactions=3
`

func TestReadsOfALog(t *testing.T) {
	prompt := time.Date(2026, 11, 21, 19, 53, 16, 406173000, time.Local)
	reads, took, err := loggedReads(strings.NewReader(nbdkitLog), prompt)
	want := []trace.Read{
		{Extent: trace.Extent{Off: 0, Len: 4096}},
		{At: 556 * time.Microsecond, Extent: trace.Extent{Off: 0, Len: 8192}},
		{At: 573 * time.Microsecond, Extent: trace.Extent{Off: 12288, Len: 53248}},
	}
	if err != nil || took != time.Second || !slices.Equal(reads, want) {
		t.Errorf("%+v, prompt after %v, %v", reads, took, err)
	}
	for _, log := range []string{"", "2026-11-21 19:53:14.381995 Ready thread_model=3\n", strings.ReplaceAll(nbdkitLog, "2026-11-21", "yesterday")} {
		if _, _, err := loggedReads(strings.NewReader(log), prompt); err == nil {
			t.Errorf("%.40q was taken for a log", log)
		}
	}
}

func TestScanned(t *testing.T) {
	content := make([]byte, 1<<20+4096)
	noise := rand.NewChaCha8([32]byte{1})
	for _, at := range []int{0, 48 << 10, 64 << 10, 1 << 20} {
		_, _ = noise.Read(content[at:][:4096]) // never fails
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := scanned(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []trace.Extent{{Off: 0, Len: 16 << 10}, {Off: 48 << 10, Len: 32 << 10}, {Off: 1 << 20, Len: 4096}}
	if got.Size != int64(len(content)) || !slices.Equal(got.Data, want) || got.Stored < 25 || got.Stored > 40 {
		t.Errorf("%+v", got)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte{0}, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := scanned(path); err == nil {
		t.Error("zeros were taken for an image")
	}
}
