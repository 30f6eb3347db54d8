package union

import (
	"log/slog"
	"os"
	"testing"
)

// TestMain silences the log: thousands of stores are made to fail, and are expected to say so.
func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}
