package union

import (
	"os"
	"testing"

	"github.com/google/uuid"
)

// logReads counts what is read of the log's copies.
type logReads struct {
	keepOpen
	from, to int64
	bytes    int64
}

// ReadAt counts.
func (d *logReads) ReadAt(p []byte, off int64) (int, error) {
	if off < d.to && off+int64(len(p)) > d.from {
		d.bytes += int64(len(p))
	}
	return d.keepOpen.ReadAt(p, off)
}

// Opening a store that was closed in order reads nothing of its log, and every other opening all of it: how long devices wait while one program takes them from another must not depend on the log.
func TestLogOfClosedStoreIsNotRead(t *testing.T) {
	r := newRig(t, 1, false)
	data := make([]byte, 4096)
	fill(data, 1)
	if _, err := r.block.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	sb := r.store.sb
	both := 2 * int64(sb.LogBlocks) << blockShift
	r.close()
	opens := func(what string, o StoreOptions, want int64) {
		t.Helper()
		d := &logReads{keepOpen: keepOpen{r.disk}, from: int64(sb.LogA) << blockShift, to: int64(sb.LogB+sb.LogBlocks) << blockShift}
		o.inline = true
		s, err := openOn("leaf", d, o)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if d.bytes != want {
			t.Errorf("%s: %d bytes of the log were read, want %d", what, d.bytes, want)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	file := pendingPath(r.run, sb.UUID)
	opens("closed in order", r.options(), 0)
	opens("closed in order, again", r.options(), 0)
	opens("another run directory", StoreOptions{RunDir: runDir(t), boot: r.boot}, both)
	opens("after another has had it", r.options(), both)
	opens("after a reboot", StoreOptions{RunDir: r.run, boot: uuid.New()}, both)
	opens("without a run directory", StoreOptions{boot: r.boot}, both)
	opens("after one that left no word", r.options(), both)
	if err := os.Truncate(file, 100); err != nil {
		t.Fatal(err)
	}
	opens("half a word", r.options(), both)
	word, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r.open()
	fill(data, 2)
	if _, err := r.block.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	r.abandon()
	if ring, err := os.ReadFile(file); err != nil || len(ring) <= len(word) {
		t.Fatalf("the word is still there while the store is open: %d bytes, %v", len(ring), err)
	}
	r.open()
	got := make([]byte, len(data))
	if _, err := r.block.ReadAt(got, 0); err != nil || string(got) != string(data) {
		t.Errorf("what was written before the process died is lost (%v)", err)
	}
	r.close()
}

// What closing a store takes long for is done ahead: the views of sealed layers, and the checkpoint.
func TestPrepareClose(t *testing.T) {
	r := newRig(t, 1, false)
	data := make([]byte, 4096)
	fill(data, 1)
	if _, err := r.block.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	r.sealAs("sealed")
	if _, err := r.block.WriteAt(data, 8192); err != nil {
		t.Fatal(err)
	}
	if r.store.unflattened() == nil || r.store.Info().LogUsed == 0 {
		t.Fatal("there is nothing to do ahead")
	}
	if err := r.store.PrepareClose(); err != nil {
		t.Fatal(err)
	}
	if l, used := r.store.unflattened(), r.store.Info().LogUsed; l != nil || used != 0 {
		t.Errorf("left to do: flatten %v, %d bytes of log", l, used)
	}
	r.close()
}
