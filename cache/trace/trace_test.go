package trace

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func small() *Trace {
	return &Trace{
		About: []string{"made up", "for a test"}, Size: 1 << 20, Stored: 40, Prompt: 3 * time.Second,
		Data: []Extent{{0, 32 << 10}, {128 << 10, 16 << 10}},
		Reads: []Read{
			{0, Extent{1024, 1024}}, {5 * time.Microsecond, Extent{128 << 10, 4096}}, {time.Second, Extent{4096, 8192}}, {time.Second, Extent{1 << 19, 4096}},
		},
	}
}

func text(t *testing.T, tr *Trace) string {
	t.Helper()
	var b bytes.Buffer
	if err := tr.Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boot.txt")
	if err := os.WriteFile(path, []byte(text(t, small())), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Load(path)
	if err != nil || !reflect.DeepEqual(got, small()) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Load(path + ".not"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// The text is the format: it does not change under a number.
func TestText(t *testing.T) {
	const want = "coppice boot trace 1\n# made up\n# for a test\nsize 2048\nstored 40\nprompt 3000000\ndata 0 64\ndata 256 32\n" +
		"read 0 2 2\nread 5 256 8\nread 1000000 8 16\nread 1000000 1024 8\n"
	if got := text(t, small()); got != want {
		t.Errorf("%q", got)
	}
}

func TestBadTracesAreRefused(t *testing.T) {
	good := text(t, small())
	for _, tt := range []struct{ what, old, new, says string }{
		{"other format", "trace 1", "trace 2", "first line"},
		{"nothing", good, "", "first line"},
		{"unknown record", "read 5", "seek 5", "line 10: unknown record"},
		{"a number too few", "read 5 256 8", "read 5 256", "2 numbers, want 3"},
		{"no number", "read 5", "read x", "no number"},
		{"an empty number", "read 5", "read ", "missing"},
		{"negative number", "read 5 256", "read 5 -256", "no number"},
		{"huge number", "read 5 256", "read 5 99999999999999999999999999", "no number"},
		{"beyond the end", "read 5 256 8", "read 5 2047 2", "do not lie"},
		{"empty read", "read 5 256 8", "read 5 256 0", "do not lie"},
		{"back in time", "read 5 256 8\nread 1000000 8 16", "read 1000000 8 16\nread 5 256 8", "out of order"},
		{"data twice", "data 256 32", "data 32 32", "out of order"},
		{"data in parts of units", "data 256 32", "data 257 32", "whole units"},
		{"no size", "size 2048\n", "", "out of order"},
		{"size twice", "size 2048\n", "size 2048\nsize 2048\n", "out of order"},
		{"data after reads", "read 5 256 8", "data 512 32", "out of order"},
		{"text after records", "data 0 64", "# more\ndata 0 64", "text after"},
		{"percent", "stored 40", "stored 101", "101 percent"},
		{"no reads", good[strings.Index(good, "read "):], "", "no reads"},
		{"a long line", "made up", strings.Repeat("x", 1<<17), "line 2"},
	} {
		_, err := Parse(strings.NewReader(strings.Replace(good, tt.old, tt.new, 1)))
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want one that says %q", tt.what, err, tt.says)
		}
	}
}

func TestChunks(t *testing.T) {
	tr := small()
	if got := tr.Chunks(16 << 10); !slices.Equal(got, []int64{0, 8}) {
		t.Errorf("chunks of 16 KiB: %v", got)
	}
	if got := tr.Chunks(128 << 10); !slices.Equal(got, []int64{0, 1}) {
		t.Errorf("chunks of 128 KiB: %v", got)
	}
	if got := len(tr.Held(16 << 10)); got != 3 {
		t.Errorf("%d chunks of 16 KiB hold data", got)
	}
	if got := tr.Bytes(); got != 1024+4096+8192+4096 {
		t.Errorf("%d bytes are read", got)
	}
}

func FuzzParse(f *testing.F) {
	var b bytes.Buffer
	if err := small().Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		tr, err := Parse(bytes.NewReader(in))
		if err != nil {
			return
		}
		again, err := Parse(strings.NewReader(text(t, tr)))
		if err != nil || !reflect.DeepEqual(again, tr) {
			t.Errorf("%q: %+v, then %+v, %v", in, tr, again, err)
		}
	})
}
