package node

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// kmsgDevice is the number of /dev/kmsg (Documentation/admin-guide/devices.txt).
var kmsgDevice = unix.Mkdev(1, 11)

// maxKmsg is how much of a line goes to the kernel's log, which refuses 1,024 bytes and more (devkmsg_write,
// kernel/printk/printk.c, Linux 6.12).
const maxKmsg = 960

func isKmsg(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == kmsgDevice
}

// kmsgHandler writes each record as one to the kernel's log, with its level, as a daemon's. The kernel adds the time.
type kmsgHandler struct {
	slog.Handler // that writes to line
	line         *kmsgLine
}

// kmsgLine is the line that is being made, shared by all handlers that come from one.
type kmsgLine struct {
	mu  sync.Mutex // held while a line is made and written
	buf bytes.Buffer
	out *os.File
}

func newKmsgHandler(out *os.File, opts *slog.HandlerOptions) slog.Handler {
	line, own := &kmsgLine{out: out}, *opts
	own.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
		_, level := a.Value.Any().(slog.Level)
		if len(groups) == 0 && (a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime || a.Key == slog.LevelKey && level) {
			return slog.Attr{}
		}
		return a
	}
	return &kmsgHandler{slog.NewTextHandler(&line.buf, &own), line}
}

// Handle writes r.
func (h *kmsgHandler) Handle(ctx context.Context, r slog.Record) error {
	h.line.mu.Lock()
	defer h.line.mu.Unlock()
	h.line.buf.Reset()
	h.line.buf.WriteString(kmsgPriority(r.Level) + "coppice: ")
	if err := h.Handler.Handle(ctx, r); err != nil {
		return err
	}
	text := h.line.buf.Bytes()
	_, err := h.line.out.Write(text[:min(len(text), maxKmsg)])
	return err
}

// WithAttrs is of the same line.
func (h *kmsgHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &kmsgHandler{h.Handler.WithAttrs(attrs), h.line}
}

// WithGroup is of the same line.
func (h *kmsgHandler) WithGroup(name string) slog.Handler {
	return &kmsgHandler{h.Handler.WithGroup(name), h.line}
}

// kmsgPriority is the facility of daemons and the level of syslog(3): 24 and 3 (error), 4 (warning), 6 (information) or 7 (debug).
func kmsgPriority(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "<27>"
	case level >= slog.LevelWarn:
		return "<28>"
	case level >= slog.LevelInfo:
		return "<30>"
	}
	return "<31>"
}
