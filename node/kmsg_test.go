package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What goes to the kernel's log has its form: one write for each record, a level, no time, and never more than it takes.
func TestKmsgHandler(t *testing.T) {
	out, err := os.Create(filepath.Join(t.TempDir(), "kmsg"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	log := slog.New(newKmsgHandler(out, &slog.HandlerOptions{Level: slog.LevelInfo}))
	log.Debug("unseen")
	log.Info("began", "time", "of day")
	log.With("device", "web1").WithGroup("g").Warn("slow", "ms", 3)
	log.Error(strings.Repeat("long ", 1000))
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitN(string(text), "\n", 3)
	want := []string{`<30>coppice: msg=began time="of day"`, `<28>coppice: msg=slow device=web1 g.ms=3`}
	for i, w := range want {
		if !strings.HasPrefix(lines[i], w) || strings.Contains(lines[i], "level=") {
			t.Errorf("%q, want %q", lines[i], w)
		}
	}
	if last := lines[2]; !strings.HasPrefix(last, "<27>coppice: ") || len(last) != maxKmsg {
		t.Errorf("%d bytes: %.40q", len(last), last)
	}
	if isKmsg(out) {
		t.Error("a file is taken for the kernel's log")
	}
}
